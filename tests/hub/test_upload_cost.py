"""What a publish sends of a base that the Hub has already, and what a dry run says of it beforehand."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import made
import pytest
from on_hub import commit_files, finish
from random_llama import LlamaShape, write_llama

from hubprune.cards.manifest import write_recipe
from hubprune.commands.summary import publish_summary, upload_lines
from hubprune.core.artifacts import DroppedSublayer, DropPlan, PlannedFile, PublishedCommit, RepoFile, UploadPlan
from hubprune.core.errors import ConflictError
from hubprune.core.files import list_files
from hubprune.core.recipe import BaseModelSpec
from hubprune.hub import upload_plan
from hubprune.hub.commit import publish
from hubprune.hub.remote import head_of, remote_files, stale
from hubprune.hub.repos import download_base, resolve_base
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target, is_private
from hubprune.hub.upload_plan import plan_upload, shards_to_show
from hubprune.pruning.checkpoint import write_checkpoint

SHAPE = LlamaShape(160, 448, 10, 4, 4, 1000, "BF16")
BASE_ID = "somebody/sharded"
SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
COMMIT = "/commit/"


@pytest.fixture(scope="module")
def owner(hub):
    return HubSession.open(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture(scope="module")
def base(hub, admin, owner, quiet, tmp_path_factory):
    """A base of 6.7 MB in three shards, pushed by another machine than those of the tests."""
    folder = tmp_path_factory.mktemp("base") / "model"
    write_llama(folder, SHAPE, shards=3)
    admin.create_repo(BASE_ID)
    commit_files(admin, BASE_ID, {path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    found = resolve_base(BaseModelSpec(repo_id=BASE_ID), session=owner)
    return download_base(found, session=owner, reporter=quiet)


@pytest.fixture(scope="module")
def quiet():
    from hubprune.core.console import Reporter

    return Reporter(quiet=True)


@pytest.fixture
def cold(base, monkeypatch, tmp_path):
    """A machine that has never uploaded anything; returns its Xet cache."""
    from huggingface_hub.utils._xet import abort_xet_session

    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    abort_xet_session()
    yield tmp_path / "xet"
    abort_xet_session()


@pytest.fixture
def pruned(base, tmp_path):
    """Write a repo whose checkpoint lacks some attentions.

    Tests that look at what is stored drop another set from each shard: the Hub has shards of earlier tests.
    """

    def make(*layers, name="result"):
        folder = tmp_path / name
        folder.mkdir()
        dropped = tuple(DroppedSublayer(kind="attn", layer=layer) for layer in layers)
        plan = DropPlan(selected_by="hand", num_hidden_layers=10, dropped=dropped)
        write_checkpoint(base, plan, folder, advance=lambda _: None)
        write_recipe(folder, recipe=made.recipe(), report=made.report())
        finish(folder, card="# Card\n", report=made.report())
        return folder

    return make


@pytest.fixture
def look(owner):
    def run(repo_id, **changes):
        exists = is_private(repo_id, session=owner) is not None
        head = head_of(repo_id, branch="main", session=owner) if exists else None
        values = {"revision": "main", "exists": exists, "branch_exists": exists, "parent": head, "private": False}
        return Target(repo_id=repo_id, user="admin", **{**values, "create_pr": False, **changes})

    return run


@pytest.fixture
def send(owner, quiet, look):
    def run(folder, repo_id, *, base=None, **changes):
        target = look(repo_id, **changes)
        return publish(folder, target=target, message="Drop", session=owner, reporter=quiet, base=base)

    return run


@pytest.fixture
def plan(owner, quiet, look, base, tmp_path):
    def run(folder, repo_id, **options):
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        values = {"files": list_files(folder), "base": base, "session": owner, "reporter": quiet, "scratch": scratch}
        found = plan_upload(folder, target=look(repo_id), **{**values, **options})
        assert not list(scratch.iterdir())
        return found

    return run


def weights(folder):
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def stored(hub):
    now = hub.stored_bytes
    return now.xet + now.lfs


def packed(found):
    """What a plan expects to be stored for the weights, the primer included."""
    return found.primer_bytes + sum(f.new_bytes for f in found.files if f.path in SHARDS)


def writes(hub):
    return [r for r in hub.log if r.method not in ("GET", "HEAD")]


# ---- the primer --------------------------------------------------------------------------------------------------


def test_with_the_primer_a_cold_machine_sends_what_a_dry_run_expected(hub, base, cold, pruned, plan, send):
    folder = pruned(1, 4, 8)
    expected, before = plan(folder, "acme/primed"), stored(hub)
    assert not list(cold.rglob("*.mdb")), "the dry run taught the machine something"
    send(folder, "acme/primed", base=base)
    came = stored(hub) - before
    assert packed(expected) == pytest.approx(came, rel=0.03)
    assert came < 0.3 * weights(folder)
    assert expected.new_bytes < expected.upload_bytes


def test_without_the_primer_a_cold_machine_sends_most_of_it_again(hub, base, cold, pruned, plan, send):
    folder, before = pruned(0, 5, 9), stored(hub)
    send(folder, "acme/unprimed")
    assert stored(hub) - before > 0.5 * weights(folder)


def test_a_machine_that_pushed_the_base_needs_no_primer(hub, admin, base, cold, pruned, plan, send):
    admin.create_repo("somebody/copy")
    commit_files(admin, "somebody/copy", {name: Path(base.folder, name).read_bytes() for name in SHARDS})
    folder = pruned(2, 6, 7)
    expected, before = plan(folder, "acme/warm", primer=False), stored(hub)
    assert expected.primer_bytes == 0
    send(folder, "acme/warm")
    assert packed(expected) == pytest.approx(stored(hub) - before, rel=0.03)


def test_the_primer_asks_for_the_first_chunk_of_each_shard_and_no_commit_names_it(hub, base, cold, pruned, send, owner):
    folder = pruned(0, 2, 3, 4, 7, 9)
    hub.clear_log()
    done = send(folder, "acme/asked", base=base)
    asked = [r for r in hub.log if "/_xet/v1/chunks/" in r.path]
    assert [r.status for r in asked[:3]].count(200) >= 1
    first = next(n for n, r in enumerate(hub.log) if "/_xet/v1/shards" in r.path)
    assert sum("/_xet/v1/shards" in r.path for r in hub.log[first:]) == 2, "the primer's, and the upload's"
    assert sum(COMMIT in r.path for r in hub.log) == 1
    there = remote_files("acme/asked", commit=done.commit, session=owner)
    assert set(there) == {f.path for f in list_files(folder)} | {".gitattributes"}
    assert all(there[f.path].size == f.size for f in list_files(folder))


@pytest.mark.parametrize("match", ["/preupload/", "/xet-write-token/"])
def test_a_primer_that_fails_is_no_obstacle(hub, base, cold, pruned, send, caplog, match):
    folder = pruned(3, 6, 7)
    hub.set_faults([{"match": match, "do": "status", "status": 403}])
    caplog.set_level("DEBUG", logger="hubprune")
    assert send(folder, f"acme/unasked-{match[1]}", base=base).created
    assert "the Hub was not asked for the base's chunks" in caplog.text
    assert hub.token not in caplog.text
    hub.set_faults([])


def test_a_pull_request_can_be_primed(hub, base, cold, admin, pruned, send):
    admin.create_repo("acme/proposed")
    folder, before = pruned(0, 1, 4, 5, 8, 9), stored(hub)
    done = send(folder, "acme/proposed", base=base, create_pr=True)
    assert done.pull_request_url
    assert stored(hub) - before < 0.3 * weights(folder)


def test_a_machine_without_the_base_reads_only_the_beginnings_of_its_shards(
    hub, monkeypatch, base, cold, pruned, send, tmp_path
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    folder, before = pruned(0, 1, 2, 3, 4, 5, 6, 7, 8, 9), hub.stored_bytes.xet
    hub.clear_log()
    send(folder, "acme/elsewhere", base=base.model_copy(update={"folder": None}))
    assert hub.stored_bytes.xet - before < 0.3 * weights(folder)
    read = sum(r.bytes_out for r in hub.log if r.method == "GET")
    assert 3 * upload_plan.PRIMER_BYTES < read < 3 * upload_plan.PRIMER_BYTES + 200_000


def test_only_shards_that_are_uploaded_in_a_pruned_form_are_shown(base, pruned):
    upload = list_files(pruned(0))
    assert [f.path for f in shards_to_show(base, upload=upload)] == [SHARDS[0]]
    whole = [f for f in base.files if f.path in SHARDS]
    assert shards_to_show(base, upload=whole) == ()
    assert shards_to_show(base, upload=[f for f in upload if f.path not in SHARDS]) == ()
    small = [RepoFile(path=SHARDS[0], size=upload_plan.SMALLEST_SHARD_BYTES - 1, sha256="0" * 64)]
    assert shards_to_show(base, upload=small) == ()
    assert shards_to_show(base.model_copy(update={"commit": None}), upload=upload) == ()
    assert shards_to_show(None, upload=upload) == ()


def test_without_xet_nothing_is_shown(hub, monkeypatch, base, cold, pruned, send, plan):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    folder, before = pruned(3, 5), stored(hub)
    expected = plan(folder, "acme/plain")
    send(folder, "acme/plain", base=base)
    changed = (folder / SHARDS[1]).stat().st_size
    assert stored(hub) - before == packed(expected) == changed


# ---- the dry run -------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_become_of_every_file_and_writes_nothing(hub, admin, base, cold, pruned, plan, send):
    folder = pruned(1)
    (folder / "old.txt").write_text("of the first publish\n")
    finish(folder, card="# Card\n", report=made.report())
    send(folder, "acme/twice")
    commit_files(admin, "acme/twice", {"notes.txt": b"somebody's"})
    (folder / "old.txt").unlink()
    (folder / "new.txt").write_text("of the second\n")
    finish(folder, card="# Other\n", report=made.report())
    hub.clear_log()
    found = plan(folder, "acme/twice")
    assert hub.log
    assert not writes(hub)
    changes = {f.path: f.change for f in found.files}
    assert (changes["old.txt"], changes["new.txt"], changes["README.md"]) == ("deleted", "new", "changed")
    assert changes["hubprune.json"] == "changed"
    assert {changes[name] for name in (*SHARDS, "config.json", "recipe.yaml")} == {"unchanged"}
    assert "notes.txt" not in changes
    sent = [folder / name for name in ("new.txt", "README.md", "hubprune.json")]
    assert found.upload_bytes == found.new_bytes == sum(path.stat().st_size for path in sent)
    assert found.parent == admin.model_info("acme/twice").sha
    assert found.card == (folder / "README.md").read_text()


def test_a_dry_run_of_what_is_there_already_expects_nothing(hub, base, cold, pruned, plan, send):
    folder = pruned(9)
    send(folder, "acme/same")
    before = stored(hub)
    found = plan(folder, "acme/same")
    assert {f.change for f in found.files} == {"unchanged"}
    assert (found.upload_bytes, found.new_bytes) == (0, 0)
    assert not send(folder, "acme/same", base=base).created
    assert stored(hub) == before
    assert "nothing would change" in upload_lines(found)


def test_a_dry_run_of_a_repo_that_does_not_exist_leaves_none(hub, admin, base, cold, pruned, plan):
    hub.clear_log()
    found = plan(pruned(6), "acme/nowhere")
    assert not writes(hub)
    assert not admin.repo_exists("acme/nowhere")
    assert found.parent is None
    assert {f.change for f in found.files} == {"new"}
    untouched = [f for f in found.files if f.path in (SHARDS[0], SHARDS[2])]
    assert [f.new_bytes for f in untouched] == [0, 0], "the Hub has these shards of the base"


def test_a_dry_run_refuses_to_replace_a_card_that_was_edited_by_hand(admin, base, cold, pruned, plan, send):
    folder = pruned(8)
    send(folder, "acme/edited")
    commit_files(admin, "acme/edited", {"README.md": b"---\nlicense: mit\n---\n# By hand\n"})
    with pytest.raises(ConflictError, match="edited by hand"):
        plan(folder, "acme/edited")
    assert {f.path: f.change for f in plan(folder, "acme/edited", overwrite="card").files}["README.md"] == "changed"


def test_a_dry_run_without_room_for_the_comparison_says_so(monkeypatch, base, cold, pruned, plan):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    found = plan(pruned(2), "acme/full")
    assert found.new_bytes is None
    assert [f.path for f in found.files if f.new_bytes is None] == [SHARDS[0]]
    assert "could not be found out" in upload_lines(found)


def test_a_broken_client_costs_a_dry_run_only_the_estimate(monkeypatch, base, cold, pruned, plan):
    def broken(*args, **options):
        raise RuntimeError("no xorbs today")

    monkeypatch.setattr(upload_plan._Store, "measure", broken)
    assert plan(pruned(2), "acme/broken").new_bytes is None


def test_files_of_somebody_else_are_never_among_those_that_go(base):
    remote = SimpleNamespace(files={"theirs.txt": 1, "README.md": 1, "old.bin": 1}, manifest=SimpleNamespace(files={}))
    assert stale((), remote=remote) == ()
    remote.manifest.files = {"old.bin": "0", "gone.bin": "0", "README.md": "0"}
    assert stale((), remote=remote) == ("old.bin",)


PLAN = UploadPlan(
    repo_id="acme/pruned", revision="main", parent="1234567890123456", create_pr=True, upload_bytes=2_512_000,
    primer_bytes=100_000, new_bytes=212_000, card="---\nlicense: mit\n---\n# The card\n",
    files=(
        PlannedFile(path="README.md", size=12_000, change="changed", new_bytes=12_000),
        PlannedFile(path="config.json", size=800, change="unchanged", new_bytes=0),
        PlannedFile(path="model.safetensors", size=2_500_000, change="new", new_bytes=100_000),
        PlannedFile(path="old.py", size=10, change="deleted", new_bytes=0),
    ),
)  # fmt: skip


READ = """\
acme/pruned, branch main (as a pull request), compared with 123456789012:
           file                   size  new to the Hub
changed    README.md          12.00 kB        12.00 kB
unchanged  config.json           800 B             0 B
new        model.safetensors   2.50 MB       100.00 kB
deleted    old.py                 10 B             0 B

files: 1 new, 1 changed, 1 deleted; 2.51 MB, of which about 212.00 kB (8.44 %) would be sent, 100.00 kB of it to ask for
the base's chunks"""


def test_a_person_reads_what_would_be_sent():
    assert upload_lines(PLAN) == READ.replace("for\nthe", "for the")


def test_the_summary_of_a_dry_run_ends_with_the_files_and_the_two_commands_that_follow():
    text = publish_summary(made.report(upload=PLAN), folder="my folder", written="report.json")
    assert "README.md as it would be published" not in text
    assert text.endswith(
        f"{upload_lines(PLAN)}\n\ndry run: nothing was published\n\n"
        "to see the card:  hubprune card 'my folder' --preview\nto publish it:    hubprune push 'my folder' report.json"
    )
    asked = publish_summary(made.report(upload=PLAN), with_card=True)
    assert asked.startswith("README.md as it would be published:\n\n---\nlicense: mit")
    assert "Run it again with --out kept, which computes nothing again, then\n" in asked


def test_the_summary_of_a_publish_shows_no_plan_of_an_earlier_dry_run():
    done = PublishedCommit(repo_id="acme/pruned", commit="c" * 40, parent=None, url="u", created=True, files=())
    text = publish_summary(made.report(upload=PLAN, published=done))
    assert "as it would be published" not in text
    assert "would be sent" not in text
