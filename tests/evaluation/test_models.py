from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hubprune.evaluation.models import load_model


@pytest.fixture
def folder(pruned_folder, tmp_path):
    """A pruned folder that may be changed."""
    return shutil.copytree(pruned_folder, tmp_path / "changed")


def load(folder):
    return load_model(folder, device="cpu", dtype="auto", trust_remote_code=True)


@pytest.mark.parametrize("named", [["tokenization_own.Own", None], [None, "tokenization_own.Own"]])
def test_code_of_a_tokenizer_is_never_run(folder, tmp_path, named):
    marker = tmp_path / "marker"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    auto_map = {"AutoTokenizer": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    (folder / "tokenization_own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import PreTrainedTokenizerFast\n"
        f"Path({str(marker)!r}).touch()\n"
        "class Own(PreTrainedTokenizerFast):\n"
        "    pass\n"
    )
    assert load(folder).tokenizer("a")["input_ids"]
    assert not marker.exists()


def test_weights_are_never_unpickled(folder):
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        load(folder)
