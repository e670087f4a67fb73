"""Points are nested, go by the ranking, and never take the last attention of a kind."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubprune.core.artifacts import CalibrationRecord, CalibrationSource, ImportanceScores, LayerScores
from hubprune.core.errors import PlanError
from hubprune.core.requests import SweepRequest
from hubprune.pruning.selection import Shape
from hubprune.workflows.sweep.points import RANKINGS, Ranked, make_points, order_of

LAYERS = 6
CONFIG = {"model_type": "llama", "num_hidden_layers": LAYERS}
ROW = st.lists(st.floats(0, 1), min_size=LAYERS, max_size=LAYERS).map(tuple)


def layer_scores(attn, mlp, block):
    source = CalibrationSource(
        dataset="texts", config=None, split="train", commit=None, weight=1.0, documents=1, tokens=9
    )
    record = CalibrationRecord(
        mix="texts", sources=(source,), max_tokens=9, seed=0, shuffle_buffer=1, token_sha256="0" * 64
    )
    mean = ImportanceScores(attn=attn, mlp=mlp, block=block)
    return LayerScores(
        aggregation="token", dtype="float32", device="cpu", mean=mean, standard_error=mean, by_source=(mean,),
        calibration=record,
    )  # fmt: skip


def ranked(scores, *, config=CONFIG, metric="cosine", seed=0, protect=()):
    shape = Shape(num_hidden_layers=LAYERS, name="base")
    return Ranked(shape=shape, scores=scores, metric=metric, seed=seed, protect=protect, config=config)


@given(ROW, ROW, ROW, st.sets(st.integers(0, LAYERS - 1), max_size=2))
def test_each_point_drops_what_the_one_before_drops_and_count_more(attn, mlp, block, protect):
    counts = (0, 1, 2, 3)
    request = SweepRequest("base", method=RANKINGS, counts=counts)
    points = make_points(request, ranked(layer_scores(attn, mlp, block), protect=tuple(sorted(protect))))
    for method in RANKINGS:
        plans = [point.plan for point in points if point.method == method]
        sets = [set(plan.sublayers) for plan in plans]
        assert [len(one) for one in sets] == [n * (2 if method == "block" else 1) for n in counts]
        assert all(one < other for one, other in pairwise(sets))
        assert order_of(points, method).dropped == plans[-1].dropped
        assert not protect & {layer for _, layer in sets[-1]}


def test_points_go_by_the_scores_from_the_low_end():
    attn, mlp = (0.5, 0.1, 0.4, 0.2, 0.9, 0.8), (0.3, 0.7, 0.15, 0.6, 0.05, 0.9)
    request = SweepRequest("base", method=("attn", "joint"), counts=(0, 3))
    points = make_points(request, ranked(layer_scores(attn, mlp, attn)))
    assert points[1].plan.sublayers == (("attn", 1), ("attn", 2), ("attn", 3))
    assert points[3].plan.sublayers == (("attn", 1), ("mlp", 2), ("mlp", 4))


def test_random_points_are_nested_and_depend_on_the_seed():
    request = SweepRequest("base", method=("attn",), counts=(0, 2, 4))

    def sets(seed):
        return [set(p.plan.sublayers) for p in make_points(request, ranked(None, metric="random", seed=seed))]

    assert sets(1)[1] < sets(1)[2]
    assert sets(1) == sets(1)
    assert any(sets(1) != sets(seed) for seed in range(2, 6))


def test_a_count_that_takes_the_last_attention_of_a_kind_names_the_most_that_can_go():
    config = {"model_type": "gemma2", "num_hidden_layers": LAYERS}  # 1, 3 and 5 are full
    scores = layer_scores((0.9, 0.1, 0.8, 0.2, 0.7, 0.3), (0.5,) * LAYERS, (0.5,) * LAYERS)
    with pytest.raises(PlanError, match="attn, 3 drops: No attention of the kind full_attention") as caught:
        make_points(SweepRequest("base", method=("attn",), counts=(0, 3)), ranked(scores, config=config))
    assert caught.value.hint == "Pass --counts 0:2 or less for --method attn."
