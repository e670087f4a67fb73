"""mlx-lm runs the served layout without code of ours, and verification looks whether it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bases import LLAMA, plan, write_base

from hubprune.core.architectures import architecture_of
from hubprune.pruning import loading, verify
from hubprune.pruning.checkpoint import write_checkpoint
from hubprune.pruning.layouts import Runnable

PLAIN = {**LLAMA, "intermediate_size": 256, "hidden_size": 64, "rope_theta": 20000.0}
LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 16,
    "rope_type": "llama3",
}
LLAMA_3 = {**PLAIN, "rope_theta": 500000.0, "rope_scaling": LLAMA3}
TIED = {**LLAMA_3, "head_dim": 16, "tie_word_embeddings": True}
"""As Llama 3.2 has it."""
CHECK = "logits in mlx-lm equal those in transformers"


def written(config, tmp_path, *, attn=(), mlp=()):
    """A base, its checkpoint in the served layout, and the plan."""
    base = write_base(tmp_path / "base", config)
    drop = plan(5, attn=attn, mlp=mlp, layout="nemotron-nas")
    (tmp_path / "out").mkdir()
    write_checkpoint(base, drop, tmp_path / "out", advance=lambda _: None)
    return base, drop, tmp_path / "out"


def compared(folder):
    return loading.compare_in_mlx(loading.MlxRequest(folder=str(folder), prompts=verify.PROMPTS))


UNNAMED = {key: value for key, value in PLAIN.items() if key != "rope_theta"}
OLD_LINEAR = {**UNNAMED, "rope_scaling": {"type": "linear", "factor": 2.0}}


@pytest.mark.parametrize("config", [UNNAMED, OLD_LINEAR], ids=["no rope base", "a scaling with a type"])
def test_a_base_that_leaves_its_rope_to_transformers_is_the_same_in_mlx_lm(tmp_path, config):
    pytest.importorskip("mlx_lm")
    _, _, folder = written(config, tmp_path, attn=[2])
    assert compared(folder).check.passed


@pytest.mark.parametrize("config", [PLAIN, LLAMA_3, TIED], ids=["plain rope", "llama3 rope", "tied embeddings"])
@pytest.mark.parametrize(
    ("attn", "mlp"),
    [([], []), ([2], []), ([1, 4], []), ([], [0]), ([], [4]), ([1, 3], [2, 4]), ([1, 2], [1])],
    ids=["full", "attention", "attentions", "first MLP", "last MLP", "joint", "block"],
)
def test_mlx_lm_computes_what_transformers_computes(tmp_path, config, attn, mlp):
    pytest.importorskip("mlx_lm")
    _, _, folder = written(config, tmp_path, attn=attn, mlp=mlp)
    seen = compared(folder)
    assert seen.check.passed
    assert seen.max_logit_difference < 1e-4


def test_mlx_lm_and_its_tokenizer_load_without_code_of_ours(tmp_path):
    load = pytest.importorskip("mlx_lm").load
    _, _, folder = written(LLAMA_3, tmp_path, attn=[2])
    (folder / "modeling_pruned_llama_nas.py").write_text("raise SystemExit('must not run')")
    model, tokenizer = load(str(folder))
    assert len(model.layers) == 5
    assert tokenizer.encode("ab")


def test_verification_runs_it_in_a_fresh_process_and_says_so(tmp_path):
    pytest.importorskip("mlx_lm")
    base, drop, folder = written(LLAMA_3, tmp_path, attn=[2])
    runnable = Runnable(Path(base.folder))
    seen = verify.verify(runnable, folder, plan=drop, config=LLAMA_3, architecture=architecture_of(LLAMA_3))
    assert next(check for check in seen.checks if check.name == CHECK).passed
    assert seen.runtimes[0].startswith("mlx-lm ")


def test_a_rope_base_that_mlx_lm_does_not_find_is_seen(tmp_path):
    pytest.importorskip("mlx_lm")
    _, _, folder = written(PLAIN, tmp_path, attn=[2])
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    assert not compared(folder).check.passed
