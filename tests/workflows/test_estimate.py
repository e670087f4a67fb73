"""What stages need, by arithmetic: known answers, and which way they take."""

from __future__ import annotations

import math
from dataclasses import replace

import made
import pytest

from hubprune.core.recipe import CalibrationMix, CalibrationSubset, DropSpec, EvaluationSpec
from hubprune.core.specs import HealSpec
from hubprune.workflows.estimate import Machine, Shape, needs

GB = 10**9
LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "dtype": "bfloat16",
}  # fmt: skip
MACHINE = Machine(flops=1e14, memory_rate=1e12, disk_rate=2e9, host=20 * GB, device=20 * GB, itemsize=2)


@pytest.fixture
def large():
    return Shape.of(LLAMA_70B, weight_bytes=141_107_412_992, stored="bfloat16", tied=False)


def recipe(**changes):
    mix = CalibrationMix(name="m", subsets=(CalibrationSubset(dataset="a/b", weight=1),), num_samples=400)
    return made.recipe(calibration=mix, drop=DropSpec(attn_drop=8), **changes)


def stages(shape, machine=MACHINE, asked=None):
    return {need.stage: need for need in needs(asked or recipe(), shape, machine, missing=shape.weight_bytes)}


def test_the_shape_of_a_70b_follows_from_its_config_and_the_bytes_of_its_index(large):
    assert large.parameters == 70_553_706_496  # as its model card counts
    per_layer = 8192 * (8192 + 1024 + 1024 + 8192 + 3 * 28672 + 2)
    assert large.layer == pytest.approx(per_layer, rel=1e-6)
    assert large.kv_bytes == 80 * 2 * 8 * 128 * 2 == 327_680


def test_a_token_takes_two_operations_for_every_weight_and_some_for_its_context(large):
    weights = 70_553_706_496 - 128256 * 8192  # of the embedding, one row is looked up
    assert large.forward(1, context=0) == pytest.approx(2 * weights, rel=1e-6)
    assert large.forward(10, context=1000) - large.forward(10, context=0) == 10 * 2 * 80 * 1000 * 8192


def test_benchmarks_are_told_with_requests_and_tokens_and_what_writing_may_take_of_the_time(large):
    roomy = replace(MACHINE, device=300 * GB, gpu=True)
    spec = EvaluationSpec(tasks=("piqa", "gsm8k"), num_fewshot={"gsm8k": 5})
    need = stages(large, roomy, recipe(evaluation=spec))["benchmarks"]
    # 1838 x 2 + 1319 requests, 1838 x 60 + 1319 x (130 + 5 x 230) tokens, 1319 x 256 new ones
    assert "about 5 k requests, 1.8 M tokens, at most 338 k written, " in need.way
    only_read = stages(large, roomy, recipe(evaluation=EvaluationSpec(tasks=("piqa",))))["benchmarks"]
    assert only_read.way.endswith("about 4 k requests, 110 k tokens")
    # A slow memory: both models read all weights for every token that 64 texts get at once.
    slow = stages(large, replace(roomy, memory_rate=1e11), recipe(evaluation=spec))["benchmarks"]
    writing = 2 * 1319 * 256 / 64 * 2 * large.parameters / 1e11
    reading = 2 * large.forward(1838 * 60 + 1319 * 1280, context=20) / (0.5 * MACHINE.flops)
    assert slow.seconds == pytest.approx(writing + reading, rel=1e-6)
    assert slow.way.endswith(f", {writing / slow.seconds:.0%} of the time if so")


def test_what_fits_is_held_whole_and_what_does_not_is_read_pass_by_pass(large):
    roomy = replace(MACHINE, device=300 * GB, gpu=True)
    whole, offloaded = stages(large, roomy), stages(large)
    assert whole["verify"].memory == pytest.approx(large.weight_bytes, rel=0.01)
    assert whole["verify"].read == 2 * large.weight_bytes
    assert whole["benchmarks"].way.startswith("both in memory")
    assert offloaded["verify"].way == "9 passes, 86% from disk"  # all but 20 GB
    assert offloaded["verify"].read == pytest.approx((2 + 7 * 0.862) * large.weight_bytes, rel=0.01)
    assert offloaded["benchmarks"].way.startswith("layer by layer")
    assert offloaded["benchmarks"].read % large.weight_bytes == 0
    for need in offloaded.values():
        assert need.memory <= MACHINE.host


def test_scoring_reads_the_weights_once_or_once_a_round(large):
    once = stages(large)["scores"]
    assert once.read == large.weight_bytes
    states = 400 * 512 * 8192 * 2
    assert once.memory > states
    assert once.written == 0
    tight = stages(large, replace(MACHINE, host=6 * GB))["scores"]
    assert tight.written == states
    assert tight.memory < once.memory - states / 2
    rounds = stages(large, asked=recipe(schedule="iterative"))["scores"]
    assert rounds.read == 8 * large.weight_bytes


def test_leaving_out_takes_half_a_pass_for_every_sublayer_and_reads_the_weights_once_a_chunk(large):
    once, lost = stages(large)["scores"], stages(large, asked=recipe(metric="loss"))["scores"]
    heads = 2 * 400 * 512 * large.table * 82
    assert lost.flop == pytest.approx((1 + 81 / 2) * once.flop + heads)
    states, room = 400 * 512 * 8192 * 2 * 82, 0.5 * (20 * GB - 4 * large.table)
    assert lost.read == math.ceil(states / int(room)) * large.weight_bytes
    assert lost.memory <= MACHINE.host
    roomy = stages(large, replace(MACHINE, host=1000 * GB), recipe(metric="loss"))["scores"]
    assert roomy.read == large.weight_bytes
    assert "80, layer by layer" in roomy.way


def test_time_is_that_of_what_takes_longest(large):
    scores = stages(large)["scores"]
    assert scores.seconds == pytest.approx(scores.flop / (0.5 * MACHINE.flops))
    slow_disk = stages(large, replace(MACHINE, disk_rate=1e8))["scores"]
    assert slow_disk.seconds == pytest.approx(large.weight_bytes / 1e8)
    assert stages(large)["download"].seconds is None
    assert stages(large)["download"].written == large.weight_bytes


def test_healing_takes_three_passes_a_token_and_with_all_weights_an_optimizer(large):
    one, twice, whole = (
        stages(large, asked=recipe(heal=HealSpec(**asked)))["heal"]
        for asked in ({"steps": 10}, {"steps": 20}, {"steps": 10, "method": "full"})
    )
    assert twice.flop == 2 * one.flop
    assert whole.flop == one.flop * 4 / 3
    assert whole.memory > 8 * one.memory
    assert "heal" not in stages(large)
