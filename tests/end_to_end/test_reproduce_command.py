"""`hubprune reproduce` runs a published recipe again, publishes nothing, and says what it lacks before it computes."""

import json
import shutil

import pytest
import yaml
from conftest import BASE, leftovers

TARGET = "local/again"


@pytest.fixture
def published(publish, files):
    """A folder of published files that no benchmark slows down."""
    ended = publish("--drop-attn", "1", "--tasks", "none", "--repo-id", "local/by-hand", "--dry-run", "--out", "kept")
    assert ended.code == 0, ended.err
    shutil.rmtree(files / "work")
    return files / "kept"


def edit(path, change):
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(json.dumps(values) if path.suffix == ".json" else yaml.safe_dump(values))


def outcomes(report):
    return {part["name"]: part["outcome"] for part in report["parts"]}


def test_a_published_repo_is_reproduced_bit_by_bit_and_nothing_is_sent(publish, hubprune, api, files):
    first = publish("--attn-drop", 1, "--repo-id", TARGET)
    assert first.code == 0, first.err
    commits = len(api.list_repo_commits(TARGET))

    untrusted = hubprune("reproduce", TARGET, HF_TOKEN="")
    assert untrusted.code == 1
    assert "benchmark definitions of its own" in untrusted.err
    again = hubprune("reproduce", TARGET, "--trust-tasks", "--json", "--report", "r.json", HF_TOKEN="")
    assert again.code == 0, again.out + again.err
    report = json.loads(again.out)
    assert set(outcomes(report).values()) == {"equal"}
    assert report["causes"] == []
    assert json.loads((files / "r.json").read_text()) == report
    # The publisher's own work is not taken for a reproduction of it.
    assert "taken from an earlier" not in again.err
    assert len(api.list_repo_commits(TARGET)) == commits
    assert list((files / "work" / "reproductions").iterdir()) == []
    assert leftovers(files) == []


def test_a_manifest_that_was_edited_is_found_out_and_a_stopped_run_goes_on(published, hubprune):
    def tamper(values):
        values["checkpoint"]["parameters"] -= 1
        values["files"]["model.safetensors"]["sha256"] = "0" * 64

    edit(published / "hubprune.json", tamper)
    verified = hubprune("verify", published)
    assert verified.code == 1
    assert "FAILED  files as in the manifest" in verified.out
    assert "FAILED  manifest as it was written" in verified.out
    stopped = hubprune("reproduce", published, stop_at="[5/6]")
    assert "Interrupted." in stopped.err
    ended = hubprune("reproduce", published, "--json")
    assert ended.code == 3, ended.err
    assert "checkpoint: taken from an earlier reproduction" in ended.err
    report = json.loads(ended.out)
    differing = {part["name"]: part for part in report["parts"] if part["outcome"] == "differs"}
    assert set(differing) == {"manifest", "checkpoint"}
    assert "edited after it was written" in differing["manifest"]["detail"]
    assert "model.safetensors" in differing["manifest"]["detail"]
    assert differing["checkpoint"]["differences"][0]["place"] == "figures.parameters"
    assert differing["checkpoint"]["largest_difference"] == 1


def test_what_is_gone_is_named_before_anything_is_computed(published, hubprune, files):
    def says(change, *texts):
        copy = shutil.copytree(published, files / "copy")
        edit(copy / "recipe.yaml", change)
        ended = hubprune("reproduce", copy)
        assert ended.code == 1, ended.out + ended.err
        for text in texts:
            assert text in ended.err
        assert "[2/6]" not in ended.err
        shutil.rmtree(copy)

    def scored_on(**subset):
        def change(values):
            values["drop"] = {"attn_drop": 1}
            values["calibration"]["subsets"] = [{"weight": 1.0, **subset}]

        return change

    def base_at(revision):
        return lambda values: values["base"].update(revision=revision)

    says(base_at("a" * 40), f"cannot be reproduced without its base, {BASE} at commit aaaa", "hubprune verify")
    says(base_at("main"), "pins no commit of a base")
    says(scored_on(dataset="meta/none"), "without what it was scored on", "meta/none", "hubprune verify")
    says(scored_on(dataset="mine.jsonl"), "mine.jsonl, a file of its publisher", "--calibration PATH/mine.jsonl")
    (published / "recipe.yaml").unlink()
    nothing = hubprune("reproduce", published)
    assert nothing.code == 1
    assert "has no recipe.yaml" in nothing.err
