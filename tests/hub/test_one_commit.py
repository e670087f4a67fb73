"""One publish is one commit, whatever the network does; against a Hub over HTTP."""

from __future__ import annotations

import itertools
import json
import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import made
import pytest
from on_hub import BASE_ID, Ticks, commit_files, finish, make_folder, safetensors

from hubprune.cards.manifest import files_digest
from hubprune.core.errors import (
    ConflictError,
    EditedError,
    HubError,
    HubpruneError,
    PermissionDeniedError,
    RecipeError,
    RemoteMismatchError,
)
from hubprune.core.files import list_files
from hubprune.core.recipe import BaseModelSpec, TargetSpec
from hubprune.hub import commit as module
from hubprune.hub.commit import RUN_LINE, publish
from hubprune.hub.preflight import preflight
from hubprune.hub.remote import check_remote, remote_files
from hubprune.hub.repos import resolve_base

pytestmark = pytest.mark.usefixtures("base_repo")
numbers = itertools.count(1)
COMMIT = "POST /api/models/.*/commit/"


@pytest.fixture
def look(session, recipe):
    """Run the preflight for a target and return what it saw."""
    base = resolve_base(BaseModelSpec(repo_id=BASE_ID), session=session)

    def run(repo_id, overwrite="nothing", **options):
        changed = recipe.model_copy(update={"target": TargetSpec(repo_id=repo_id, **options)})
        return preflight(changed, base=base, session=session, overwrite=overwrite)

    return run


@pytest.fixture
def send(session, reporter, look):
    """Preflight and publish in one go."""

    def run(folder, repo_id, *, target=None, **options):
        settings = {k: options.pop(k) for k in ("revision", "create_pr", "private") if k in options}
        target = target or look(repo_id, overwrite=options.get("overwrite", "nothing"), **settings)
        values = {"message": "Drop 3", "session": session, "reporter": reporter, **options}
        return publish(folder, target=target, **values)

    return run


@pytest.fixture
def repo_id():
    return f"acme/result-{next(numbers)}"


def history(admin, repo_id, revision="main"):
    return [c.title for c in admin.list_repo_commits(repo_id, revision=revision)]


def test_all_files_arrive_in_one_commit_and_are_compared(admin, send, repo_id, checkpoint_folder):
    done = send(checkpoint_folder, repo_id, tag="hubprune-12345678")
    assert history(admin, repo_id) == ["Drop 3", "initial commit"]
    assert done.created
    assert done.commit == admin.model_info(repo_id).sha
    assert done.parent == admin.list_repo_commits(repo_id)[1].commit_id
    local = {f.path: (f.size, f.sha256) for f in list_files(checkpoint_folder)}
    assert {f.path: (f.size, f.sha256) for f in done.files} == local
    assert admin.model_info(repo_id, revision="hubprune-12345678").sha == done.commit
    assert done.url.endswith(f"{repo_id}/commit/{done.commit}")


def test_the_commit_tells_the_digest_of_its_files(admin, send, repo_id, checkpoint_folder):
    send(checkpoint_folder, repo_id)
    digest = files_digest(list_files(checkpoint_folder))
    assert re.fullmatch(f"{RUN_LINE}{digest} [0-9a-f]{{8}}", admin.list_repo_commits(repo_id)[0].message.strip())


def test_a_repo_that_became_public_meanwhile_gets_nothing_private(admin, send, look, repo_id, checkpoint_folder):
    admin.create_repo(repo_id, private=True)
    target = look(repo_id, private=True)
    admin.update_repo_settings(repo_id, private=False)
    with pytest.raises(RecipeError, match=f"{repo_id} is public, and the result is to be private"):
        send(checkpoint_folder, repo_id, target=target)
    assert history(admin, repo_id) == ["initial commit"]


def test_a_public_repo_that_somebody_created_meanwhile_gets_nothing_private(
    admin, send, look, repo_id, checkpoint_folder
):
    target = look(repo_id, private=True)
    admin.create_repo(repo_id)
    with pytest.raises(RecipeError, match=f"{repo_id} is public"):
        send(checkpoint_folder, repo_id, target=target)
    assert history(admin, repo_id) == ["initial commit"]


def test_a_private_target_is_created_private(admin, send, repo_id, checkpoint_folder):
    send(checkpoint_folder, repo_id, private=True)
    assert admin.model_info(repo_id).private


def test_uploads_report_every_byte_once(send, repo_id, checkpoint_folder):
    ticks = Ticks()
    send(checkpoint_folder, repo_id, reporter=ticks)
    assert ticks.done == ticks.total == sum(f.size for f in list_files(checkpoint_folder))
    assert ticks.calls > 1


def test_publishing_the_same_again_makes_no_commit(hub, admin, send, repo_id, checkpoint_folder):
    first = send(checkpoint_folder, repo_id)
    hub.clear_log()
    again = send(checkpoint_folder, repo_id, tag="v1")
    assert not again.created
    assert again.commit == first.commit
    assert again.files == first.files
    assert not [r for r in hub.log if "/commit/" in r.path or "/preupload/" in r.path]
    assert admin.model_info(repo_id, revision="v1").sha == first.commit


def times(seconds):
    return f"# Card\n\n| Stage | Time |\n| --- | ---: |\n| score | {seconds} s |\n"


def test_a_run_that_only_took_other_seconds_makes_no_commit(send, repo_id, tmp_path):
    send(make_folder(tmp_path / "a", card=times(3)), repo_id)
    slower = made.benchmarks(seconds=999.0)
    again = send(make_folder(tmp_path / "b", card=times(4), benchmarks=slower, seconds={"score": 4.0}), repo_id)
    assert not again.created
    other = made.benchmarks(tasks=made.benchmarks().tasks[:1])
    assert send(make_folder(tmp_path / "c", card=times(4), benchmarks=other), repo_id).created


def test_a_card_that_says_something_else_is_committed_though_the_results_are_the_same(admin, send, repo_id, tmp_path):
    send(make_folder(tmp_path / "a", card=times(3)), repo_id)
    folder = make_folder(tmp_path / "b", card=f"revision = x\n{times(4)}")
    assert send(folder, repo_id).created
    published = admin.hf_hub_download(repo_id, "README.md", local_dir=tmp_path / "c")
    assert Path(published).read_bytes() == (folder / "README.md").read_bytes()


def test_files_that_were_hashed_for_the_manifest_are_not_hashed_again(monkeypatch, send, repo_id, tmp_path):
    folder = make_folder(tmp_path / "a")
    files = finish(folder, card="# Card\n", report=made.report())
    monkeypatch.setattr(module, "list_files", lambda folder: pytest.fail("the folder was hashed"))
    done = send(folder, repo_id, files=files)
    assert [f.path for f in done.files] == [f.path for f in files]


def test_only_what_changed_is_uploaded(hub, send, repo_id, checkpoint_folder):
    send(checkpoint_folder, repo_id)
    finish(checkpoint_folder, card="# New\n", report=made.report(plan=made.plan(protected=())))
    ticks = Ticks()
    hub.clear_log()
    assert send(checkpoint_folder, repo_id, reporter=ticks).created
    assert ticks.total == sum(f.size for f in list_files(checkpoint_folder) if f.path in ("README.md", "hubprune.json"))
    assert not [r for r in hub.log if "xet-write-token" in r.path or "lfs/objects" in r.path]


def test_files_that_the_last_publish_owned_go_and_others_stay(admin, send, repo_id, checkpoint_folder):
    send(checkpoint_folder, repo_id)
    commit_files(admin, repo_id, {"notes.txt": b"somebody's"})
    (checkpoint_folder / "modeling_pruned_llama.py").unlink()
    finish(checkpoint_folder, card="# New\n", report=made.report())
    done = send(checkpoint_folder, repo_id)
    left = {f.path for f in admin.list_repo_tree(repo_id, recursive=True)}
    assert {"notes.txt", ".gitattributes"} <= left
    assert "modeling_pruned_llama.py" not in left
    assert history(admin, repo_id)[0] == "Drop 3"
    assert done.created


def test_a_manifest_that_was_tampered_with_deletes_nothing_else(admin, send, repo_id, checkpoint_folder):
    send(checkpoint_folder, repo_id)
    manifest = json.loads((checkpoint_folder / "hubprune.json").read_text())
    manifest["files"] |= {"../../etc": {"sha256": "0"}, "": {"sha256": "0"}, "tasks": {"sha256": "0"}, "x": 3}
    manifest["content_sha256"] = ["no"]
    commit_files(admin, repo_id, {"hubprune.json": json.dumps(manifest).encode()})
    assert send(checkpoint_folder, repo_id, overwrite="everything").created
    assert "tasks/own.yaml" in {f.path for f in admin.list_repo_tree(repo_id, recursive=True)}
    commit_files(admin, repo_id, {"hubprune.json": b"[" * 100_000})
    with pytest.raises(EditedError, match=r"hubprune\.json of .* was changed or removed since the last publish"):
        send(checkpoint_folder, repo_id)


def test_a_card_that_was_edited_by_hand_stops_the_publish(admin, send, look, repo_id, checkpoint_folder):
    send(checkpoint_folder, repo_id)
    finish(checkpoint_folder, card="# Newer\n", report=made.report())
    target = look(repo_id)
    edited = commit_files(admin, repo_id, {"README.md": b"---\nlicense: llama3.2\n---\n# By hand\n"})
    seen = target.model_copy(update={"parent": edited})
    with pytest.raises(ConflictError, match=r"edited by hand since the last publish.*--overwrite-card"):
        send(checkpoint_folder, repo_id, target=seen)
    assert admin.model_info(repo_id).sha == edited
    assert send(checkpoint_folder, repo_id, target=seen, overwrite="card").created


def test_somebody_elses_commit_stops_the_publish_before_the_upload(hub, admin, send, look, repo_id, checkpoint_folder):
    admin.create_repo(repo_id)
    target = look(repo_id)
    theirs = commit_files(admin, repo_id, {"a.txt": b"a"})
    hub.clear_log()
    with pytest.raises(ConflictError) as caught:
        send(checkpoint_folder, repo_id, target=target)
    assert target.parent in str(caught.value)
    assert theirs in str(caught.value)
    assert not [r for r in hub.log if r.method == "POST"]
    assert admin.model_info(repo_id).sha == theirs


def test_a_commit_during_the_upload_is_a_conflict_that_names_both(
    monkeypatch, admin, send, look, repo_id, checkpoint_folder
):
    admin.create_repo(repo_id)
    target, theirs, post = look(repo_id), [], module._post

    def late(*args, **options):
        theirs.append(commit_files(admin, repo_id, {"a.txt": b"a"}))
        return post(*args, **options)

    monkeypatch.setattr(module, "_post", late)
    with pytest.raises(ConflictError) as caught:
        send(checkpoint_folder, repo_id, target=target)
    assert len(theirs) == 1
    assert target.parent in str(caught.value)
    assert theirs[0] in str(caught.value)
    assert history(admin, repo_id) == ["files", "initial commit"]


def test_who_was_slower_with_the_same_files_is_up_to_date(monkeypatch, admin, send, look, repo_id, checkpoint_folder):
    admin.create_repo(repo_id)
    target, post = look(repo_id), module._post

    def second(*args, **options):
        monkeypatch.setattr(module, "_post", post)
        faster.append(send(checkpoint_folder, repo_id, target=target))
        return post(*args, **options)

    faster = []
    monkeypatch.setattr(module, "_post", second)
    slower = send(checkpoint_folder, repo_id, target=target)
    assert (faster[0].created, slower.created) == (True, False)
    assert slower.commit == faster[0].commit
    assert history(admin, repo_id) == ["Drop 3", "initial commit"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_lost_answer_to_the_commit_is_found_and_not_sent_twice(hub, admin, send, repo_id, checkpoint_folder, exists):
    if exists:
        admin.create_repo(repo_id)
    hub.set_faults([{"match": COMMIT, "do": "lose"}])
    hub.clear_log()
    done = send(checkpoint_folder, repo_id)
    assert [r.fault for r in hub.log if f"{repo_id}/commit/" in r.path] == ["lose"]
    assert done.created
    assert history(admin, repo_id) == ["Drop 3", "initial commit"]


@pytest.mark.parametrize("fault", [{"do": "status", "status": 503}, {"do": "reset"}])
def test_a_commit_that_did_not_arrive_is_sent_again(hub, admin, send, repo_id, checkpoint_folder, fault):
    hub.set_faults([{"match": COMMIT, "times": 2, **fault}])
    assert send(checkpoint_folder, repo_id).created
    assert history(admin, repo_id) == ["Drop 3", "initial commit"]


@pytest.mark.parametrize("status", [400, 403, 503])
def test_a_publish_that_fails_leaves_no_half_repo(hub, admin, send, repo_id, checkpoint_folder, status):
    hub.set_faults([{"match": COMMIT, "do": "status", "status": status, "times": 99}])
    with pytest.raises(PermissionDeniedError if status == 403 else HubError):
        send(checkpoint_folder, repo_id)
    assert not admin.repo_exists(repo_id)


def test_a_publish_that_fails_leaves_a_repo_that_was_there(hub, admin, send, repo_id, checkpoint_folder):
    admin.create_repo(repo_id)
    hub.set_faults([{"match": COMMIT, "do": "status", "status": 403, "times": 99}])
    with pytest.raises(PermissionDeniedError):
        send(checkpoint_folder, repo_id)
    assert history(admin, repo_id) == ["initial commit"]


@pytest.mark.parametrize("landed", [False, True])
def test_ctrl_c_removes_the_new_repo_unless_the_commit_landed(
    monkeypatch, admin, send, repo_id, checkpoint_folder, landed
):
    post = module._post

    def interrupted(*args, **options):
        if landed:
            post(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_post", interrupted)
    with pytest.raises(KeyboardInterrupt):
        send(checkpoint_folder, repo_id)
    assert admin.repo_exists(repo_id) == landed


@pytest.mark.parametrize("minutes_old", [0, 10])
def test_ctrl_c_in_the_creation_removes_a_repo_made_in_that_moment_only(
    monkeypatch, admin, look, send, repo_id, checkpoint_folder, minutes_old
):
    from huggingface_hub import HfApi

    from hubprune.hub.session import HubSession

    ask, model_info = HubSession.post, HfApi.model_info

    def interrupted(self, path, **options):
        ask(self, path, **options)
        if path == "/api/repos/create":
            raise KeyboardInterrupt

    def aged(self, *args, **options):
        info = model_info(self, *args, **options)
        info.created_at -= timedelta(minutes=minutes_old)
        return info

    target = look(repo_id)
    monkeypatch.setattr(HubSession, "post", interrupted)
    monkeypatch.setattr(HfApi, "model_info", aged)
    with pytest.raises(KeyboardInterrupt):
        send(checkpoint_folder, repo_id, target=target)
    assert admin.repo_exists(repo_id) == bool(minutes_old)


def test_a_publish_that_was_killed_after_its_commit_is_completed(
    monkeypatch, admin, send, look, repo_id, checkpoint_folder
):
    admin.create_repo(repo_id)
    target, post = look(repo_id), module._post

    def killed(*args, **options):
        post(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_post", killed)
    with pytest.raises(KeyboardInterrupt):
        send(checkpoint_folder, repo_id, target=target)
    monkeypatch.undo()
    done = send(checkpoint_folder, repo_id, target=target, tag="v1")
    assert not done.created
    assert done.tag == "v1"
    assert history(admin, repo_id) == ["Drop 3", "initial commit"]


def test_a_lost_answer_to_the_creation_is_no_obstacle(hub, admin, send, repo_id, checkpoint_folder):
    hub.set_faults([{"match": "POST /api/repos/create", "do": "lose"}])
    assert send(checkpoint_folder, repo_id).created
    assert history(admin, repo_id) == ["Drop 3", "initial commit"]


def test_a_repo_that_somebody_filled_meanwhile_is_a_conflict(admin, send, look, repo_id, checkpoint_folder):
    target = look(repo_id)
    admin.create_repo(repo_id)
    theirs = commit_files(admin, repo_id, {"a.txt": b"a"})
    with pytest.raises(ConflictError, match=theirs):
        send(checkpoint_folder, repo_id, target=target)
    assert admin.model_info(repo_id).sha == theirs


def test_a_branch_is_created_and_main_stays(admin, send, repo_id, checkpoint_folder):
    done = send(checkpoint_folder, repo_id, revision="next")
    assert history(admin, repo_id) == ["initial commit"]
    assert history(admin, repo_id, "next") == ["Drop 3", "initial commit"]
    assert admin.model_info(repo_id, revision="next").sha == done.commit


def branches(admin, repo_id):
    return sorted(branch.name for branch in admin.list_repo_refs(repo_id).branches)


def test_a_publish_that_fails_leaves_no_new_branch(hub, admin, send, repo_id, checkpoint_folder):
    admin.create_repo(repo_id)
    hub.set_faults([{"match": COMMIT, "do": "status", "status": 403, "times": 99}])
    with pytest.raises(PermissionDeniedError):
        send(checkpoint_folder, repo_id, revision="next")
    assert branches(admin, repo_id) == ["main"]


def test_a_publish_that_fails_leaves_a_branch_that_was_there(hub, admin, send, look, repo_id, checkpoint_folder):
    admin.create_repo(repo_id)
    target = look(repo_id, revision="next")
    admin.create_branch(repo_id, branch="next")
    hub.set_faults([{"match": COMMIT, "do": "status", "status": 403, "times": 99}])
    with pytest.raises(PermissionDeniedError):
        send(checkpoint_folder, repo_id, target=target)
    assert branches(admin, repo_id) == ["main", "next"]


def test_ctrl_c_leaves_a_new_branch_that_the_commit_landed_on(monkeypatch, admin, send, repo_id, checkpoint_folder):
    admin.create_repo(repo_id)
    post = module._post

    def interrupted(*args, **options):
        post(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_post", interrupted)
    with pytest.raises(KeyboardInterrupt):
        send(checkpoint_folder, repo_id, revision="next")
    assert history(admin, repo_id, "next") == ["Drop 3", "initial commit"]


@pytest.mark.parametrize("faults", [[], [{"match": COMMIT, "do": "lose"}]])
def test_a_pull_request_is_opened_once_and_main_stays(hub, admin, send, repo_id, checkpoint_folder, faults):
    admin.create_repo(repo_id)
    hub.set_faults(faults)
    done = send(checkpoint_folder, repo_id, create_pr=True, tag="v1")
    assert done.pull_request_url.endswith(f"{repo_id}/discussions/1")
    assert done.tag is None
    assert history(admin, repo_id) == ["initial commit"]
    refs = admin.list_repo_refs(repo_id, include_pull_requests=True)
    assert [r.target_commit for r in refs.pull_requests] == [done.commit]
    assert not refs.tags


def test_the_same_again_is_no_second_pull_request(hub, admin, send, repo_id, tmp_path):
    admin.create_repo(repo_id)
    first = send(make_folder(tmp_path / "a", card=times(3)), repo_id, create_pr=True)
    hub.clear_log()
    again = send(make_folder(tmp_path / "b", card=times(4)), repo_id, create_pr=True)
    assert not again.created
    assert (again.commit, again.pull_request_url) == (first.commit, first.pull_request_url)
    assert not [r for r in hub.log if "/commit/" in r.path]
    other = send(make_folder(tmp_path / "c", plan=made.plan(protected=())), repo_id, create_pr=True)
    assert other.pull_request_url.endswith("/discussions/2")


def test_a_pull_request_that_was_closed_or_is_outdated_is_opened_again(
    monkeypatch, admin, send, repo_id, checkpoint_folder
):
    from huggingface_hub import HfApi

    admin.create_repo(repo_id)
    send(checkpoint_folder, repo_id, create_pr=True)
    closed = SimpleNamespace(status="closed")
    monkeypatch.setattr(HfApi, "get_discussion_details", lambda self, repo_id, num: closed)
    assert send(checkpoint_folder, repo_id, create_pr=True).pull_request_url.endswith("/discussions/2")
    monkeypatch.undo()
    commit_files(admin, repo_id, {"notes.txt": b"somebody's"})
    assert send(checkpoint_folder, repo_id, create_pr=True).pull_request_url.endswith("/discussions/3")


def test_a_tag_that_exists_stays_where_it_is(send, admin, repo_id, checkpoint_folder):
    first = send(checkpoint_folder, repo_id, tag="v1")
    finish(checkpoint_folder, card="# New\n", report=made.report(plan=made.plan(protected=())))
    second = send(checkpoint_folder, repo_id, tag="v1")
    assert second.created
    assert admin.model_info(repo_id, revision="v1").sha == first.commit


def test_an_error_after_the_commit_says_that_the_commit_is_there(hub, admin, send, repo_id, checkpoint_folder):
    hub.set_faults([{"match": "POST /api/models/.*/tag/", "do": "status", "status": 403}])
    with pytest.raises(PermissionDeniedError) as caught:
        send(checkpoint_folder, repo_id, tag="v1")
    commit = admin.list_repo_commits(repo_id)[0].commit_id
    assert f"The commit {commit[:8]} is on {repo_id}; the same command does what is left." in str(caught.value)
    assert not send(checkpoint_folder, repo_id, tag="v1").created
    assert admin.model_info(repo_id, revision="v1").sha == commit


def test_what_arrived_otherwise_is_seen(session, send, repo_id, checkpoint_folder):
    done = send(checkpoint_folder, repo_id)
    local = {f.path: f for f in list_files(checkpoint_folder)}

    def check(changed, /, **change):
        files = [f if f.path != changed else f.model_copy(update=change) for f in local.values()]
        check_remote(files, gone=(), repo_id=repo_id, commit=done.commit, session=session)

    check("none")
    with pytest.raises(RemoteMismatchError, match=r"model\.safetensors has other bytes"):
        check("model.safetensors", sha256="0" * 64)
    with pytest.raises(RemoteMismatchError, match=r"config\.json has other bytes"):
        check("config.json", git_oid="0" * 40)
    with pytest.raises(RemoteMismatchError, match=r"config\.json has 16 bytes instead of 17"):
        check("config.json", size=17)
    with pytest.raises(RemoteMismatchError, match=r"gone\.txt is missing"):
        check("config.json", path="gone.txt")
    with pytest.raises(RemoteMismatchError, match=r"config\.json is still there"):
        check_remote((), gone=("config.json",), repo_id=repo_id, commit=done.commit, session=session)


def test_a_hub_that_stored_something_else_fails_the_publish(monkeypatch, admin, send, repo_id, checkpoint_folder):
    post = module._post

    def careless(change, **options):
        path = change.folder / "config.json"
        honest = path.read_bytes()
        path.write_text('{"dropped": [2]}')
        try:
            return post(change, **options)
        finally:
            path.write_bytes(honest)

    monkeypatch.setattr(module, "_post", careless)
    with pytest.raises(RemoteMismatchError, match=r"config\.json has other bytes"):
        send(checkpoint_folder, repo_id)


def test_large_files_are_known_by_their_sha256_and_small_ones_by_their_blob(session, send, repo_id, checkpoint_folder):
    done = send(checkpoint_folder, repo_id)
    remote = remote_files(repo_id, commit=done.commit, session=session)
    local = {f.path: f for f in list_files(checkpoint_folder)}
    assert remote["model.safetensors"].sha256 == local["model.safetensors"].sha256
    assert remote["config.json"].sha256 is None
    assert remote["config.json"].git_oid == local["config.json"].git_oid


def test_without_xet_the_upload_is_counted_too(monkeypatch, send, repo_id, checkpoint_folder):
    from huggingface_hub import _commit_api

    monkeypatch.setattr(_commit_api, "is_xet_available", lambda: False)
    (checkpoint_folder / "model.safetensors").write_bytes(safetensors(300_000))
    ticks = Ticks()
    send(checkpoint_folder, repo_id, reporter=ticks)
    assert ticks.done == ticks.total
    assert ticks.calls > 3


def test_upload_trouble_is_waited_out(hub, send, repo_id, checkpoint_folder):
    hub.set_faults([{"match": "xet-write-token|/shards|/xorbs", "do": "status", "status": 503}])
    assert send(checkpoint_folder, repo_id).created


def test_no_error_shows_the_token(hub, user, send, repo_id, checkpoint_folder):
    for status in (400, 403, 409, 500):
        hub.set_faults([{"match": COMMIT, "do": "status", "status": status, "times": 99}])
        with pytest.raises(HubpruneError) as caught:
            send(checkpoint_folder, repo_id)
        assert user[1] not in str(caught.value)
