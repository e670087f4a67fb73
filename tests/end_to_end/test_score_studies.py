"""Scores side by side, through the command line: over revisions, mixes and numbers of samples."""

import json

import pytest
from little import BASE

STEPS = "meta/steps"


@pytest.fixture(scope="module")
def steps(hub, base_folder):
    """A base whose branches are training checkpoints: the attention of layer 1 grows from step to step."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from safetensors.torch import load_file, save

    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(STEPS)
    tensors = load_file(base_folder / "model.safetensors")
    files = {p.name: p.read_bytes() for p in base_folder.iterdir()}
    commits = {}
    for name, factor in (("step1", 1.0), ("step2", 30.0)):
        grown = {k: v * factor if k == "model.layers.1.self_attn.o_proj.weight" else v for k, v in tensors.items()}
        files["model.safetensors"] = save(grown, metadata={"format": "pt"})
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        commits[name] = api.create_commit(STEPS, operations, commit_message=name).oid
        api.create_branch(STEPS, branch=name)
    return commits


def test_revisions_are_scored_at_their_commits_and_drawn_as_a_heat_map(hubprune, steps, files):
    command = [
        "score",
        STEPS,
        "--revisions",
        "step1,step2",
        "--calibration",
        "mix.yaml",
        "--plot",
        "pictures",
        "--json",
    ]
    ended = hubprune(*command)
    assert ended.code == 0, ended.err
    study = json.loads(ended.out)
    assert (study["kind"], study["reference"]) == ("revisions", "step2")
    assert {e["label"]: e["commit"] for e in study["entries"]} == steps
    first, second = (entry["mean"]["attn"] for entry in study["entries"])
    assert first[0] == second[0]
    assert first[1] < 0.1 * second[1]
    assert sorted(p.name for p in (files / "pictures").iterdir()) == [
        "importance-by-revisions.png", "importance-by-revisions.svg",
    ]  # fmt: skip
    again = hubprune(*command)
    assert again.out == ended.out
    assert again.err.count("scores: taken from an earlier run") == 2


def test_unknown_revisions_are_one_error_before_anything_is_scored(hubprune, steps):
    ended = hubprune("score", STEPS, "--revisions", "step1,step8,step9", "--calibration", "mix.yaml")
    assert ended.code == 1
    assert ended.err.count("error:") == 1
    assert f"{STEPS} has no revisions step8, step9." in ended.err
    assert "batches" not in ended.err
    one = hubprune("score", STEPS, "--revisions", "step1,step8", "--calibration", "mix.yaml")
    assert "step8" in one.err
    assert "batches" not in one.err


def test_a_folder_has_no_revisions(hubprune, base_folder):
    ended = hubprune("score", base_folder, "--revisions", "a,b", "--calibration", "mix.yaml")
    assert ended.code == 2
    assert "is a folder, which has no revisions" in ended.err


def test_the_smaller_numbers_of_samples_have_the_scores_that_they_have_alone(hubprune):
    command = ("score", BASE, "--calibration", "mix.yaml", "--json", "--num-samples")
    ended, *alone = hubprune.each(*((*command, number) for number in ("1,5,12", "1", "5", "12")))
    assert ended.code == 0, ended.err
    study = json.loads(ended.out)
    assert study["nested"] is True
    assert [(e["label"], e["documents"]) for e in study["entries"]] == [("1", 1), ("5", 5), ("12", 12)]
    assert [len(e["agreements"]) for e in study["entries"]] == [3, 3, 0]
    for entry, one in zip(study["entries"], alone, strict=True):
        scores = json.loads(one.out)
        for kind in ("attn", "mlp", "block"):
            assert entry["mean"][kind] == pytest.approx(scores["mean"][kind], abs=1e-6)
            assert entry["standard_error"][kind] == pytest.approx(scores["standard_error"][kind], abs=1e-6)


def test_mixes_stand_side_by_side_in_a_table(hubprune, files):
    (files / "words.txt").write_text("".join(f"Words are {n} and more of them.\n" for n in range(20)))
    ended = hubprune(
        "score", BASE, "--calibration", "mix.yaml,words.txt", "--num-samples", "4", "--attn-drop", "2", "--plot", "p"
    )
    assert ended.code == 0, ended.err
    assert ["attention", "little-mix", "words.txt"] in [line.split() for line in ended.out.splitlines()]
    assert "of the 2 lowest, the same" in ended.out
    assert (files / "p" / "importance-by-calibration.svg").is_file()


def test_one_pass_can_be_drawn_too(hubprune, base_folder, files):
    ended = hubprune("score", base_folder, "--calibration", "mix.yaml", "--attn-drop", "2", "--plot", "p")
    assert ended.code == 0, ended.err
    assert "dropped" in (files / "p" / "importance.svg").read_text()
