"""`hubprune reproduce` runs a published recipe again, publishes nothing, and says what it lacks before it computes.

One publish serves all of it, by a base of its own, whose history moves on and then goes.
"""

import json
import shutil

import pytest
import yaml
from little import SMALL, CommandLine, leftovers, write_files

BASE, TARGET = "meta/moving", "local/again"


@pytest.fixture(scope="module")
def hubprune(hub, base_folder, tmp_path_factory):
    """The command line in a folder that holds, under `kept`, the files of a publish."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(BASE)
    adds = [CommitOperationAdd(path.name, path.read_bytes()) for path in base_folder.iterdir()]
    api.create_commit(BASE, adds, commit_message="Fill")
    run = CommandLine(hub, write_files(tmp_path_factory.mktemp("reproduce")), hub.token)
    (run.home / "notes.md").write_text("Mind the *gap*.\n")
    options = ("--attn-drop", 1, "--repo-id", TARGET, "--notes", "notes.md", "--out", "kept")
    ended = run("publish", BASE, *SMALL, *options)
    assert ended.code == 0, ended.err
    shutil.rmtree(run.home / "work")
    return run


@pytest.fixture
def published(hubprune, tmp_path):
    """A copy of the published files that a test may change."""
    return shutil.copytree(hubprune.home / "kept", tmp_path / "published")


def edit(path, change):
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(json.dumps(values) if path.suffix == ".json" else yaml.safe_dump(values))


def test_a_published_repo_is_reproduced_bit_by_bit_though_its_base_moved_on_and_nothing_is_sent(hubprune, api):
    api.upload_file(path_or_fileobj=b"later", path_in_repo="later.txt", repo_id=BASE)
    commits = len(api.list_repo_commits(TARGET))
    untrusted = hubprune("reproduce", TARGET, HF_TOKEN="")
    assert untrusted.code == 1
    assert "benchmark definitions of its own" in untrusted.err
    options = ("--trust-tasks", "--device", "cpu", "--json", "--report", "r.json")
    again = hubprune("reproduce", TARGET, *options, HF_TOKEN="")
    assert again.code == 0, again.out + again.err
    report = json.loads(again.out)
    # The author's notes are on the card, and the card is among the parts.
    assert {part["name"]: part["outcome"] for part in report["parts"]}["README.md"] == "equal"
    assert {part["outcome"] for part in report["parts"]} == {"equal"}
    assert report["causes"] == []
    assert json.loads((hubprune.home / "r.json").read_text()) == report
    assert "the base has moved on, main is at" in again.err
    # The publisher's own work is not taken for a reproduction of it.
    assert "taken from an earlier" not in again.err
    assert len(api.list_repo_commits(TARGET)) == commits
    assert list((hubprune.home / "work" / "reproductions").iterdir()) == []
    assert leftovers(hubprune.home) == []


def test_a_manifest_that_was_edited_is_found_out_and_a_stopped_run_goes_on(hubprune, published):
    def tamper(values):
        values["checkpoint"]["parameters"] -= 1
        values["files"]["model.safetensors"]["sha256"] = "0" * 64

    edit(published / "hubprune.json", tamper)
    stopped = hubprune("reproduce", published, "--trust-tasks", stop_at="[4/6]")
    assert "Interrupted." in stopped.err
    ended = hubprune("reproduce", published, "--trust-tasks", "--json")
    assert ended.code == 3, ended.err
    assert "checkpoint: taken from an earlier reproduction" in ended.err
    report = json.loads(ended.out)
    differing = {part["name"]: part for part in report["parts"] if part["outcome"] == "differs"}
    assert set(differing) == {"manifest", "checkpoint"}
    assert "edited after it was written" in differing["manifest"]["detail"]
    assert "model.safetensors" in differing["manifest"]["detail"]
    assert differing["checkpoint"]["differences"][0]["place"] == "figures.parameters"
    assert differing["checkpoint"]["largest_difference"] == 1


def test_a_data_set_or_commit_that_is_gone_is_named_before_anything_is_computed(hubprune, published, api):
    def says(folder, *texts):
        ended = hubprune("reproduce", folder, "--trust-tasks")
        assert ended.code == 1, ended.out + ended.err
        for text in (*texts, "hubprune verify"):
            assert text in ended.err
        assert "[2/6]" not in ended.err

    def elsewhere(values):
        values["calibration"]["subsets"] = [{"weight": 1.0, "dataset": "meta/none"}]

    copy = shutil.copytree(published, published.with_name("copy"))
    edit(copy / "recipe.yaml", elsewhere)
    says(copy, "without what it was scored on", "meta/none")
    commit = json.loads((published / "hubprune.json").read_text())["base"]["commit"]
    api.delete_repo(BASE)  # and somebody else's history in its place
    api.create_repo(BASE)
    api.upload_file(path_or_fileobj=b"other", path_in_repo="other.txt", repo_id=BASE)
    says(published, f"cannot be reproduced without its base, {BASE} at commit {commit}", "--base FOLDER")
