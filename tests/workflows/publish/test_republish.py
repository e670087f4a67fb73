"""A publish of what is published already does nothing, one of another card sends the card, and all else is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import made
import pytest
from as_published import BASE_ID, TEXTS, ComputedError, again, produced_by, recipe_of
from on_hub import commit_files

from hubprune.cards.card import CARD_PART, changes, told
from hubprune.cards.manifest import content_digest
from hubprune.core.errors import ConflictError, EditedError, HubError, RemoteMismatchError, VerificationError
from hubprune.core.files import StageStore
from hubprune.core.recipe import (
    CalibrationMix,
    CalibrationSubset,
    DropSpec,
    EvaluationSpec,
    TargetSpec,
)
from hubprune.core.specs import WidthSpec
from hubprune.hub import commit
from hubprune.hub.preflight import preflight
from hubprune.workflows import publish as pipeline
from hubprune.workflows.card import AS_SHIPPED
from hubprune.workflows.publish import before as inputs_of
from hubprune.workflows.publish.before import fingerprint, last_publish, offer_results, scores_before
from hubprune.workflows.run import Run, scores_key

pytestmark = pytest.mark.usefixtures("stages")

OWN_TASK = """
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: a
doc_to_choice: c
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def read(admin, repo_id, path):
    return Path(admin.hf_hub_download(repo_id, path)).read_text(encoding="utf-8")


def commits(admin, repo_id):
    return admin.list_repo_commits(repo_id)


def test_what_is_published_already_is_up_to_date_and_nothing_is_written(published, run_of, user, admin, hub, tmp_path):
    _, first = published()
    seen = len(hub.log)
    report = again(run_of(recipe_of(user)), report=tmp_path / "report.json")
    assert (report.published.created, report.published.commit) == (False, first.commit)
    assert report.published.tag == first.tag
    assert report.published.files == first.files
    assert report.scores.mean == made.scores().mean
    assert (report.plan, report.generation) == (made.plan(), made.generation())
    assert json.loads((tmp_path / "report.json").read_text())["published"]["commit"] == first.commit
    assert f"up to date: {first.url}" in run_of.said
    assert len(commits(admin, first.repo_id)) == 2
    sent = [r for r in hub.log[seen:] if r.method != "GET" and r.method != "HEAD"]
    assert [r.path for r in sent] == ["/api/validate-yaml"]


def test_what_may_follow_a_publish_is_made_up_for_where_all_else_is_up_to_date(
    published, run_of, user, session, monkeypatch
):
    _, first = published()
    spec = TargetSpec(repo_id=first.repo_id, collection="Pruned")
    assert not again(run_of(recipe_of(user, target=spec))).published.created
    [collection] = session.api.list_collections(owner=user[0])
    assert [item.item_id for item in session.api.get_collection(collection.slug).items] == [first.repo_id]


def test_a_tag_that_a_killed_publish_left_out_is_made(published, run_of, user, admin):
    _, first = published(tag=False)
    assert admin.list_repo_refs(first.repo_id).tags == []
    report = again(run_of(recipe_of(user)))
    [tag] = admin.list_repo_refs(first.repo_id).tags
    assert (tag.name, tag.target_commit) == (report.published.tag, first.commit)


def staged_recipe(user):
    return recipe_of(user, target=TargetSpec(repo_id=f"{user[0]}/pruned", staged=True))


@pytest.mark.parametrize("loads", [True, False])
def test_a_staged_result_reaches_the_branch_once_it_was_loaded_back(
    run_of, user, inputs, admin, tmp_path, monkeypatch, loads
):
    admin.create_repo(f"{user[0]}/pruned")
    head = admin.model_info(f"{user[0]}/pruned").sha
    run = run_of(staged_recipe(user))
    product, target = produced_by(run, tmp_path / "first")
    seen = []

    def load(run, published, report):
        seen.append((published.commit, admin.model_info(target.repo_id).sha))
        if not loads:
            raise VerificationError("it does not load.")

    monkeypatch.setattr(pipeline, "_load_back", load)
    if not loads:
        with pytest.raises(
            VerificationError, match=r"proposed at .*/discussions/1 and was not merged, but: it does not"
        ):
            pipeline.deliver(run, product, target, pipeline.Delivery())
        assert admin.model_info(target.repo_id).sha == head
        assert admin.list_repo_refs(target.repo_id).tags == []
        return
    done = pipeline.deliver(run, product, target, pipeline.Delivery()).published
    [[proposed, at_the_time]] = seen
    assert (at_the_time, done.commit) == (head, admin.model_info(target.repo_id).sha)
    assert proposed != done.commit
    assert [tag.target_commit for tag in admin.list_repo_refs(target.repo_id).tags] == [done.commit]
    assert not again(run_of(staged_recipe(user))).published.created


def test_a_staged_publish_that_was_killed_before_the_merge_is_completed(
    run_of, user, inputs, admin, tmp_path, monkeypatch
):
    admin.create_repo(f"{user[0]}/pruned")
    run = run_of(staged_recipe(user))
    product, target = produced_by(run, tmp_path / "first")
    monkeypatch.setattr(pipeline, "_load_back", lambda run, published, report: None)

    def kill(*args, **options):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "merge", kill)
        with pytest.raises(SystemExit):
            pipeline.deliver(run, product, target, pipeline.Delivery())
    done = pipeline.deliver(run, product, target, pipeline.Delivery()).published
    assert done.pull_request_url.endswith("/discussions/1")
    assert done.commit == admin.model_info(target.repo_id).sha
    assert len(commits(admin, target.repo_id)) == 2


def test_a_staged_repo_that_is_new_has_no_readers_to_protect(run_of, user, inputs, admin, tmp_path, monkeypatch):
    run = run_of(staged_recipe(user))
    product, target = produced_by(run, tmp_path / "first")
    monkeypatch.setattr(pipeline, "_load_back", lambda run, published, report: None)
    done = pipeline.deliver(run, product, target, pipeline.Delivery()).published
    assert (done.pull_request_url, done.commit) == (None, admin.model_info(target.repo_id).sha)


def test_a_card_alone_is_merged_too(published, run_of, user, admin, tmp_path):
    _, first = published(staged_recipe(user))
    notes = tmp_path / "notes.md"
    notes.write_text("Mind the *gap*.\n")
    done = again(run_of(staged_recipe(user)), notes=notes).published
    assert done.commit == admin.model_info(first.repo_id).sha != first.commit
    assert "Mind the *gap*." in read(admin, first.repo_id, "README.md")


def test_a_dry_run_that_asks_for_changes_only_computes_nothing_and_makes_no_tag(
    published, run_of, user, admin, hub, tmp_path
):
    _, first = published()
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user)), dry_run=True)
    seen = len(hub.log)
    told = []
    options = {"dry_run": True, "only_if_changed": True, "out": tmp_path / "out", "told": told.append}
    report = again(
        run_of(recipe_of(user, target=recipe_of(user).target.model_copy(update={"collection": "C"}))), **options
    )
    assert (report.published.created, report.published.tag, told[-1]) == (False, first.tag, report)
    assert not (tmp_path / "out").exists()
    assert run_of.said[-1] == "dry run: nothing was written to the Hub, which is up to date"
    sent = [r for r in hub.log[seen:] if r.method not in ("GET", "HEAD")]
    assert [r.path for r in sent] == ["/api/validate-yaml"]
    changed = recipe_of(user, drop=DropSpec(attn_drop=2, protect=(0, 1)))
    with pytest.raises(ComputedError):
        again(run_of(changed), dry_run=True, only_if_changed=True)
    # Where a push was killed before it came to the tag, the next one has to get the files to complete that.
    admin.delete_tag(first.repo_id, tag=first.tag)
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user)), dry_run=True, only_if_changed=True)
    assert "tag is missing" in run_of.said[-1]
    assert admin.list_repo_refs(first.repo_id).tags == []


def proposing(user):
    return recipe_of(user, target=TargetSpec(repo_id=f"{user[0]}/pruned", create_pr=True))


def propose(run, folder, monkeypatch):
    product, target = produced_by(run, folder)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_load_back", lambda run, published, report: None)
        return pipeline.deliver(run, product, target, pipeline.Delivery()).published


def test_what_is_proposed_already_is_not_computed_again(run_of, user, session, inputs, admin, tmp_path, monkeypatch):
    session.api.create_repo(f"{user[0]}/pruned")
    first = propose(run_of(proposing(user)), tmp_path / "first", monkeypatch)
    found = again(run_of(proposing(user))).published
    assert (found.created, found.pull_request_url, found.commit) == (False, first.pull_request_url, first.commit)
    assert f"proposed before: {first.pull_request_url}" in run_of.said
    assert again(run_of(proposing(user)), dry_run=True, only_if_changed=True).published.commit == first.commit
    with pytest.raises(ComputedError):
        again(run_of(proposing(user)), dry_run=True)
    # To be merged, it would have to be loaded back first.
    with pytest.raises(ComputedError):
        again(run_of(staged_recipe(user)))
    admin.change_discussion_status(first.repo_id, 1, "closed")
    with pytest.raises(ComputedError):
        again(run_of(proposing(user)))


@pytest.mark.parametrize("who", ["somebody else", "an outdated one"])
def test_a_proposal_of_somebody_else_or_for_another_parent_counts_for_nothing(
    run_of, user, session, inputs, admin, tmp_path, monkeypatch, who
):
    from huggingface_hub import HfApi

    session.api.create_repo(f"{user[0]}/pruned")
    propose(run_of(proposing(user)), tmp_path / "first", monkeypatch)
    if who == "somebody else":
        details = HfApi.get_discussion_details
        monkeypatch.setattr(
            HfApi, "get_discussion_details", lambda *given, **more: replace(details(*given, **more), author="eve")
        )
    else:
        commit_files(session.api, f"{user[0]}/pruned", {"notes.txt": b"x"})
    with pytest.raises(ComputedError):
        again(run_of(proposing(user)))


@pytest.mark.parametrize("killed_in", ["tag_commit", "_load_back"])
def test_a_publish_that_was_killed_after_its_commit_is_completed(
    run_of, user, inputs, admin, tmp_path, monkeypatch, killed_in
):
    run = run_of(recipe_of(user))
    product, target = produced_by(run, tmp_path / "first")

    def kill(*args, **options):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(commit if killed_in == "tag_commit" else pipeline, killed_in, kill)
        with pytest.raises(SystemExit):
            pipeline.deliver(run, product, target, pipeline.Delivery())
    head, loaded = admin.model_info(target.repo_id).sha, []
    monkeypatch.setattr(pipeline, "_load_back", lambda run, published, report: loaded.append(published.commit))
    later = Run(run.recipe, run.session, run.reporter, StageStore(run.store.folder))
    assert again(later).published.commit == head
    assert loaded == [head]
    assert [tag.target_commit for tag in admin.list_repo_refs(target.repo_id).tags] == [head]
    assert len(commits(admin, target.repo_id)) == 2
    again(later)
    assert loaded == [head]


def test_notes_alone_send_card_and_manifest_alone(published, run_of, user, admin, tmp_path):
    _, first = published()
    before = {s.rfilename: s.blob_id for s in admin.model_info(first.repo_id, files_metadata=True).siblings}
    notes = tmp_path / "notes.md"
    notes.write_text("Mind the *gap*.\n")
    report = again(run_of(recipe_of(user)), notes=notes)
    assert report.published.created
    assert report.published.tag == first.tag
    after = {s.rfilename: s.blob_id for s in admin.model_info(first.repo_id, files_metadata=True).siblings}
    assert {path for path in after if after[path] != before.get(path)} == {"README.md", "hubprune.json"}
    assert after.keys() == before.keys()
    assert "changed since the last publish: card: new notes" in run_of.said
    text = read(admin, first.repo_id, "README.md")
    assert "Mind the *gap*." in text
    assert not again(run_of(recipe_of(user)), notes=notes).published.created
    # Without them the first card comes back, byte for byte.
    assert again(run_of(recipe_of(user))).published.created
    last = {s.rfilename: s.blob_id for s in admin.model_info(first.repo_id, files_metadata=True).siblings}
    assert last == before
    tags = admin.list_repo_refs(first.repo_id).tags
    assert [tag.target_commit for tag in tags] == [first.commit]


def test_a_card_that_was_edited_by_hand_is_kept_unless_it_may_be_replaced(published, run_of, user, admin, tmp_path):
    _, first = published()
    commit_files(admin, first.repo_id, {"README.md": b"# Mine\n"})
    with pytest.raises(ConflictError, match="edited by hand"):
        again(run_of(recipe_of(user)))
    assert again(run_of(recipe_of(user)), overwrite_card=True).published.created
    files = admin.model_info(first.repo_id, files_metadata=True).siblings
    listed = {f.path: f.git_oid for f in first.files}
    assert {s.rfilename: s.blob_id for s in files if s.rfilename == "README.md"} == {"README.md": listed["README.md"]}


ANOTHER_MIX = CalibrationMix(name="mine", subsets=(CalibrationSubset(dataset=TEXTS, weight=1),), num_samples=3)
CHANGED = {
    "more is dropped": ({"drop": DropSpec(attn_drop=4, protect=(0, 1))}, "pruning: attn_drop 3 -> 4"),
    "another metric": ({"metric": "relative-magnitude"}, "pruning: metric cosine -> relative-magnitude"),
    "another mix": ({"calibration": ANOTHER_MIX}, "calibration: num_samples 2 -> 3"),
    "other prompts": ({"evaluation": EvaluationSpec(tasks=(), prompts=("Two",))}, "free text: prompts changed"),
    "a licence": ({"license": "apache-2.0"}, "target: new licence apache-2.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_what_changed_is_said_before_it_is_run(published, run_of, user, name):
    published()
    change, told = CHANGED[name]
    if "license" in change:
        change = {"target": TargetSpec(repo_id=f"{user[0]}/pruned", **change)}
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user, **change)))
    assert run_of.said[-1] == f"changed since the last publish: {told}"


def test_a_base_and_data_that_moved_on_are_named_with_both_commits(published, run_of, user, admin):
    _, first = published()
    old = [admin.model_info(BASE_ID).sha, admin.dataset_info(TEXTS).sha]
    new = [
        commit_files(admin, BASE_ID, {"notes.txt": first.repo_id.encode()}),
        commit_files(admin, TEXTS, {"b.jsonl": first.repo_id.encode()}, repo_type="dataset"),
    ]
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user)))
    ends = [f"{a[:8]} -> {b[:8]}" for a, b in zip(old, new, strict=True)]
    assert run_of.said[-1] == (
        f"changed since the last publish: base: commit {ends[0]}; calibration: data set {TEXTS} {ends[1]}"
    )


def test_other_versions_and_templates_of_the_modeling_file_are_named(published, run_of, user, monkeypatch):
    published()
    monkeypatch.setattr(inputs_of, "library_versions", lambda: {"torch": "99"})
    monkeypatch.setattr(inputs_of.templates, "modeling_code", lambda architecture: "other")
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user)))
    said = run_of.said[-1]
    assert "-> 99" in said
    assert "no lm_eval any more" in said
    assert said.endswith("modeling file: template changed")


def parts_of(run, user):
    return fingerprint(run, repo_id=f"{user[0]}/pruned", tagged=True, choices=AS_SHIPPED)


def test_the_metric_of_neurons_is_told_apart_from_that_of_layers(run_of, user, inputs):
    # What this is asked of has no sizes: a plan of widths would be refused.
    recipes = [recipe_of(user, width=WidthSpec(neuron_drop="50%", metric=metric)) for metric in ("ppm", "l2")]
    runs = [run_of(recipe_of(user)) for _ in recipes]
    for run, recipe in zip(runs, recipes, strict=True):
        run.base  # noqa: B018
        object.__setattr__(run, "recipe", recipe)
    found = [parts_of(run, user)["pruning"] for run in runs]
    assert [(part["width metric"], part["metric"]) for part in found] == [("ppm", "cosine"), ("l2", "cosine")]


def test_of_two_calibration_files_of_one_name_both_count(run_of, user, inputs, tmp_path):
    for folder in ("en", "de"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.txt").write_text("A line.\n")
    files = [str(tmp_path / folder / "train.txt") for folder in ("en", "de")]
    mix = CalibrationMix(
        name="two", subsets=tuple(CalibrationSubset(dataset=file, weight=1) for file in files), num_samples=2
    )
    before = parts_of(run_of(recipe_of(user, calibration=mix)), user)["calibration"]
    (tmp_path / "en" / "train.txt").write_text("Another line.\n")
    assert parts_of(run_of(recipe_of(user, calibration=mix)), user)["calibration"] != before


def test_own_benchmarks_and_their_rows_are_part_of_it_and_their_folders_are_not(
    published, run_of, user, tmp_path, monkeypatch
):
    def with_tasks(folder, row='{"q": "1", "a": 0, "c": ["x", "y"]}\n'):
        folder.mkdir()
        (folder / "rows.jsonl").write_text(row)
        (folder / "own.yaml").write_text(OWN_TASK.format(rows="rows.jsonl"))
        return recipe_of(user, evaluation=EvaluationSpec(tasks=("own",), prompts=("One",), include_path=str(folder)))

    first, second = with_tasks(tmp_path / "one"), with_tasks(tmp_path / "two")
    monkeypatch.chdir(tmp_path / "one")
    published(first)
    monkeypatch.chdir(tmp_path / "two")
    assert not again(run_of(second)).published.created
    (tmp_path / "two" / "rows.jsonl").write_text('{"q": "2", "a": 0, "c": ["x", "y"]}\n')
    with pytest.raises(ComputedError):
        again(run_of(second))
    assert run_of.said[-1] == "changed since the last publish: benchmarks: data set rows.jsonl changed"


FOREIGN = {
    "healed weights": {"model.safetensors": b"healed"},
    "a config": {"config.json": b"{}"},
    "a modeling file": {"modeling_pruned_llama.py": b"code = 2\n"},
    "a task": {"tasks/own.yaml": b"task: other\n"},
    "the manifest": {"hubprune.json": b"{}"},
    "a file that is gone": {"config.json": None},
    "a manifest that is gone": {"hubprune.json": None},
}  # fmt: skip
UNATTENDED = ({}, {"only_if_changed": True, "dry_run": True}, {"force": True})


@pytest.mark.parametrize("name", FOREIGN)
def test_what_somebody_committed_to_a_file_of_ours_is_not_undone(published, run_of, user, admin, name):
    _, first = published()
    [(path, data)] = FOREIGN[name].items()
    if data is None:
        edit = admin.delete_file(path, first.repo_id, commit_message="Better so").oid
    else:
        edit = commit_files(admin, first.repo_id, {path: data})
    head = commit_files(admin, first.repo_id, {"notes.txt": b"nothing of ours"})
    title = "Better so" if data is None else "files"
    told = f'{path} of {first.repo_id} was changed or removed since the last publish: {edit[:8]} "{title}" by local.'
    targets = [TargetSpec(repo_id=first.repo_id, **more) for more in ({}, {"create_pr": True}, {"staged": True})]
    for options in UNATTENDED:
        for target in targets:
            with pytest.raises(EditedError) as caught:
                again(run_of(recipe_of(user, target=target)), **options)
            assert caught.value.message == told
            assert "--overwrite " in caught.value.hint
    with pytest.raises(EditedError):
        again(run_of(recipe_of(user)), overwrite_card=True)
    assert admin.model_info(first.repo_id).sha == head
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user)), overwrite=True)


def test_an_edit_that_was_taken_back_and_files_that_are_none_of_ours_stop_nothing(published, run_of, user, admin):
    _, first = published()
    config = Path(admin.hf_hub_download(first.repo_id, "config.json")).read_bytes()
    commit_files(admin, first.repo_id, {"config.json": b"{}"})
    commit_files(admin, first.repo_id, {"config.json": config, "model.gguf": b"GGUF"})
    assert not again(run_of(recipe_of(user))).published.created


def test_every_commit_is_named_and_a_long_history_is_not_read_commit_by_commit(published, run_of, user, admin, hub):
    _, first = published()
    healed = commit_files(admin, first.repo_id, {"model.safetensors": b"healed"})
    for number in range(20):
        commit_files(admin, first.repo_id, {"notes.txt": str(number).encode()})
    both = commit_files(admin, first.repo_id, {"config.json": b"{}", "README.md": b"# Mine\n"})
    hub.clear_log()
    with pytest.raises(EditedError) as caught:
        again(run_of(recipe_of(user)))
    assert caught.value.message == (
        f"README.md, config.json and model.safetensors of {first.repo_id} were changed or removed since the last "
        f'publish: {both[:8]} "files" by local; {healed[:8]} "files" by local.'
    )
    assert len([r for r in hub.log if "/tree/" in r.path]) < 15


def test_what_an_upload_of_ours_broke_is_repaired(published, run_of, user, admin, monkeypatch):
    """The commit that left it so is the publish's own: nobody else's work is in it."""
    from hubprune.hub import commit as module

    post = module._post

    def spoil(change, **options):
        (change.folder / "config.json").write_text("{spoiled}")
        return post(change, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_post", spoil)
        with pytest.raises(RemoteMismatchError, match=r"config\.json has"):
            published()
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user)))
    assert run_of.said[-1] == "changed since the last publish: not as published: config.json"


@pytest.mark.parametrize("added", [False, True])
def test_a_merged_pull_request_is_a_publish_and_what_was_added_to_it_is_not(
    run_of, user, inputs, session, admin, tmp_path, monkeypatch, added
):
    session.api.create_repo(f"{user[0]}/pruned")
    first = propose(run_of(proposing(user)), tmp_path / "first", monkeypatch)
    if added:
        commit_files(admin, first.repo_id, {"model.safetensors": b"healed"}, revision="refs/pr/1")
    admin.merge_pull_request(first.repo_id, 1)
    merged = admin.model_info(first.repo_id).sha
    commit_files(admin, first.repo_id, {"notes.txt": b"x"})
    if added:
        with pytest.raises(EditedError, match=rf"model\.safetensors of .* since the last publish: {merged[:8]} "):
            again(run_of(proposing(user)))
    else:
        assert not again(run_of(proposing(user)), only_if_changed=True).published.created


def test_files_of_somebody_else_that_a_publish_would_replace_stop_it(run_of, user, inputs, session, admin):
    repo_id = f"{user[0]}/pruned"
    session.api.create_repo(repo_id)
    edit = commit_files(session.api, repo_id, {"model.safetensors": b"mine", "generation_config.json": b"{}"})
    # The base's own generation_config.json is the one that is carried: the very same bytes are there.
    with pytest.raises(
        EditedError, match=rf"^model\.safetensors of {repo_id} at {edit[:8]} was not written by hubprune"
    ):
        again(run_of(recipe_of(user)))
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user)), overwrite=True)


@pytest.mark.parametrize("options", [{"force": True}, {"dry_run": True}, {"out": True}])
def test_who_asks_for_a_run_or_its_files_gets_it(published, run_of, user, tmp_path, options):
    published()
    if "out" in options:
        options = {"out": tmp_path / "new"}
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user)), **options)
    assert run_of.said[-1] == "nothing changed since the last publish"


def test_a_manifest_that_was_edited_or_is_of_another_version_is_no_reason_to_do_nothing(published, run_of, user, admin):
    _, first = published()
    values = json.loads(read(admin, first.repo_id, "hubprune.json"))
    values["plan"]["dropped"] = []
    commit_files(admin, first.repo_id, {"hubprune.json": json.dumps(values).encode()})
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user)), overwrite=True)
    assert "was changed after it was written" in run_of.said[-1]
    old = {**values, "schema_version": 1}
    old["content_sha256"] = content_digest(old)
    commit_files(admin, first.repo_id, {"hubprune.json": json.dumps(old).encode()})
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user)), overwrite=True)
    assert "schema version 1" in run_of.said[-1]


def test_another_branch_and_a_pull_request_are_compared_with_the_branch_that_they_go_to(published, run_of, user):
    _, first = published()
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user, target=TargetSpec(repo_id=first.repo_id, revision="next"))))
    assert not any("last publish" in line for line in run_of.said)
    with pytest.raises(ComputedError):
        again(run_of(recipe_of(user, target=TargetSpec(repo_id=first.repo_id, create_pr=True))))
    assert run_of.said[-1] == "changed since the last publish: target: tag named -> not named"


def test_a_card_that_cannot_be_sent_leaves_the_old_one_and_the_next_run_sends_it(
    published, run_of, user, admin, hub, tmp_path
):
    from hubprune.localhub import Fault

    _, first = published()
    notes = tmp_path / "notes.md"
    notes.write_text("Words.\n")
    hub.set_faults([Fault(match="POST .*/commit/", do="status", status=403)])
    with pytest.raises(HubError):
        again(run_of(recipe_of(user)), notes=notes)
    assert admin.model_info(first.repo_id).sha == first.commit
    assert again(run_of(recipe_of(user)), notes=notes).published.created
    assert len(commits(admin, first.repo_id)) == 3


def test_scores_are_taken_with_their_plan_or_not_at_all(published, run_of, user, monkeypatch):
    published(stage_keys={"scores": scores_key(run_of(recipe_of(user)))})

    def taken(**changes):
        run = run_of(recipe_of(user, **changes))
        target = preflight(run.recipe, base=run.base, session=run.session)
        now = fingerprint(run, repo_id=target.repo_id, tagged=True, choices=AS_SHIPPED)
        return run, scores_before(last_publish(target, now, session=run.session, reporter=run.reporter), run, now)

    run, found = taken(evaluation=EvaluationSpec(tasks=(), prompts=("Another",)))
    assert (found[0].mean, found[1]) == (made.scores().mean, made.plan())
    assert run.store.seconds == {"scores": 0.0}
    assert run_of.said[-1] == "scores: taken from the last publish"
    assert taken(drop=DropSpec(attn_drop=4, protect=(0, 1)))[1] is None
    assert taken(calibration=ANOTHER_MIX)[1] is None
    with monkeypatch.context() as patch:
        patch.setattr(StageStore, "has", lambda self, stage, key: True)
        assert taken()[1] is None  # what this machine found itself tells more
    elsewhere = made.environment()
    monkeypatch.setattr("hubprune.workflows.run.describe_environment", lambda device: elsewhere)
    assert taken()[1] is None


def test_what_was_measured_is_offered_to_machines_of_the_same_kind_alone(published, run_of, user, monkeypatch):
    published(stage_keys={"benchmarks": "a", "generation": "b"})

    def offered():
        run = run_of(recipe_of(user))
        target = preflight(run.recipe, base=run.base, session=run.session)
        now = fingerprint(run, repo_id=target.repo_id, tagged=True, choices=AS_SHIPPED)
        offer_results(last_publish(target, now, session=run.session, reporter=run.reporter), run)
        return [run.store.offers("benchmarks", "a"), run.store.offers("generation", "b"), run.store.offers("x", "a")]

    assert offered() == [False, False, False]
    assert run_of.said[-1] == "the last publish ran on Two-Core CPU: nothing that it measured is taken"
    monkeypatch.setattr("hubprune.workflows.run.describe_environment", lambda device: made.environment())
    assert offered() == [True, True, False]


def test_changes_are_told_part_by_part_and_digests_are_not_shown():
    before = {"a": {"x": "1", "gone": "y"}, "b": {"d": "0" * 64}, CARD_PART: {}}
    now = {"a": {"x": "2", "new": "z"}, "b": {"d": "1" * 64}, CARD_PART: {}, "c": {"n": "2" * 64}}
    assert told(changes(before, now)) == ("a: x 1 -> 2, new new z, no gone any more; b: d changed; c: new n")
    assert changes(now, now) == ()
    renamed = {"pruning": {"drop_attn": "[3]", "width drop_neurons": "60%"}}
    assert changes(renamed, {"pruning": {"attn_layers": "[3]", "width neuron_drop": "60%"}}) == ()
