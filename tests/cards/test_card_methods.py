"""One golden card per method, from the same outline; what differs is what the method is about."""

from __future__ import annotations

import re

import made
import pytest
from card_text import card, check_golden, headings

from hubprune.cards.card import Pictures
from hubprune.core.artifacts import DroppedSublayer, Frontier, FrontierPoint, Margin, Reached, TargetFound
from hubprune.core.recipe import DropSpec

BLOCK = tuple(round(2 * score, 6) for score in made.ATTN)
MLP = tuple(reversed(made.ATTN))


def plan(*rows, **changes):
    """A plan of (kind, layer, score, rank, round)."""
    dropped = tuple(
        DroppedSublayer(kind=kind, layer=layer, score=score, rank=rank, round=turn)
        for kind, layer, score, rank, turn in rows
    )
    return made.plan(**{"dropped": dropped, "margins": (), "protected": (), **changes})


METHODS = {
    "mlp": {
        "recipe": made.recipe(drop=DropSpec(mlp_drop=2)),
        "plan": plan(("mlp", 3, MLP[3], 1, None), ("mlp", 1, MLP[1], 2, None), methods=("mlp-drop",)),
        "checkpoint": made.checkpoint(kv_bytes_per_token=32_768),
        "repo_id": "oopere/Llama-3.2-3B-mlp-drop-2",
    },
    "block": {
        "recipe": made.recipe(drop=DropSpec(block_drop=1)),
        "plan": plan(
            ("attn", 4, BLOCK[4], 1, None), ("mlp", 4, BLOCK[4], 1, None), methods=("block-drop",), layout="stock"
        ),
        "checkpoint": made.checkpoint(files=made.checkpoint().files[:2], kv_bytes_per_token=28_672),
        "repo_id": "oopere/Llama-3.2-3B-block-drop-1",
    },
    "joint": {
        "recipe": made.recipe(drop=DropSpec(joint_drop=3)),
        "plan": plan(
            ("attn", 4, made.ATTN[4], 1, None), ("mlp", 3, MLP[3], 2, None), ("attn", 6, made.ATTN[6], 3, None),
            methods=("joint-drop",),
            margins=(
                Margin(
                    ranking="joint", kinds=("attn", "mlp"), last_dropped=6, first_kept=1, difference=0.0,
                    standard_error=0.0002,
                ),
            ),
        ),
        "checkpoint": made.checkpoint(kv_bytes_per_token=24_576),
        "repo_id": "oopere/Llama-3.2-3B-joint-drop-3",
    },
    "iterative": {
        "recipe": made.recipe(drop=DropSpec(attn_drop=2), schedule="iterative"),
        "plan": plan(("attn", 4, made.ATTN[4], 1, 1), ("attn", 5, 0.0069, 1, 2), schedule="iterative"),
        "checkpoint": made.checkpoint(kv_bytes_per_token=24_576),
        "repo_id": "oopere/Llama-3.2-3B-attn-drop-2-iterative",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_the_card_of_the_method_is_the_golden_one(name):
    text = card(**METHODS[name])
    check_golden(name, text)
    assert headings(text) == headings(card())


def targeted():
    """Parts of a card whose plan was asked to save 30 % of the KV cache: each attention costs its score in nats."""
    order = sorted(range(8), key=lambda layer: made.ATTN[layer])
    points = [
        FrontierPoint(
            saved=n * 16_777_216, loss=sum(made.ATTN[layer] for layer in order[:n]), attn=tuple(sorted(order[:n])),
            measured=0.0231 if n == 3 else None,
        )
        for n in range(9)
    ]  # fmt: skip
    frontier = Frontier(
        base="meta-llama/Llama-3.2-3B", goal="kv", before=8 * 16_777_216, context=4096, batch=1, over=("attn",),
        base_loss=2.1034, layer_runs=44.0, points=tuple(points),
    )  # fmt: skip
    reached = Reached(goal="kv", asked="-30%", before=8 * 16_777_216, after=5 * 16_777_216)
    found = TargetFound(reached=(reached,), predicted=points[3].loss, measured=0.0231, frontier=frontier)
    return {
        "recipe": made.recipe(drop=DropSpec(target={"kv": "-30%"})),
        "scores": made.scores().model_copy(update={"metric": "loss"}),
        "plan": made.plan(target=found, metric="loss", protected=()),
        "pictures": Pictures(importance="assets/importance.png", frontier="assets/frontier.png"),
    }


def test_the_card_of_a_target_is_the_golden_one():
    text = card(**targeted())
    check_golden("target", text)
    assert set(headings(text)) - set(headings(card())) == {"What saving costs"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mlp", "MLP drop removes whole MLP sublayers"),
        ("block", "Block drop removes whole layers"),
        ("joint", "Joint layer drop ranks attention and MLP sublayers in one list"),
        ("iterative", "Attention drop removes whole attention sublayers"),
    ],
)
def test_only_the_methods_that_were_used_are_described(name, words):
    text = " ".join(card(**METHODS[name]).split())
    assert words in text
    assert len(re.findall(r"\b(?:drop removes whole|drop ranks attention|Width pruning keeps)", text)) == 1


def test_a_cache_that_stays_as_large_is_not_said_to_have_changed():
    text = card(**METHODS["mlp"])
    assert "an unchanged KV cache of 32,768 bytes per token" in text
    assert "instead of 32,768 bytes" not in text


def test_a_joint_ranking_is_told_in_its_own_order():
    order = "the attention of layer 4 at 0.006152, the MLP of layer 3 at 0.006152, the attention of layer 6 at 0.006841"
    assert f"Dropped, lowest first: {order}." in card(**METHODS["joint"])
    assert "ranked in one list" not in card()
