"""The neurons that stay are those that the formula ranks highest, computed here once more with numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bases import FAMILIES, LLAMA, SHARED_DATA, family_tensors, random_tensors, write_base
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hubprune.core.architectures import ARCHITECTURES
from hubprune.core.artifacts import WidthPlan
from hubprune.core.errors import CheckpointError, ScoringError
from hubprune.core.weights import open_weights
from hubprune.pruning import width
from hubprune.pruning.width import Neurons, from_mask, highest, mask_of

FORMULAS = {
    "max_abs": lambda g, u: np.abs(g).max(1) + np.abs(u).max(1),
    "ppm": lambda g, u: g.max(1) + np.abs(g.min(1)) + u.max(1) + np.abs(u.min(1)),
    "vow": lambda g, u: np.var(g, axis=1, ddof=1) + np.var(u, axis=1, ddof=1),
    "pon": lambda g, u: np.linalg.norm(g, 1, axis=1) * np.linalg.norm(u, 1, axis=1),
    "l2": lambda g, u: np.linalg.norm(g, axis=1) + np.linalg.norm(u, axis=1),
}


def of(folder, metric, *, width=48, kept=20, family="llama", layers=5):
    widths = WidthPlan(before=(width,) * layers, kept=(kept,) * layers, metric=metric)
    return Neurons(open_weights(Path(folder)), widths, ARCHITECTURES[family])


def chosen(gate, up, metric, count):
    """Numbers of the highest by one formula, ascending."""
    importance = FORMULAS[metric](gate.astype(np.float64), up.astype(np.float64)).astype(np.float32)
    order = sorted(range(len(importance)), key=lambda j: (-importance[j], j))
    return sorted(order[:count])


def matrices(tensors, layer):
    return (tensors[f"model.layers.{layer}.mlp.{name}_proj.weight"].float().numpy() for name in ("gate", "up"))


@pytest.mark.parametrize("metric", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_choice_is_that_of_the_formula(tmp_path, monkeypatch, metric, dtype):
    monkeypatch.setattr(width, "BLOCK_ELEMENTS", 7 * LLAMA["hidden_size"])
    tensors = random_tensors(LLAMA, dtype=dtype)
    found = of(write_base(tmp_path / "base", LLAMA, tensors).folder, metric)
    for layer in range(5):
        gate, up = matrices(tensors, layer)
        assert found.kept(layer).tolist() == chosen(gate, up, metric, 20)
        assert np.allclose(found.importance(layer), FORMULAS[metric](gate, up), rtol=1e-5)


@pytest.mark.parametrize("metric", FORMULAS)
@pytest.mark.skipif(not (SHARED_DATA / "models" / "stories260K").is_dir(), reason="the stories260K model is not here")
def test_the_choice_in_trained_weights_is_that_of_the_formula(metric):
    folder = SHARED_DATA / "models" / "stories260K"
    tensors = load_file(folder / "model.safetensors")
    found = of(folder, metric, width=172, kept=69)
    for layer in range(5):
        assert found.kept(layer).tolist() == chosen(*matrices(tensors, layer), metric, 69)


def test_gate_and_up_in_one_tensor_are_told_apart(tmp_path):
    tensors = family_tensors(FAMILIES["phi3"])
    found = of(write_base(tmp_path / "base", FAMILIES["phi3"], tensors).folder, "pon", family="phi3")
    both = tensors["model.layers.2.mlp.gate_up_proj.weight"].numpy()
    assert found.kept(2).tolist() == chosen(both[:48], both[48:], "pon", 20)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=30), st.data())
def test_of_two_equal_neurons_the_lower_stays(importance, data):
    count = data.draw(st.integers(1, len(importance)))
    order = sorted(range(len(importance)), key=lambda j: (-importance[j], j))
    assert highest(torch.tensor(importance), count).tolist() == sorted(order[:count])


@given(st.sets(st.integers(0, 200)))
def test_a_mask_says_exactly_which_neurons_stay(numbers):
    assert from_mask(mask_of(torch.tensor(sorted(numbers), dtype=torch.int64))).tolist() == sorted(numbers)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("metric", FORMULAS)
def test_weights_that_are_no_numbers_stop_the_run(tmp_path, metric, value):
    tensors = random_tensors(LLAMA)
    tensors["model.layers.3.mlp.up_proj.weight"][7, 5] = value
    found = of(write_base(tmp_path / "base", LLAMA, tensors).folder, metric)
    found.kept(2)
    with pytest.raises(ScoringError, match="Neuron 7 of the MLP of layer 3"):
        found.kept(3)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    folder = Path(write_base(tmp_path / "base", LLAMA).folder)
    found = of(folder, "l2")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:60_000])
    with pytest.raises(CheckpointError, match="became shorter"):
        found.kept(4)
