"""A published repo of the last version gets the files of this one, in one commit that nothing was computed for."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from last_version_repo import (
    BASE_COMMIT,
    BASE_ID,
    OLD_TAG,
    REPO_ID,
    WEIGHTS,
    commit,
    commits,
    files_of,
    publish_last_version,
    with_file,
)
from typer.testing import CliRunner

from hubprune.cards.manifest import checkpoint_tag
from hubprune.cards.records import parse_record
from hubprune.cli import app
from hubprune.core.files import StageStore
from hubprune.core.recipe import read_recipe
from hubprune.core.requests import PublishRequest, RefreshRequest
from hubprune.hub import repos as hub_of_bases
from hubprune.workflows import publish as pipeline
from hubprune.workflows import refresh as refreshing
from hubprune.workflows.publish import before as inputs
from hubprune.workflows.reproduce.comparing import compare, read_published
from hubprune.workflows.run import Run
from hubprune.workflows.verify import _manifest_checks

TEXTS = (" leading", "two  spaces", "<s>hi</s> yo", "In 2024, 12345", "def f():\n    return 1", "Übergröße 東京", "")
IDS = """
import json, sys
from transformers import AutoTokenizer
texts = json.loads(sys.argv[1])
print(json.dumps([
    [AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(text).input_ids for text in texts]
    for folder in sys.argv[2:]
]))
"""


def folder_at(api, folder, revision="main"):
    return Path(api.snapshot_download(REPO_ID, revision=revision, local_dir=folder))


# ---- what it does ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refreshed(hub, tmp_path_factory):
    """The published repo after a refresh with all that belongs to it: its report, and its files."""
    from huggingface_hub import HfApi

    from hubprune.core.console import Reporter
    from hubprune.hub.session import HubSession

    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    publish_last_version(api)
    session = HubSession.open(endpoint=hub.endpoint, token=hub.token)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBPRUNE_HOME", str(tmp_path_factory.mktemp("work")))
        hub.clear_log()
        [report] = refreshing.refresh_all(RefreshRequest([REPO_ID]), session=session, reporter=Reporter(quiet=True))
    return report, folder_at(api, tmp_path_factory.mktemp("refreshed"), report.commit)


def test_a_refresh_is_one_commit_that_sends_no_weights_and_is_loaded_back(refreshed, api):
    report, folder = refreshed
    assert report.outcome == "committed"
    assert {file.path for file in report.changed} >= {"modeling_pruned_mistral.py", "tokenizer_config.json"}
    before, now = (
        {file.path: file.blob_id for file in api.list_repo_tree(REPO_ID, revision=commit, recursive=True)}
        for commit in (report.parent, report.commit)
    )
    assert {path for path in before | now if before.get(path) != now.get(path)} == {f.path for f in report.changed}
    assert (folder / WEIGHTS).read_bytes() == files_of("published")[WEIGHTS]
    assert report.sent_bytes == sum((folder / file.path).stat().st_size for file in report.changed)
    assert report.loaded_back.startswith("One day the river")


def test_tokens_are_the_bases_for_whoever_reads_the_repo(refreshed, tmp_path):
    for name in ("base", "published"):
        for path, data in files_of(name).items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(data)
    folders = [str(tmp_path / "base"), str(tmp_path / "published"), str(refreshed[1])]
    done = subprocess.run(
        [sys.executable, "-c", IDS, json.dumps(TEXTS), *folders], capture_output=True, text=True, check=True
    )
    base, published, now = json.loads(done.stdout.splitlines()[-1])
    assert now == base
    assert published != base  # or nothing would be shown here


def test_the_manifest_tells_of_the_refresh_and_is_whole(refreshed):
    report, folder = refreshed
    assert [(check.name, check.passed) for check in _manifest_checks(folder)] == [
        ("files as in the manifest", True),
        ("manifest as it was written", True),
    ]
    values = json.loads((folder / "hubprune.json").read_bytes())
    [entry] = values["refreshed"]
    assert (entry["commit"], entry["tag"], entry["from_version"]) == (report.parent, OLD_TAG, "0.1.0")
    changed = {file["path"]: file for file in entry["files"]}
    path = "modeling_pruned_mistral.py"
    assert changed[path]["before"] == hashlib.sha256(files_of("published")[path]).hexdigest()
    assert changed[path]["after"] == hashlib.sha256((folder / path).read_bytes()).hexdigest()
    assert entry["config"] == [change.key for change in report.config]
    old = json.loads(files_of("published")["hubprune.json"])
    measured = ("scores", "plan", "verification", "generation", "snippet", "base", "recipe")
    assert {key: values[key] for key in measured} == {key: old[key] for key in measured}


def test_the_old_tag_keeps_its_files_and_the_new_ones_get_a_name_of_their_own(refreshed, api):
    report, folder = refreshed
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(REPO_ID).tags}
    assert tags == {OLD_TAG: report.parent, report.tag: report.commit}
    record = parse_record((folder / "hubprune.json").read_bytes(), where="it")
    assert report.tag == checkpoint_tag(record.report.checkpoint)


def test_the_card_names_the_new_files_and_says_what_was_measured_with_which(refreshed):
    report, folder = refreshed
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f'revision = "{report.tag}"' in card
    assert hashlib.sha256((folder / "modeling_pruned_mistral.py").read_bytes()).hexdigest() in card
    assert f"run on the files at {OLD_TAG}" in card
    line = next(line for line in card.splitlines() if line.startswith("Refreshed with hubprune"))
    assert "config.json, modeling_pruned_mistral.py and tokenizer_config.json" in line.replace("\\", "")
    assert f"tag {OLD_TAG}" in line


def test_what_a_reproduction_cannot_find_again_is_told_apart(refreshed, api, session, reporter):
    published = read_published(REPO_ID, revision=refreshed[0].commit, session=session, reporter=reporter)
    parts = {
        part.name: part
        for part in compare(published, values=published.manifest, files=published.files, card=published.card)
    }
    assert parts["manifest"].outcome == parts["files"].outcome == "equal"
    assert parts["README.md"].outcome == "not compared"
    assert "refresh" in parts["README.md"].detail


def test_a_publish_of_the_same_recipe_finds_it_up_to_date(refreshed, api, session, reporter, tmp_path, monkeypatch):
    report, folder = refreshed
    values = json.loads((folder / "hubprune.json").read_bytes())
    # Under other libraries or with other code on the card, a publish has to run anew, refreshed or not.
    monkeypatch.setattr(inputs, "library_versions", lambda: values["versions"])
    monkeypatch.setattr(inputs, "snippet_part", lambda template: values["fingerprint"]["snippet"])
    monkeypatch.setattr(pipeline, "_check_resources", lambda *_, **__: pytest.fail("it computes"))
    recipe = read_recipe(folder / "recipe.yaml")
    target = recipe.target.model_copy(update={"repo_id": REPO_ID})
    run = Run(recipe.model_copy(update={"target": target}), session, reporter, StageStore(tmp_path / "work"))
    before = commits(api)
    made = pipeline.publish_run(run, PublishRequest())
    assert (made.published.created, made.published.commit, made.published.tag) == (False, report.commit, report.tag)
    assert commits(api) == before


def test_a_second_refresh_finds_nothing_to_do(refreshed, api, refresh):
    before = commits(api)
    [report] = refresh(REPO_ID)
    assert (report.outcome, report.changed, report.loaded_back) == ("up to date", (), None)
    assert report.tag == refreshed[0].tag
    assert commits(api) == before


# ---- only looking ------------------------------------------------------------------------------------------------


@pytest.fixture
def refresh(session, reporter):
    def run(*repo_ids, session=session, load_back=False, **options):
        request = RefreshRequest(repo_ids, no_load_back=not load_back, **options)
        return refreshing.refresh_all(request, session=session, reporter=reporter)

    return run


def test_a_folder_that_is_called_like_the_base_is_not_taken_for_it(refresh, published, tmp_path, monkeypatch):
    folder = tmp_path / BASE_ID
    folder.mkdir(parents=True)
    config = json.loads(files_of("base")["config.json"])
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 77.0}))
    (folder / "model.safetensors").write_bytes(files_of("base")["model.safetensors"])
    monkeypatch.chdir(tmp_path)
    [report] = refresh(published, check=True)
    assert "rope_theta" not in {change.key for change in report.config}
    assert report.outcome == "would change"


def test_a_check_needs_no_token_writes_nothing_and_reads_no_weights(refresh, published, api, hub):
    from hubprune.hub.session import HubSession

    before = commits(api)
    hub.clear_log()
    [report] = refresh(published, check=True, session=HubSession.open(endpoint=hub.endpoint, token=None))
    assert report.outcome == "would change"
    assert commits(api) == before
    assert [record.line for record in hub.log if record.method not in ("GET", "HEAD")] == []
    assert not [record.line for record in hub.log if WEIGHTS in record.path]


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
sys.argv = ["hubprune", *sys.argv[1:]]
from hubprune.cli import main
main()
"""


def test_nothing_of_a_refresh_itself_needs_torch(published, hub, api):
    before = commits(api)
    arguments = ["refresh", REPO_ID, "--no-load-back", "--endpoint", hub.endpoint]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert commits(api)[1:] == before


def test_the_exit_code_of_a_check_says_whether_there_is_something_to_do(published, hub):
    arguments = ["refresh", REPO_ID, "--endpoint", hub.endpoint]
    seen = CliRunner().invoke(app, [*arguments, "--check"])
    assert seen.exit_code == 3, seen.output
    assert "changed  modeling_pruned_mistral.py" in seen.stdout
    assert CliRunner().invoke(app, [*arguments, "--no-load-back"]).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--check"]).exit_code == 0


# ---- how it is sent ----------------------------------------------------------------------------------------------


def test_a_pull_request_leaves_the_branch_alone_and_names_no_tag(refresh, published, api):
    before = commits(api)
    [report] = refresh(published, create_pr=True)
    assert report.outcome == "proposed"
    assert commits(api) == before
    assert commits(api, revision=report.commit)[1:] == before
    card = Path(api.hf_hub_download(REPO_ID, "README.md", revision=report.commit)).read_text(encoding="utf-8")
    assert "revision=" not in card
    [again] = refresh(published, create_pr=True)
    assert (again.outcome, again.url, again.sent_bytes) == ("proposed", report.url, 0)
    api.merge_pull_request(REPO_ID, int(report.url.rsplit("/", 1)[-1]))
    [merged] = refresh(published)
    assert (merged.outcome, merged.changed) == ("up to date", ())


def test_what_a_killed_refresh_left_undone_is_done_by_the_next(refresh, published, api, monkeypatch):
    class KilledError(Exception):
        pass

    def die(*args, **options):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("hubprune.hub.commit.tag_commit", die)
        with pytest.raises(KilledError):
            refresh(published, load_back=True)
    loaded = []
    monkeypatch.setattr(refreshing, "_load_back", lambda *args, **options: loaded.append(args) or "text")
    before = commits(api)
    [report] = refresh(published, load_back=True)
    assert (report.outcome, report.loaded_back) == ("up to date", "text")
    assert report.tag in {tag.name for tag in api.list_repo_refs(REPO_ID).tags}
    assert commits(api) == before
    refresh(published, load_back=True)
    assert len(loaded) == 1


def test_several_repos_are_refreshed_one_after_the_other_whatever_becomes_of_one(refresh, published, hub, api):
    reports = refresh("acme/nothing-there", published, BASE_ID)
    assert [report.outcome for report in reports] == ["failed", "committed", "failed"]
    assert "has no model acme/nothing-there" in reports[0].error
    assert reports[2].error == f"{BASE_ID} has no hubprune.json, so hubprune did not publish it."
    seen = CliRunner().invoke(app, ["refresh", BASE_ID, REPO_ID, "--endpoint", hub.endpoint, "--json"])
    assert seen.exit_code == 1
    assert [repo["outcome"] for repo in json.loads(seen.stdout)["repos"]] == ["failed", "up to date"]


def test_without_its_base_what_needs_none_is_refreshed(refresh, published, hub, api):
    from hubprune.hub.session import HubSession

    token = hub.add_user("outsider", role="fineGrained", writable=(REPO_ID,))
    api.update_repo_settings(BASE_ID, private=True)
    try:
        session = HubSession.open(endpoint=hub.endpoint, token=token)
        [report] = refresh(published, session=session)
        before = commits(api)
        [again] = refresh(published, session=session)
    finally:
        api.update_repo_settings(BASE_ID, private=False)
    assert report.outcome == "committed"
    assert BASE_ID in report.notes[0]
    assert (again.outcome, again.changed) == ("up to date", ())
    assert commits(api) == before


@pytest.mark.parametrize(
    ("of_base", "of_repo", "written"),
    [
        ({"torch_dtype": None}, {"torch_dtype": None}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
        ({"torch_dtype": None}, {"torch_dtype": "float16"}, {"dtype": "float16", "torch_dtype": "float16"}),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"tie_word_embeddings": False}),
    ],
    ids=["no dtype", "dtype of a later version", "a head of its own"],
)
def test_what_a_publish_takes_from_the_weights_of_the_base_is_taken_from_the_repo(
    refresh, published, api, monkeypatch, of_base, of_repo, written
):
    resolve = hub_of_bases.resolve_recorded

    def resolve_otherwise(name, commit, *, session):
        base = resolve(name, commit, session=session)
        return base.model_copy(update={"config": without_none({**base.config, **of_base})})

    monkeypatch.setattr(hub_of_bases, "resolve_recorded", resolve_otherwise)
    config = without_none({**json.loads(files_of("published")["config.json"]), **of_repo})
    commit(api, REPO_ID, with_file("config.json", json.dumps(config).encode()))
    [report] = refresh(published)
    now = json.loads(Path(api.hf_hub_download(REPO_ID, "config.json", revision=report.commit)).read_bytes())
    assert {key: now.get(key) for key in written} == written
    assert refresh(published)[0].outcome == "up to date"


def without_none(values):
    return {key: value for key, value in values.items() if value is not None}


def test_the_fixture_is_as_the_last_version_left_it():
    files = files_of("published")
    listed = json.loads(files["hubprune.json"])["files"]
    assert {path: hashlib.sha256(files[path]).hexdigest() for path in listed} == {
        path: row["sha256"] for path, row in listed.items()
    }
    assert json.loads(files["config.json"])["hubprune"]["base_commit"] == BASE_COMMIT
