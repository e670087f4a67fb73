"""Whatever goes wrong with a request, the repo is the old one or the new one; `make faults` tries all of it."""

from __future__ import annotations

import functools

import pytest
from fault_cells import Cell, run, undisturbed
from fault_kinds import COMMIT, KINDS
from fault_table import cell, messages, summary
from fault_world import BASE_ID, SCENARIOS

from hubprune.hub import commit, target

NEW, OLDER = SCENARIOS[:2]
BY_NAME = {kind.name: kind for kind in KINDS}
PARTS = 4


@pytest.fixture(scope="module")
def requests(world):
    """Return what an undisturbed publish of a scenario asks for; it is tried once."""
    return functools.cache(lambda scenario: undisturbed(world, scenario))


@pytest.fixture
def spoil(world, killable, requests):
    """Run the cell of a scenario, the start of a request's line and the name of a fault."""

    def find(scenario, start, fault):
        request = next(r for r in requests(scenario) if r.line.startswith(start))
        return run(world, Cell(scenario, request, BY_NAME[fault]), killable)

    return find


def the_commit(requests):
    return next(r for r in requests if COMMIT.match(r.line))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_commit_can_go_wrong_in_every_way(world, killable, requests, kind):
    result = run(world, Cell(OLDER, the_commit(requests(OLDER)), kind), killable)
    assert result.problems == []
    passes = kind.name in ("412", "429 with Retry-After", "500", "503", "slow") or kind.name.startswith(
        ("reset", "answer truncated", "done, answer lost")
    )
    lasting = kind.lasting and not kind.name.startswith(("answer truncated", "done, answer lost"))
    assert (result.outcome == "published") == (passes and not lasting)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_other_request_can_go_wrong(world, killable, requests, part):
    """Each kind of request from the first that concerns the target to the tag, in one way; which one goes round."""
    found = [r for r in requests(OLDER) if not r.nth and BASE_ID not in r.line and not r.is_commit]
    end = next(number for number, r in enumerate(found) if "/tag/" in r.line) + 1
    for number in range(part, end, PARTS):
        possible = [kind for kind in KINDS if kind.fault(found[number])]
        kind = possible[7 * number % len(possible)]
        result = run(world, Cell(OLDER, found[number], kind), killable)
        assert result.problems == [], (result.request, result.fault)


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s not in (NEW, OLDER)], ids=lambda s: s.name)
def test_other_ways_to_publish_find_a_commit_whose_answer_was_lost(world, killable, requests, scenario):
    cell = Cell(scenario, the_commit(requests(scenario)), BY_NAME["done, answer lost"])
    result = run(world, cell, killable)
    assert (result.problems, result.outcome, result.state) == ([], "published", "new")


def test_a_new_repo_goes_again_unless_its_publisher_was_killed(spoil):
    assert spoil(NEW, "POST /api/models/REPO/commit", "403").state == "old"
    assert spoil(NEW, "POST /api/models/REPO/preupload", "503, always").state == "old"
    killed = spoil(NEW, "POST /api/models/REPO/commit", "SIGKILL before the work")
    assert (killed.problems, killed.state) == ([], "old, an empty repo left behind")


@pytest.mark.parametrize(
    ("start", "fault"),
    [("POST /api/repos/create", "done, answer lost, always"), ("GET /api/models/REPO/refs", "503, always")],
)
def test_an_empty_repo_that_may_be_left_is_told(spoil, start, fault):
    left = spoil(NEW, start, fault)
    assert left.problems == []
    assert left.state == "old, an empty repo left behind"
    assert "the same command fills it" in left.message


# ---- the matrix sees bugs ----------------------------------------------------------------------------------------


def test_a_publisher_that_does_not_look_after_a_lost_answer_is_seen(monkeypatch, spoil):
    monkeypatch.setattr(commit, "_recover", lambda change, **options: None)
    result = spoil(OLDER, "POST /api/models/REPO/commit", "done, answer lost")
    assert result.outcome == "ConflictError"
    assert result.state == "new"
    monkeypatch.setattr(commit, "is_transient", lambda error: False)
    monkeypatch.setattr(commit, "translate", lambda error, **options: error)
    result = spoil(OLDER, "POST /api/models/REPO/commit", "503")
    assert any("bare HfHubHTTPError" in problem for problem in result.problems)
    assert "!" in cell(result)
    assert any("1 with a problem" in line for line in summary([result]))
    assert any("503" in line for line in messages([result]))


def test_a_repo_that_is_left_without_a_word_is_seen(monkeypatch, spoil):
    monkeypatch.setattr(target, "_delete_if_untouched", lambda target, **options: None)
    result = spoil(NEW, "POST /api/models/REPO/commit", "403")
    assert result.problems == ["old, an empty repo left behind after PermissionDeniedError, and that is not said"]


def test_a_commit_that_is_made_twice_is_seen(monkeypatch, spoil):
    post = commit._post

    def careless(change, **options):
        from dataclasses import replace

        landed = post(change, **options)
        again = {f.path: f for f in change.files}
        notes = change.folder / "notes.txt"
        notes.write_text("x")
        options["api"].upload_file(path_or_fileobj=notes, path_in_repo="notes.txt", repo_id=change.target.repo_id)
        notes.unlink()
        return replace(landed) if again else landed

    monkeypatch.setattr(commit, "_post", careless)
    result = spoil(OLDER, "GET /api/models/REPO/refs", "503")
    assert any("in between" in problem or "commits" in problem for problem in result.problems)
