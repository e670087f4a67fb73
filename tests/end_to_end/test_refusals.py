"""What is wrong is said in one line, with a code, before anything is computed, and nothing is left behind."""

import json
import shutil
import struct

import pytest
from little import BASE, leftovers

COMPUTE = ("documents in", "batches in")


def refused(ended, files, *said, code=1):
    assert ended.code == code, ended.err
    errors = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, ended.err
    assert "Traceback" not in ended.err
    for text in said:
        assert text in ended.err
    assert not any(mark in ended.err for mark in COMPUTE)
    assert leftovers(files) == []
    assert not (files / "out").exists()


def test_a_base_that_does_not_exist(publish, files):
    refused(publish("--attn-drop", 1, base="meta/nothing"), files, "meta/nothing", "Check the spelling")


def test_a_revision_that_does_not_exist(publish, files):
    refused(publish("--attn-drop", 1, "--base-revision", "v9"), files, "v9")


def test_a_gated_base(publish, files, hub):
    token = hub.add_user("stranger")
    refused(publish("--attn-drop", 1, base="meta/gated", HF_TOKEN=token), files, "gated", "Ask for access at")


def test_a_read_only_token(publish, files, hub, api):
    token = hub.add_user("reader", role="read")
    ended = publish("--attn-drop", 1, "--repo-id", "reader/tiny", HF_TOKEN=token)
    refused(ended, files, "read-only")
    assert not api.repo_exists("reader/tiny")


def test_no_token_at_all(publish, files):
    refused(publish("--attn-drop", 1, HF_TOKEN=""), files, "token", "hf auth login")


def test_a_namespace_of_somebody_else(publish, files, hub):
    token = hub.add_user("writer")
    refused(publish("--attn-drop", 1, "--repo-id", "meta/mine", HF_TOKEN=token), files, "meta", "Publish as writer/")


def test_more_attentions_than_there_are(publish, files):
    refused(publish("--attn-drop", 99), files, f"Cannot drop 99 attention sublayers: {BASE} has 4 layers.",
            "Pass --attn-drop 3 or less", code=2)  # fmt: skip


def test_an_architecture_without_an_entry(publish, files):
    refused(
        publish("--attn-drop", 1, base="meta/other"),
        files,
        "'mamba'",
        "Supported: gemma2, gemma3_text, granite, llama, mistral, ",
    )


def test_a_base_with_pickled_weights_only(publish, files):
    refused(publish("--attn-drop", 1, base="meta/pickled"), files, "pytorch_model.bin", "save_pretrained")


def test_a_data_set_that_does_not_exist(publish, files):
    mix = (files / "mix.yaml").read_text().replace("meta/texts", "meta/none")
    (files / "mix.yaml").write_text(mix)
    refused(publish("--attn-drop", 1), files, "meta/none")


def test_a_task_with_a_typo(publish, files):
    refused(publish("--attn-drop", 1, "--tasks", "litle"), files, "litle", "Did you mean little")


def test_an_unreachable_hub(publish, files):
    ended = publish("--attn-drop", 1, HF_ENDPOINT="http://127.0.0.1:9")
    refused(ended, files, "http://127.0.0.1:9")


def test_an_out_folder_that_holds_something(publish, files):
    (files / "full").mkdir()
    (files / "full" / "letter.txt").write_text("mine")
    refused(publish("--attn-drop", 1, "--out", "full"), files, "exists already", code=2)
    assert (files / "full" / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "Nothing to drop was asked for"),
        (("--attn-drop", "0"), "neither a number of 1 or more nor a share"),
        (("--attn-drop", "1", "--attn-layers", "2"), "exclude each other: pass one of them"),
        (("--attn-layers", "2,x"), "no list of layers"),
        (("--attn-layers", "7"), "0 to 3"),
        (("--attn-layers", "2", "--protect", "2"), "both in --attn-layers and in --protect"),
        (("--attn-drop", "1", "--calibration", "cosmopedla"), "no calibration mix"),
        (("--attn-drop", "1", "--repo-id", "a/b/c"), "no repo id"),
        (("--attn-drop", "1", "--device", "tpu"), "none of auto, cpu, mps"),
        (("--attn-layers", "1,,2"), "no list of layers"),
        (("--attn-drop", "1", "--calibration", "none.jsonl"), "file none.jsonl does not exist"),
        (("--attn-drop", "1", "--device", "cuda:9"), "no device 'cuda:9'"),
    ],
)
def test_options_that_cannot_be_used(publish, files, options, said):
    refused(publish(*options), files, said, code=2)


def copy_of(base_folder, files):
    return shutil.copytree(base_folder, files / "broken")


def test_a_truncated_shard(hubprune, base_folder, files):
    weights = copy_of(base_folder, files) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(hubprune("prune", "./broken", "--attn-layers", "1", "--out", "out"), files, "truncated")


def test_an_index_that_points_outside_the_folder(hubprune, base_folder, files):
    folder = copy_of(base_folder, files)
    (folder / "model.safetensors").rename(files / "outside.safetensors")
    with (files / "outside.safetensors").open("rb") as file:
        names = json.loads(file.read(struct.unpack("<Q", file.read(8))[0])).keys() - {"__metadata__"}
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ended = hubprune("prune", "./broken", "--attn-layers", "1", "--out", "out")
    assert ended.code == 1
    assert leftovers(files) == []
    assert not (files / "out").exists()
    assert "Traceback" not in ended.err


def test_verify_of_neither_a_folder_nor_a_repo_id(hubprune, files):
    refused(hubprune("verify", "./nothing"), files, "neither a folder nor a repo id")
