"""What a timing says of two models whose speed is known: fake ones that move a fake clock."""

from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from hubprune.core.artifacts import Interval, SpeedMeasured
from hubprune.core.errors import EvaluationError
from hubprune.evaluation import speed
from hubprune.evaluation.models import LoadedModel, load_model
from hubprune.evaluation.speed import WARM_UPS, SpeedSpec, answer, fit_depths, inputs, measure

SPEC = SpeedSpec(depth=100, new_tokens=8, rounds=20, batch_size=2)


class FakeClock:
    """Moves only when somebody works."""

    def __init__(self):
        self.now = 0.0

    def mark(self):
        return self.now

    def seconds(self, marks):
        return [end - start for start, end in pairwise(marks)]


class FakeModel:
    """Takes a second per column of its input, divided by its speed, and remembers what it was given."""

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=32))

    def __init__(self, clock, *, speed):
        self.clock, self.speed, self.seen = clock, speed, []

    def __call__(self, ids, *, past_key_values=None, use_cache, logits_to_keep=0):
        self.clock.now += ids.shape[1] / self.speed
        self.seen.append((tuple(ids.shape), past_key_values, use_cache))
        held = (past_key_values or 0) + ids.shape[1]
        return SimpleNamespace(past_key_values=held if use_cache else None, logits=torch.zeros(ids.shape[0], 1, 32))


def timed(clock, *, base=10.0, pruned=12.5, spec=SPEC, **options):
    models = [LoadedModel(FakeModel(clock, speed=speed), None, "cpu", "float32") for speed in (base, pruned)]
    entries = [lambda model=model: nullcontext(model) for model in models]
    rows = measure(*entries, spec, clock=clock, **options)
    return {row.measure: row for row in rows}, [model.model for model in models]


def test_every_measure_of_models_of_known_speed():
    told = []
    rows, _ = timed(FakeClock(), advance=told.append)
    assert list(rows) == ["prefill", "first-token", "decode", "generation"]
    assert told == [1] * (SPEC.rounds + WARM_UPS)
    for row in rows.values():
        assert row.ratio.median == pytest.approx(1.25)
        assert (row.control.low, row.control.high) == pytest.approx((1.0, 1.0))
        assert (row.rounds, row.depth, row.new_tokens, row.batch_size) == (20, 100, 8, 2)
    assert rows["prefill"].base_tokens_per_second == pytest.approx(2 * 10.0)
    assert rows["decode"].tokens_per_second == pytest.approx(2 * 12.5)
    assert rows["first-token"].tokens_per_second is None
    assert rows["first-token"].base_seconds == pytest.approx(100 / 10.0)
    assert rows["generation"].base_seconds == pytest.approx(108 / 10.0)
    assert rows["generation"].base_tokens_per_second == pytest.approx(2 * 8 / 10.8)


def test_without_a_prompt_only_decoding_is_timed_and_the_cache_starts_empty():
    spec = SpeedSpec(depth=0, new_tokens=3, rounds=20)
    rows, (base, _) = timed(FakeClock(), spec=spec)
    assert list(rows) == ["decode"]
    assert rows["decode"].base_seconds == pytest.approx(3 / 10.0)
    assert base.seen[:4] == [((1, 1), None, False), ((1, 1), None, True), ((1, 1), 1, True), ((1, 1), 2, True)]


def test_a_sample_warms_up_untimed_fills_the_cache_and_decodes_one_by_one():
    _, (base, pruned) = timed(FakeClock())
    per_sample = 1 + 1 + SPEC.new_tokens
    assert base.seen[:per_sample] == [
        ((2, 1), None, False), ((2, 100), None, True), *(((2, 1), 100 + n, True) for n in range(8)),
    ]  # fmt: skip
    assert len(base.seen) == 2 * len(pruned.seen) == 2 * per_sample * (SPEC.rounds + WARM_UPS)


# ---- what can be said --------------------------------------------------------------------------------------------


def measured(ratio, control=(1.0, 0.99, 1.01)):
    def interval(values):
        return Interval(median=values[0], low=values[1], high=values[2])

    return SpeedMeasured(
        ratio=interval(ratio), control=interval(control), seconds=1.0, base_seconds=1.2, tokens_per_second=12.0,
        base_tokens_per_second=10.0, depth=64, new_tokens=8, batch_size=1, round_seconds=((1.2, 1.2, 1.0),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "control", "verdict"),
    [
        ((1.2, 1.1, 1.3), (1.0, 0.99, 1.01), "faster"),
        ((0.8, 0.7, 0.9), (1.0, 0.99, 1.01), "slower"),
        ((1.02, 0.98, 1.06), (1.0, 0.99, 1.01), "not resolved"),
        ((1.05, 1.0, 1.1), (1.0, 0.99, 1.01), "not resolved"),  # an end at 1.0 is inside
        ((0.95, 0.9, 1.0), (1.0, 0.99, 1.01), "not resolved"),
        ((1.2, 1.1, 1.3), (1.0, 1.0, 1.0), "faster"),
        ((1.2, 1.1, 1.3), (1.05, 1.02, 1.08), "control failed"),
        ((1.2, 1.1, 1.3), (0.95, 0.92, 0.98), "control failed"),
        ((0.8, 0.7, 0.9), (0.95, 0.92, 0.98), "control failed"),
        ((1.02, 0.98, 1.06), (1.05, 1.02, 1.08), "control failed"),
    ],
)
def test_a_ratio_is_resolved_where_its_interval_leaves_out_one_and_the_control_does_not(ratio, control, verdict):
    found = measured(ratio, control)
    assert found.verdict == verdict
    assert (found.sdr(-1.0, standard_error=None) is None) == (verdict != "faster")


# He et al. 2024, tables 1 and 2: average of the base and of the pruned model, speed-up, SDR as printed.
PUBLISHED = [
    ("Llama-2-13B, 4 blocks", 68.2, 65.8, 1.11, 0.22), ("Llama-2-13B, 8 blocks", 68.2, 60.7, 1.24, 0.31),
    ("Llama-2-13B, 4 MLPs", 68.2, 66.9, 1.04, 0.32), ("Llama-2-13B, 8 MLPs", 68.2, 61.9, 1.08, 0.79),
    ("Llama-3-8B, 4 attentions", 67.6, 67.4, 1.07, 0.03), ("Llama-3-8B, 12 attentions", 67.6, 65.8, 1.26, 0.07),
    ("Llama-3-8B, 16 attentions", 67.6, 55.4, 1.38, 0.32), ("Llama-3-8B, 20 attentions", 67.6, 38.6, 1.52, 0.56),
    ("Llama-3-70B, 4 attentions", 75.1, 75.2, 1.04, -0.03), ("Llama-3-70B, 48 attentions", 75.1, 71.0, 1.55, 0.07),
]  # fmt: skip


@pytest.mark.parametrize(("base", "pruned", "speedup", "printed"), [row[1:] for row in PUBLISHED])
def test_sdr_is_that_of_the_paper(base, pruned, speedup, printed):
    found = measured((speedup, speedup - 0.01, speedup + 0.01)).sdr(pruned - base, standard_error=0.0)
    # Averages are printed to a tenth of a point and SDR to two digits, cut or rounded.
    assert found.value == pytest.approx(printed, abs=0.01)
    assert found.low <= found.value <= found.high


def test_the_interval_of_sdr_spans_what_change_and_speed_up_allow_together():
    found = measured((1.20, 1.10, 1.40)).sdr(-2.0, standard_error=0.5)
    assert found.value == pytest.approx(2 / 20)
    assert (found.low, found.high) == pytest.approx(((2 - 0.98) / 40, (2 + 0.98) / 10))
    # The change's own interval wins over one that is made of its standard error.
    own = measured((1.20, 1.10, 1.40)).sdr(-2.0, standard_error=0.5, ends=(-4.0, -1.0))
    assert (own.low, own.high) == (pytest.approx(1.0 / 40), pytest.approx(4.0 / 10))
    alone = measured((1.20, 1.10, 1.40)).sdr(-2.0, standard_error=None)
    assert (alone.low, alone.high) == pytest.approx((2 / 40, 2 / 10))


@given(st.floats(-10, 10), st.floats(0, 3), st.floats(1.01, 2), st.floats(0, 1), st.floats(0, 1))
def test_no_change_and_speed_up_within_their_intervals_give_an_sdr_outside_its_own(change, error, low, more, share):
    high = low + more
    found = measured(((low + high) / 2, low, high)).sdr(change, standard_error=error)
    inside = (-change + 1.96 * error * (2 * share - 1)) / (100 * (low + share * (high - low) - 1))
    assert found.low - 1e-9 <= inside <= found.high + 1e-9


# ---- depths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depths", "new_tokens", "limit", "expected"),
    [
        ((0, 512, 2048), 32, 4096, (0, 512, 2048)),
        ((0, 512, 2048), 32, 512, (0, 480)),
        ((2048, 0), 32, None, (0, 2048)),
        ((512,), 32, 32, (0,)),
    ],
)
def test_depths_leave_room_for_the_new_tokens(depths, new_tokens, limit, expected):
    assert fit_depths(depths, new_tokens=new_tokens, max_positions=limit) == expected


def test_more_new_tokens_than_positions_are_refused_with_the_most():
    with pytest.raises(EvaluationError, match="16 positions, fewer than 17") as caught:
        fit_depths((0,), new_tokens=17, max_positions=16)
    assert caught.value.hint == "Pass --new-tokens 16 or less."


# ---- real models -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(base_folder):
    return load_model(base_folder, device="cpu", dtype="auto", trust_remote_code=False)


@pytest.mark.parametrize("depth", [0, 1, 40])
def test_the_cache_of_a_real_model_holds_the_prompt_and_all_new_tokens(model, depth):
    spec, told = SpeedSpec(depth=depth, new_tokens=5, rounds=20, batch_size=3), []
    with torch.inference_mode():
        cache = answer(model, inputs(model, spec), spec, between=lambda: told.append(None))
    assert cache.get_seq_length() == depth + 5
    assert cache.layers[0].keys.shape[0] == 3
    assert len(told) == (3 if depth else 1)


def test_a_prompt_has_fixed_tokens_of_the_vocabulary(model):
    ids = inputs(model, SpeedSpec(depth=600, new_tokens=1, rounds=20, batch_size=2))
    assert ids.shape == (2, 600)
    assert 5 <= int(ids.min()) <= int(ids.max()) < 258
    assert torch.equal(ids[0], ids[1])


def test_memory_that_runs_out_is_told_with_the_shape(model, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(LlamaForCausalLM, "forward", fail)
    entry = lambda: nullcontext(model)  # noqa: E731
    with pytest.raises(EvaluationError, match="out of memory at depth 100 and batch size 2") as caught:
        measure(entry, entry, SPEC)
    assert "smaller batch size" in caught.value.hint


# ---- clocks ------------------------------------------------------------------------------------------------------


def test_a_gpu_is_timed_by_its_own_events_and_waited_for_once(monkeypatch):
    waited = []

    class Event:
        made = 0

        def __init__(self, *, enable_timing):
            assert enable_timing
            self.number = Event.made = Event.made + 1

        def record(self, stream):
            assert stream == "stream of cuda:1"

        def synchronize(self):
            waited.append(self.number)

        def elapsed_time(self, other):
            assert waited == [4]
            return 250.0 * (other.number - self.number)  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    clock = speed.clock_of("cuda:1")
    assert clock.seconds([clock.mark() for _ in range(4)]) == [0.25] * 3
    assert waited == [4]


def test_elsewhere_the_wall_clock_is_read_once_all_work_is_done(monkeypatch):
    done = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: done.append("mps"))
    clock = speed.clock_of("mps")
    seconds = clock.seconds([clock.mark(), clock.mark()])
    assert done == ["mps", "mps"]
    assert len(seconds) == 1
    assert seconds[0] >= 0
    speed.clock_of("cpu").mark()
    assert len(done) == 2
