"""mlx-lm runs the served layout without code of ours."""

from __future__ import annotations

import json

import pytest
from bases import LLAMA, plan, write_base

from hubprune.pruning.checkpoint import write_checkpoint
from hubprune.runtimes import inside, reference
from hubprune.runtimes.asking import Answer, Asked
from hubprune.runtimes.comparing import compare
from hubprune.runtimes.reference import ReferenceRequest, Text

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
WORDS = ("Paris is the capital of", "One day", "The river was high, and the bridge", "To make bread you need")


def written(config, tmp_path, *, attn=(), mlp=()):
    """A base, its checkpoint in the served layout, and the plan."""
    base = write_base(tmp_path / "base", config)
    drop = plan(5, attn=attn, mlp=mlp, layout="nemotron-nas")
    (tmp_path / "out").mkdir()
    write_checkpoint(base, drop, tmp_path / "out", advance=lambda _: None)
    return base, drop, tmp_path / "out"


def compared(folder):
    """What mlx-lm makes of a folder, beside transformers, both in this process."""
    asked = ReferenceRequest(folder=str(folder), own_code=True)
    prompts = reference.answer(asked.model_copy(update={"words": WORDS})).tokens
    request = Asked(runtime="mlx", model=str(folder), prompts=prompts, new_tokens=4, texts=WORDS)
    answer = Answer.model_validate({**inside.ask_mlx(request.model_dump(mode="json")), "seconds": 0})
    texts = tuple(Text(prompt=prompt, ids=made.ids) for prompt, made in zip(prompts, answer.texts, strict=True))
    seen = reference.answer(asked.model_copy(update={"texts": texts}))
    return compare("mlx", answer, seen.rows, tokens=prompts)


UNNAMED = {key: value for key, value in PLAIN.items() if key != "rope_theta"}
OLD_LINEAR = {**UNNAMED, "rope_scaling": {"type": "linear", "factor": 2.0}}


@pytest.mark.parametrize("config", [UNNAMED, OLD_LINEAR], ids=["no rope base", "a scaling with a type"])
def test_a_base_that_leaves_its_rope_to_transformers_is_the_same_in_mlx_lm(tmp_path, config):
    pytest.importorskip("mlx_lm")
    _, _, folder = written(config, tmp_path, attn=[2])
    assert compared(folder).passed


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
    assert seen.passed
    assert seen.largest_difference < 1e-4
    assert seen.kv_layers == 5 - len(attn)


def test_mlx_lm_and_its_tokenizer_load_without_code_of_ours(tmp_path):
    load = pytest.importorskip("mlx_lm").load
    _, _, folder = written(LLAMA_3, tmp_path, attn=[2])
    (folder / "modeling_pruned_llama_nas.py").write_text("raise SystemExit('must not run')")
    model, tokenizer = load(str(folder))
    assert len(model.layers) == 5
    assert tokenizer.encode("ab")


def test_a_rope_base_that_mlx_lm_does_not_find_is_seen(tmp_path):
    pytest.importorskip("mlx_lm")
    _, _, folder = written(PLAIN, tmp_path, attn=[2])
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    assert not compared(folder).passed
