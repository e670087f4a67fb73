"""What people read of a timing, and what a request accepts."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from hubprune.cli import app
from hubprune.commands.measured_lines import speed_lines
from hubprune.core.artifacts import (
    BenchmarkChange,
    Environment,
    Interval,
    KvCacheMeasured,
    LargestBatch,
    PeakMemory,
    SpeedMeasured,
    SpeedReport,
    SpeedRow,
)
from hubprune.core.console import Reporter
from hubprune.core.errors import RecipeError
from hubprune.core.requests import SpeedRequest
from hubprune.evaluation import speed as in_turns
from hubprune.evaluation.models import LoadedModel
from hubprune.evaluation.speed import SpeedSpec
from hubprune.workflows import speed as timing
from hubprune.workflows.speed import benchmark_change, check_request, parse_depths
from hubprune.workflows.verify import PrunedFolder

STEADY = (1.0, 0.99, 1.01)


def row(measure, ratio, *, control=STEADY, depth=512, pace=(250.0, 300.0), change=None):
    def interval(values):
        return Interval(median=values[0], low=values[1], high=values[2])

    base, pruned = pace
    measured = SpeedMeasured(
        measure=measure, ratio=interval(ratio), control=interval(control), seconds=0.01, base_seconds=0.012,
        tokens_per_second=pruned, base_tokens_per_second=base, depth=depth, new_tokens=32, batch_size=4,
        round_seconds=((0.012, 0.012, 0.01),) * 20,
    )  # fmt: skip
    sdr = measured.sdr(change, standard_error=0.5) if change is not None else None
    return SpeedRow(measured=measured, verdict=measured.verdict, sdr=sdr)


def report(**changes):
    environment = Environment(
        hubprune="0", python="3", platform="Linux", machine="One GPU", threads=8,
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
    )  # fmt: skip
    rows = (
        row("decode", (1.02, 0.98, 1.06), depth=0, change=-2.0),
        row("prefill", (0.9, 0.85, 0.95), pace=(12345.6, 11111.1), change=-2.0),
        row("first-token", (1.2, 1.1, 1.3), control=(1.05, 1.02, 1.08), pace=(None, None), change=-2.0),
        row("decode", (1.2, 1.1, 1.4), change=-2.0),
        row("generation", (1.1, 1.05, 1.15), pace=(9.876, 10.864), change=-2.0),
    )
    values = {
        "base": "acme/base", "base_commit": "0123456789abcdef", "pruned": "./pruned", "pruned_commit": None,
        "dropped": (("attn", 3), ("attn", 5), ("mlp", 4)), "rows": rows,
        "kv_cache": KvCacheMeasured(
            tokens=512, base=1048576, pruned=786432, base_computed=1048576, pruned_computed=786432
        ),
        "peak_memory": PeakMemory(
            how="allocator", base=8_000_000_000, pruned=7_600_000_000, depth=512, new_tokens=32, batch_size=4
        ),
        "largest_batch": LargestBatch(base=100, pruned=4096, depth=512, new_tokens=32, limit=4096),
        "benchmarks": BenchmarkChange(points=-2.0, standard_error=0.5, tasks=("arc_easy", "piqa")),
        "environment": environment, "device": "cuda:0", "dtype": "bfloat16", "threads": 4, "attention": "sdpa",
        "seed": 0, "notes": ("One thing.", "Another."),
    }  # fmt: skip
    return SpeedReport(**{**values, **changes})


TEXT = """\
base         acme/base at 0123456789ab
pruned       ./pruned, without attention 3, 5 and MLP 4
machine      One GPU, cuda:0, 4 CPU threads
computed in  bfloat16, attention sdpa, torch 2.13.0, transformers 5.23.0
shape        batch size 4, 32 new tokens, 20 rounds in random order

depth  measure               base        pruned               ratio             control                              SDR
0      decoding         250 tok/s     300 tok/s  1.02x [0.98, 1.06]        [0.99, 1.01]  not resolved                n/a
512    prompt        12,346 tok/s  11,111 tok/s  0.90x [0.85, 0.95]        [0.99, 1.01]        slower                n/a
512    first token          12 ms         10 ms  1.20x [1.10, 1.30]  [1.02, 1.08] fails  not resolved                n/a
512    decoding         250 tok/s     300 tok/s  1.20x [1.10, 1.40]        [0.99, 1.01]        faster  0.10 [0.03, 0.30]
512    whole answer    9.88 tok/s    10.9 tok/s  1.10x [1.05, 1.15]        [0.99, 1.01]        faster  0.20 [0.07, 0.60]

depth: tokens in the KV cache when decoding starts; control: the base against itself
ratio: the base's time over the pruned model's, above 1 is faster; median of the rounds [95 % interval];
  under noise it may differ from what the two medians beside it come to
tok/s: over the batch; of a whole answer, new tokens over the time of prompt and decoding
SDR: points lost per percent of speed-up; 2 tasks changed by -2.00 ± 0.50 points

                                                      base        pruned     change
KV cache per token, counted                        2,048 B       1,536 B    -25.0 %
KV cache per token, from config.json               2,048 B       1,536 B    -25.0 %
peak memory, weights and GPU allocator, depth 512  8.00 GB       7.60 GB     -5.0 %
largest batch, depth 512 + 32 tokens                   100  4096 or more  +3996.0 %

note: One thing.
note: Another."""


def test_the_whole_text_of_a_timing():
    assert speed_lines(report()) == TEXT


def test_a_report_is_read_back_as_it_was_written():
    assert SpeedReport.model_validate_json(report().model_dump_json()) == report()


def test_what_was_not_measured_has_no_line():
    text = speed_lines(report(peak_memory=None, largest_batch=None, benchmarks=None, notes=()))
    for words in ("peak memory", "largest batch", "SDR:", "note:"):
        assert words not in text
    assert text == text.rstrip()


# ---- requests ----------------------------------------------------------------------------------------------------


def test_depths_come_once_and_ascending():
    assert parse_depths(" 2048, 0,512,0 ") == (0, 512, 2048)


@pytest.mark.parametrize("text", ["", "a", "-1", "1.5", "1,,2", "0:512", "٣", "99999999999", "99999999"])
def test_depths_that_are_none_are_refused(text):
    with pytest.raises(RecipeError, match="--depths"):
        parse_depths(text)


def test_the_largest_batch_is_not_searched_for_on_a_cpu():
    with pytest.raises(RecipeError, match="on a GPU only"):
        check_request(SpeedRequest("me/pruned", largest_batch=True, device="cpu"))


def test_a_report_that_cannot_be_written_is_refused_beforehand(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="Cannot write"):
        check_request(SpeedRequest("me/pruned", device="cpu", report=tmp_path / "file" / "speed.json"))


def test_after_ctrl_c_nothing_is_promised_that_does_not_happen(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "measure_speed", interrupt)
    ended = CliRunner().invoke(app, ["speed", "a", "b"])
    assert ended.exit_code == 130
    assert "nothing was kept" in " ".join(ended.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "base", "pruned"),
    [(["me/pruned"], None, "me/pruned"), (["./base", "./pruned"], "./base", "./pruned")],
)
def test_one_name_is_that_of_the_pruned_checkpoint_and_two_begin_with_the_base(monkeypatch, arguments, base, pruned):
    asked = {}
    found = PrunedFolder(name=pruned, commit=None, folder=Path(), config={})
    monkeypatch.setattr(timing, "find_pruned", lambda name, **_: asked.update(pruned=name) or found)
    monkeypatch.setattr(timing, "refuse_foreign_code", lambda _, trust: asked.update(trust=trust))
    monkeypatch.setattr(
        timing, "find_base", lambda name, *_, **__: asked.update(base=name) or SimpleNamespace(config={})
    )
    for name in ("check_pair", "make_runnable", "benchmark_change"):
        monkeypatch.setattr(timing, name, lambda *_: None)
    monkeypatch.setattr(timing, "time_pair", lambda *_, request, **__: asked.update(request=request) or report())
    ended = CliRunner().invoke(app, ["speed", *arguments, "--json", "--rounds", "30", "--depths", "7,3"])
    assert ended.exit_code == 0, ended.output
    assert SpeedReport.model_validate_json(ended.stdout) == report()
    assert (asked["pruned"], asked["base"], asked["trust"]) == (pruned, base, "own")
    assert (asked["request"].rounds, parse_depths(asked["request"].depths)) == (30, (3, 7))


class Moved:
    """A model that remembers where it was moved."""

    def __init__(self, name, moves):
        self.name, self.moves = name, moves

    def to(self, device):
        self.moves.append((self.name, device))


def test_the_largest_batch_is_searched_for_with_one_model_on_the_device_at_a_time(monkeypatch):
    moves = []
    base, pruned = (LoadedModel(Moved(name, moves), None, "cuda:0", "bfloat16") for name in ("base", "pruned"))
    found = {"base": 12, "pruned": 17}
    monkeypatch.setattr(
        in_turns, "largest_batch", lambda model, **_: moves.append(model.model.name) or found[model.model.name]
    )
    pair = timing._Pair(None, None, None, SpeedRequest("me/pruned"), Reporter(quiet=True), None)
    seen = pair._largest(base, pruned, SpeedSpec(depth=512, new_tokens=32, rounds=20))
    assert (seen.base, seen.pruned, seen.depth) == (12, 17, 512)
    assert moves == [
        ("pruned", "cpu"), ("base", "cuda:0"), "base", ("base", "cpu"), ("pruned", "cuda:0"), "pruned"
    ]  # fmt: skip


# ---- benchmarks of a manifest ------------------------------------------------------------------------------------


def task(name, base, pruned, *, metric="acc"):
    values = (
        {"value": value, "standard_error": error} for value, error in zip((base, pruned), (0.03, 0.04), strict=True)
    )
    return {
        "task": name, "metric": metric, "higher_is_better": True, "documents": 10, "documents_available": 10,
        "num_fewshot": 0, "version": "1", "dataset": None, "dataset_config": None, "dataset_commit": None,
        "split": "test", "base": next(values), "pruned": next(values),
    }  # fmt: skip


def manifest(folder, tasks, **more):
    told = {"limit": None, "batch_size": 8, "dtype": "float32", "device": "cpu", "seed": 0, "lm_eval": "0.4.13"}
    (folder / "hubprune.json").write_text(json.dumps({"benchmarks": {**told, "tasks": tasks, **more}}))
    return benchmark_change(folder)


def test_the_mean_change_is_that_of_the_main_metrics_that_are_shares(tmp_path):
    rows = [
        task("a", 0.5, 0.4),
        task("a", 0.9, 0.1, metric="acc_norm"),
        task("b", 0.5, 0.54),
        task("c", 9, 8, metric="perplexity"),
    ]
    found = manifest(tmp_path, rows)
    assert found.tasks == ("a", "b")
    assert found.points == pytest.approx((-10 + 4) / 2)
    assert found.standard_error is None


def test_the_error_of_the_mean_is_the_paired_one_of_the_manifest(tmp_path):
    change = {"value": -3.0, "standard_error": 0.7, "low": -4.4, "high": -1.6}
    found = manifest(tmp_path, [task("a", 0.5, 0.47)], mean_change=change)
    assert (found.points, found.standard_error) == (-3.0, 0.7)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"benchmarks": null}', '{"benchmarks": [1]}', '{"benchmarks": {}}'])
def test_a_manifest_without_benchmarks_that_can_be_understood_has_none(text, tmp_path):
    assert benchmark_change(tmp_path) is None
    (tmp_path / "hubprune.json").write_text(text)
    assert benchmark_change(tmp_path) is None
    assert manifest(tmp_path, [task("c", 9, 8, metric="word")]) is None
