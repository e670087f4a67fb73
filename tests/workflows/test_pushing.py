"""`hubprune push`: what a dry run left is published as it is, or not at all."""

from __future__ import annotations

import made
import made_siblings
import pytest
from on_hub import commit_files, make_folder

from hubprune.cards.manifest import write_sibling
from hubprune.core.artifacts import LoadedBack, UploadPlan
from hubprune.core.errors import (
    AuthenticationError,
    ConflictError,
    EditedError,
    HubpruneError,
    OverBudgetError,
    PermissionDeniedError,
    RecipeError,
    VerificationError,
)
from hubprune.core.files import list_files
from hubprune.core.recipe import EvaluationSpec, TargetSpec
from hubprune.hub.preflight import preflight
from hubprune.hub.session import HubSession
from hubprune.workflows import publish as pipeline
from hubprune.workflows import push as pushing
from hubprune.workflows.publish import Delivery, to_json

NOT_CHECKPOINT = ("README.md", "recipe.yaml", "hubprune.json", "tasks/own.yaml")


@pytest.fixture
def dry_run(tmp_path, user):
    """Folder and report as a dry run for a repo of the user leaves them; the report went through its file."""

    def leave(**recipe):
        folder = make_folder(tmp_path / "result")
        checkpoint = made.checkpoint(files=tuple(f for f in list_files(folder) if f.path not in NOT_CHECKPOINT))
        values = made.recipe(**recipe).model_dump(mode="json")
        report = made.report(checkpoint=checkpoint, repo_id=f"{user[0]}/pushed", recipe=values)
        (tmp_path / "report.json").write_text(to_json(report))
        return folder, pushing.read_report(tmp_path / "report.json")

    return leave


@pytest.fixture
def push(session, reporter, tmp_path, monkeypatch):
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "work"))
    loaded = LoadedBack(prompt="p", text="t", parameters=made.checkpoint().parameters)
    monkeypatch.setattr(pipeline, "_load_back", lambda *_: loaded)

    def run(folder, report, *, session=session, overwrite=False):
        delivery = Delivery(
            primer=False, report=tmp_path / "published.json", replaces="everything" if overwrite else "nothing"
        )
        return pushing.push_made(folder, report, delivery, session=session, reporter=reporter)

    return run


def test_the_folder_is_published_in_one_commit_under_the_name_on_its_card_and_the_base_is_not_asked_for(
    dry_run, push, session, user, hub, tmp_path
):
    folder, report = dry_run()
    hub.clear_log()
    done = push(folder, report)
    repo_id = f"{user[0]}/pushed"
    assert (done.published.repo_id, done.published.created) == (repo_id, True)
    assert session.api.model_info(repo_id).sha == done.published.commit
    assert {f.rfilename for f in session.api.model_info(repo_id).siblings} >= {f.path for f in list_files(folder)}
    assert not any("Llama-3.2-3B" in record.path for record in hub.log)
    assert pushing.read_report(tmp_path / "published.json").published == done.published
    assert push(folder, report).published.created is False


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json is not what the dry run left"),
        (lambda folder: (folder / "README.md").write_text("# x"), "README.md is not what the dry run left"),
        (lambda folder: (folder / "more.py").write_text("x"), "more.py is not what the dry run left"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors has gone from what the dry run"),
        (lambda folder: (folder / "tasks" / "own.yaml").unlink(), "tasks/own.yaml has gone from"),
    ],
)
def test_a_folder_that_was_changed_is_not_published(dry_run, push, session, user, spoil, said):
    folder, report = dry_run()
    spoil(folder)
    with pytest.raises(VerificationError) as caught:
        push(folder, report)
    assert said in str(caught.value)
    assert not session.api.repo_exists(f"{user[0]}/pushed")


def test_a_manifest_that_was_changed_too_is_found_out_by_the_report(dry_run, push, tmp_path):
    _, report = dry_run()
    other = make_folder(tmp_path / "other", card="# Another\n")
    (other / "config.json").write_text('{"dropped": [2]}')
    from on_hub import finish

    finish(other, card="# Another\n", report=report)
    with pytest.raises(VerificationError, match=r"config\.json is not what the dry run left"):
        push(other, report)


def test_the_budget_holds_here_too_and_the_report_is_written_all_the_same(dry_run, push, session, user, tmp_path):
    tasks = ("arc_easy", "lambada_openai")
    folder, report = dry_run(evaluation=EvaluationSpec(tasks=tasks, max_loss={"lambada_openai": 5}))
    with pytest.raises(OverBudgetError):
        push(folder, report)
    assert not session.api.repo_exists(f"{user[0]}/pushed")
    assert pushing.read_report(tmp_path / "published.json").published is None


def test_a_trusted_publisher_is_enough_where_the_repo_exists(dry_run, push, hub, user, session):
    folder, report = dry_run()
    repo_id = f"{user[0]}/pushed"
    session.api.create_repo(repo_id)
    token = hub.add_user("trusted-publisher", role="publisher", writable=[repo_id])
    done = push(folder, report, session=HubSession.open(endpoint=hub.endpoint, token=token))
    assert done.published.created


def upload_plan(user, parent):
    return UploadPlan(
        repo_id=f"{user[0]}/pushed", revision="main", parent=parent, create_pr=False, files=(), upload_bytes=0,
        primer_bytes=0, new_bytes=0, card="# Card",
    )  # fmt: skip


def test_a_push_that_was_cut_off_goes_on_behind_the_siblings_that_it_published(dry_run, push, session, user, tmp_path):
    folder, report = dry_run()
    own, name = tmp_path / "result-GGUF", f"{report.repo_id}-GGUF"
    own.mkdir()
    (own / "a-Q8_0.gguf").write_bytes(b"GGUF")
    (own / "README.md").write_text("---\nlicense: apache-2.0\n---\n# GGUF\n")
    [file] = [f for f in list_files(own) if f.path.endswith(".gguf")]
    export = made_siblings.export(file=file.path, size=file.size, sha256=file.sha256)
    sibling = made_siblings.report(
        "gguf", repo_id=name, pruned=report.repo_id, exports=(export,), carried=(),
        upload=upload_plan(user, None).model_copy(update={"repo_id": name}),
    )  # fmt: skip
    write_sibling(own, report=sibling, template_hash="0" * 64)
    report = report.model_copy(update={"siblings": (sibling,)})
    assert [each.published.created for each in push(folder, report).siblings] == [True]
    assert [each.published.created for each in push(folder, report).siblings] == [False]
    session.api.upload_file(path_or_fileobj=b"other", path_in_repo="a-Q8_0.gguf", repo_id=name)
    with pytest.raises(HubpruneError, match="GGUF"):
        push(folder, report)


def test_what_came_after_the_dry_run_is_not_replaced(dry_run, push, session, user):
    folder, report = dry_run()
    repo_id = f"{user[0]}/pushed"
    session.api.create_repo(repo_id)
    seen = session.api.model_info(repo_id).sha
    report = report.model_copy(update={"upload": upload_plan(user, seen)})
    head = commit_files(session.api, repo_id, {"notes.txt": b"a newer result"})
    with pytest.raises(ConflictError, match=f"main was at {seen} and is at {head}"):
        push(folder, report)
    assert session.api.model_info(repo_id).sha == head


def test_a_push_undoes_nothing_that_somebody_committed_unless_the_dry_run_saw_it_and_it_is_asked_to(
    dry_run, push, session, user
):
    folder, report = dry_run()
    repo_id = f"{user[0]}/pushed"
    session.api.create_repo(repo_id)
    report = report.model_copy(update={"upload": upload_plan(user, session.api.model_info(repo_id).sha)})
    push(folder, report)
    healed = commit_files(session.api, repo_id, {"model.safetensors": b"healed"})
    with pytest.raises(EditedError, match=rf"model\.safetensors of {repo_id} .* {healed[:8]} \"files\" by {user[0]}\."):
        push(folder, report)
    with pytest.raises(ConflictError, match=f"has changed since the dry run: .* is at {healed}"):
        push(folder, report, overwrite=True)
    later = report.model_copy(update={"upload": upload_plan(user, healed)})
    assert push(folder, later, overwrite=True).published.created


def test_what_an_earlier_push_sent_is_no_conflict(dry_run, push, session, user):
    folder, report = dry_run()
    session.api.create_repo(f"{user[0]}/pushed")
    report = report.model_copy(update={"upload": upload_plan(user, session.api.model_info(f"{user[0]}/pushed").sha)})
    assert push(folder, report).published.created
    assert not push(folder, report).published.created


@pytest.mark.parametrize("text", ["", "{}", "nothing", '{"schema_version": 9}'])
def test_what_is_no_report_is_refused_with_how_to_make_one(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(RecipeError, match=r"hubprune publish --dry-run --out FOLDER, which writes FOLDER-report"):
        pushing.read_report(tmp_path / "report.json")
    with pytest.raises(RecipeError, match="No such file"):
        pushing.read_report(tmp_path / "absent.json")


# ---- the dry run without the right to write ----------------------------------------------------------------------


def test_a_dry_run_may_lack_the_right_to_write_and_is_told_so(recipe, hub, base_repo):
    base = made.base(commit=base_repo)
    reader = HubSession.open(endpoint=hub.endpoint, token=hub.add_user("dry-reader", role="read"))
    asked = recipe.model_copy(update={"target": TargetSpec(repo_id="acme/Llama-dry")})
    with pytest.raises(PermissionDeniedError):
        preflight(asked, base=base, session=reader)
    told = []
    target = preflight(asked, base=base, session=reader, excuse=told.append)
    assert (target.repo_id, [type(error) for error in told]) == ("acme/Llama-dry", [PermissionDeniedError])


def test_a_dry_run_needs_no_token_where_the_target_is_named_in_full(recipe, hub, base_repo):
    base, nobody = made.base(commit=base_repo), HubSession.open(endpoint=hub.endpoint)
    told = []
    asked = recipe.model_copy(update={"target": TargetSpec(repo_id="acme/Llama-dry")})
    assert preflight(asked, base=base, session=nobody, excuse=told.append).repo_id == "acme/Llama-dry"
    assert [type(error) for error in told] == [AuthenticationError]
    with pytest.raises(AuthenticationError, match="Or pass --repo-id NAME/MODEL"):  # which tells whose it is
        preflight(recipe, base=base, session=nobody, excuse=told.append)
