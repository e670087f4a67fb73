"""What follows a publish: a collection and a hint on the old repo, each once, and never at the cost of the publish."""

from __future__ import annotations

from pathlib import Path

import pytest
from on_hub import commit_files

from hubprune.core.artifacts import PublishedCommit
from hubprune.core.errors import RecipeError
from hubprune.core.recipe import TargetSpec, parse
from hubprune.hub.announcing import announce, with_new_version

OLD_CARD = b"---\nlicense: apache-2.0\nnew_version: somebody/else\n---\n# Old\n\nText stays.\n"


@pytest.fixture
def result(session, user):
    repo_id = f"{user[0]}/pruned"
    session.api.create_repo(repo_id)
    return PublishedCommit(repo_id=repo_id, commit="0" * 40, parent=None, url="http://hub", created=True, files=())


@pytest.fixture
def said(result, session, reporter, monkeypatch):
    """Announce with some options; return what was noted, then what was warned of."""

    def run(**target):
        notes = []
        monkeypatch.setattr(reporter, "note", notes.append)
        before = len(reporter.warned)
        announce(TargetSpec(**target), result, session=session, reporter=reporter)
        return notes, list(reporter.warned[before:])

    return run


def pull_requests(api, repo_id):
    return api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests


def test_a_collection_is_made_by_its_title_and_found_again(said, session, result, user, hub):
    first, warned = said(collection="Pruned with care")
    assert warned == []
    [collection] = session.api.list_collections(owner=user[0])
    assert (collection.title, [item.item_id for item in collection.items]) == ("Pruned with care", [result.repo_id])
    assert first == [f"in the collection {collection.url.replace('https://huggingface.co', session.endpoint)}"]

    hub.clear_log()
    assert said(collection="Pruned with care") == (first, [])
    assert "POST /api/collections" not in {record.line for record in hub.log}
    assert said(collection=collection.slug) == (first, [])
    assert len(session.api.get_collection(collection.slug).items) == 1
    assert len(list(session.api.list_collections(owner=user[0]))) == 1


def test_an_answer_that_was_lost_makes_no_second_collection(said, session, user, hub):
    hub.set_faults([{"match": "POST /api/collections$", "do": "lose"}])
    assert said(collection="Lost")[1] == []
    assert len(list(session.api.list_collections(owner=user[0]))) == 1


def test_the_old_repo_gets_one_pull_request_even_when_it_was_not_merged(said, new_repo, admin, result):
    old = new_repo({"README.md": OLD_CARD})
    [first], warned = said(supersedes=old)
    assert warned == []
    assert first.startswith(f"pull request to name it as the new version of {old}: ")
    [proposal] = pull_requests(admin, old)
    path = admin.hf_hub_download(old, "README.md", revision=proposal.ref)
    assert Path(path).read_bytes() == OLD_CARD.replace(b"somebody/else", result.repo_id.encode())

    assert said(supersedes=old) == ([f"{old} was asked before to name it as its new version"], [])
    assert len(pull_requests(admin, old)) == 1
    commit_files(admin, old, {"README.md": OLD_CARD.replace(b"somebody/else", result.repo_id.encode())})
    assert said(supersedes=old) == ([f"{old} names it as its new version"], [])


def test_a_repo_without_a_card_is_left_alone(said, new_repo, admin):
    old = new_repo({"config.json": b"{}"})
    assert said(supersedes=old) == ([f"{old} has no card that could name its new version"], [])
    assert pull_requests(admin, old) == []


@pytest.mark.parametrize(
    ("target", "warning"),
    [
        ({"collection": "acme-of-others/title-64f9a55bb3115b4f513ec026"}, "It is published, but: Cannot add "),
        ({"supersedes": "nobody/absent"}, "It is published, but: Cannot read README.md of nobody/absent"),
    ],
)
def test_what_fails_is_a_warning_and_the_other_one_is_done_all_the_same(said, target, warning, session, user):
    other = {"supersedes": "nobody/absent"} if "collection" in target else {"collection": "Mine"}
    warned = said(**target, **other)[1]
    assert any(line.startswith(warning) for line in warned)
    assert len(warned) == (2 if "collection" in target else 1)


ODD = b"""---
# keep
license: apache-2.0   # see LICENSE
license: mit
version: 1.10
build: 0123
flag: yes
language:
- no
duration: 1:30
model-index: 3
text: |
  new_version: not/this
---
new_version: nor/this
"""
LINE = b"new_version: me/new\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ODD, ODD.replace(b"---\nnew_version: nor", LINE + b"---\nnew_version: nor")),
        (
            ODD.replace(b"\n", b"\r\n"),
            ODD.replace(b"---\nnew_version: nor", LINE + b"---\nnew_version: nor").replace(b"\n", b"\r\n"),
        ),
        (b"---\nnew_version:   'a/b' # here\nx: 1\n---\n# Old", b"---\n" + LINE + b"x: 1\n---\n# Old"),
        (b"---\n---\n# Old\n", b"---\n" + LINE + b"---\n# Old\n"),
        (b"---\nx: 1\n---", b"---\nx: 1\n" + LINE + b"---"),
        (b"# Old\n", b"---\n" + LINE + b"---\n# Old\n"),
        ("\ufeff---\nx: 1\n---\n".encode(), "\ufeff---\nx: 1\n".encode() + LINE + b"---\n"),
        (b"---\nx: 1\n---\n\xff\xfe", b"---\nx: 1\n" + LINE + b"---\n\xff\xfe"),
        (b"---\nnew_version: >\n  a/b\nx: 1\n---\n", None),
        (b"---\nnew_version: &a a/b\nx: *a\n---\n", None),
        (b"---\nnew_version: a/b\nnew_version: c/d\n---\n", None),
        (b"---\n'new_version': a/b\n---\n", None),
        (b"---\n{x: 1}\n---\n", None),
        (b"---\n- x\n---\n", None),
        (b"---\nx: [\n---\n", None),
        (b"---\nx: " + b"[" * 5000 + b"\n---\n", None),
    ],
)
def test_one_line_of_a_card_of_somebody_else_is_written_and_nothing_else(before, after):
    found = with_new_version(before.decode(errors="surrogateescape"), "me/new")
    assert (found and found.encode(errors="surrogateescape")) == after


def test_a_card_of_somebody_else_arrives_byte_for_byte_but_for_that_line(said, new_repo, admin, result):
    old = new_repo({"README.md": ODD.replace(b"license: mit\n", b"").replace(b"model-index: 3\n", b"")})
    said(supersedes=old)
    [proposal] = pull_requests(admin, old)
    changed = Path(admin.hf_hub_download(old, "README.md", revision=proposal.ref)).read_bytes().splitlines()
    kept = Path(admin.hf_hub_download(old, "README.md")).read_bytes().splitlines()
    assert [line for line in changed if line != f"new_version: {result.repo_id}".encode()] == kept


def test_a_card_that_takes_no_line_is_a_warning_with_the_line(said, new_repo, admin, result):
    old = new_repo({"README.md": b"---\n{license: mit}\n---\n"})
    [warning] = said(supersedes=old)[1]
    assert warning == (
        f"It is published, but: The metadata of {old} takes no further line. "
        f"Add `new_version: {result.repo_id}` to it by hand."
    )
    assert pull_requests(admin, old) == []


def test_a_hint_whose_answer_was_lost_is_a_warning_and_not_given_again(said, new_repo, admin, hub):
    old = new_repo({"README.md": OLD_CARD})
    hub.set_faults([{"match": "POST .*/commit/main", "do": "lose"}])
    assert len(said(supersedes=old)[1]) == 1
    assert said(supersedes=old) == ([f"{old} was asked before to name it as its new version"], [])
    assert len(pull_requests(admin, old)) == 1


def test_a_proposal_is_not_announced_unless_it_was_merged(result, session, reporter, hub, user):
    hub.clear_log()
    proposed = result.model_copy(update={"pull_request_url": "http://hub/pr/1"})
    asked = {"collection": "Merged", "supersedes": "a/b"}
    announce(TargetSpec(create_pr=True, **asked), proposed, session=session, reporter=reporter)
    assert hub.log == []
    announce(TargetSpec(staged=True, collection="Merged"), proposed, session=session, reporter=reporter)
    assert [c.title for c in session.api.list_collections(owner=user[0])] == ["Merged"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"supersedes": "gpt2"}, "names no namespace"),
        ({"supersedes": "a/b", "repo_id": "a/b"}, "is the target itself"),
        ({"supersedes": "a/b", "private": True}, "private"),
        ({"supersedes": "a b"}, "is no repo id"),
        ({"collection": ""}, "collection"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(values, said):
    with pytest.raises(RecipeError, match=said):
        parse(TargetSpec, values)
