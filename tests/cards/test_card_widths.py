"""The card of a model with narrower MLPs says how many neurons went and by which importance, and nothing of layers."""

from __future__ import annotations

import made
import pytest
from card_text import card, check_golden, fences, matter

from hubprune.core.artifacts import RepoFile, WidthPlan
from hubprune.core.recipe import DropSpec
from hubprune.core.specs import WidthSpec

FILES = (
    RepoFile(path="config.json", size=900, sha256="c" * 64),
    RepoFile(path="model.safetensors", size=3_888_895_808, sha256="d" * 64),
)
SMALLER = made.checkpoint(
    files=FILES, parameters=1_944_443_904, weight_bytes=3_888_887_808, kv_bytes_per_token=32_768
)  # fmt: skip


def widths(kept=(3277,) * 8, *, metric="max_abs", multiple=1):
    return WidthPlan(before=(8192,) * 8, kept=tuple(kept), metric=metric, multiple=multiple)


def narrow(**changes):
    """Parts of the card of a model that lost neurons and nothing else."""
    plan = made.plan(
        methods=("mlp-width",),
        selected_by="hand",
        dropped=(),
        protected=(),
        margins=(),
        widths=widths(),
        layout="stock",
    )
    recipe = made.recipe(drop=DropSpec(), width=WidthSpec(neuron_drop="60%", multiple=1))
    values = {"plan": plan, "recipe": recipe, "scores": None, "checkpoint": SMALLER}
    return {**values, "repo_id": "oopere/Llama-3.2-3B-drop-neurons-60pct", **changes}


def test_the_card_of_a_narrower_model_is_the_golden_one():
    text = card(**narrow())
    check_golden("narrow", text)


def test_the_card_of_a_narrower_model_speaks_of_neurons_alone():
    text = card(**narrow())
    assert "with 60.00 % of the neurons of its MLPs removed (8,192 → 3,277 in each): 1,944,443,904 parameters" in text
    assert "| Neurons per MLP | 8,192 | 3,277 | −60.00 % |" in text
    assert "sublayers removed" not in text
    assert "The layers were" not in text
    assert "he2024matters" not in text
    assert any("martra2025fragile" in fence.content for fence in fences(text))
    assert matter(**narrow())["tags"] == ["hubprune", "pruned", "width-pruning", "reproducible"]


def test_widths_that_differ_are_said_by_layer():
    kept = (8192, 4096, 4096, 2048, 4096, 8192, 2048, 4096)
    plan = made.plan(widths=widths(kept, metric="ppm", multiple=64), methods=("attn-drop", "mlp-width"))
    text = card(plan=plan)
    assert (
        "with 3 of its 8 attention sublayers removed (layers 4, 5 and 6, counted from 0) and "
        "43.75 % of the neurons of its MLPs removed (65,536 → 36,864 in all)" in text
    )
    assert "4,096 of 8,192 in layers 1, 2, 4 and 7; 2,048 of 8,192 in layers 3 and 6" in text
    assert "the highest ppm: max g + |min g|" in text.replace("\\", "")
    assert "rounded to a multiple of 64" in text
    assert "without the removed sublayers and neurons: neither" in text
    assert {"attention-drop", "width-pruning"} < set(matter(plan=plan)["tags"])
    assert sum(name in text for name in ("he2024matters", "martra2025fragile")) == 2


def test_an_mlp_that_goes_counts_neither_before_nor_after():
    dropped = (made.DroppedSublayer(kind="mlp", layer=2),)
    kept = (4096, 4096, 8192, 4096, 4096, 4096, 4096, 4096)
    text = card(plan=made.plan(dropped=dropped, selected_by="hand", margins=(), widths=widths(kept)))
    assert "50.00 % of the neurons of its MLPs removed (8,192 → 4,096 in each)" in text
    assert "4,096 of 8,192 in every MLP" in text


@pytest.mark.parametrize("metric", ["max_abs", "ppm", "vow", "pon", "l2"])
def test_every_importance_of_neurons_has_its_formula_on_the_card(metric):
    plan = made.plan(dropped=(), selected_by="hand", margins=(), widths=widths(metric=metric))
    assert f"the highest {metric}: " in card(**narrow(plan=plan)).replace("\\", "")
