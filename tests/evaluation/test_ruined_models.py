"""A model that lost nearly everything has exceptionally bad numbers; they are results, and a publish ends with them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from lm_eval.api.metrics import mean, mean_stderr, perplexity, stderr_for_metric
from safetensors.torch import load_file, save_file
from test_benchmark_results import compare as compare_results
from test_benchmark_results import results

from hubprune.cards.front_matter import model_index
from hubprune.cards.measured import benchmarks
from hubprune.commands.summary import benchmarks_table
from hubprune.core.artifacts import BenchmarkComparison, Estimate, MetricValue, PerplexityAnswers, perplexity_of
from hubprune.core.console import LARGEST
from hubprune.core.errors import EvaluationError
from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation import harness
from hubprune.evaluation.compare import as_ratio
from hubprune.evaluation.generation import Request, compare
from hubprune.evaluation.results import fits
from hubprune.evaluation.tasks import BoundedAggregation

PETS = [
    {"question": "What barks?", "choices": ["a dog", "a very quiet cat", "fish"], "answer": 0},
    {"question": "What purrs?", "choices": ["the dog", "my cat", "one old goldfish"], "answer": 1},
]
WORDS = [{"text": "one two three"}, {"text": "red green blue"}, {"text": "cold warm hot"}]
ACCURACY = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
ROLLING = ("word_perplexity", "byte_perplexity", "bits_per_byte")
MC2 = """
import numpy as np


def shares(doc, results):
    likelihoods = np.exp(np.array([value for value, _ in results]))
    with np.errstate(invalid="ignore"):
        return {"acc": likelihoods[doc["answer"]] / sum(likelihoods)}
"""


@pytest.fixture
def damaged(base_folder, tmp_path):
    """Copy the base with every weight of its head times a factor."""

    def times(factor: float) -> Path:
        folder = Path(shutil.copytree(base_folder, tmp_path / "damaged"))
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] *= factor
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return times


@pytest.fixture
def tasks(tmp_path, write_task):
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_task(folder, "pets", PETS)
    words = {"doc_to_text": "{{text.rsplit(' ', 1)[0]}}", "doc_to_target": "{{' ' + text.rsplit(' ', 1)[1]}}"}
    last = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}, ACCURACY]
    write_task(folder, "words", WORDS, output_type="loglikelihood", doc_to_choice=None, metric_list=last, **words)
    rolling = [{"metric": name, "aggregation": "bits_per_byte" if "bits" in name else "weighted_perplexity",
                "higher_is_better": False} for name in ROLLING]  # fmt: skip
    write_task(folder, "rolling", WORDS, output_type="loglikelihood_rolling", doc_to_choice=None, doc_to_text="",
               doc_to_target="{{text}}", metric_list=rolling)  # fmt: skip
    return folder


@pytest.fixture
def run(base_folder, tasks, reporter):
    def measured(pruned, *names, backend):
        spec = EvaluationSpec(tasks=names, include_path=str(tasks), backend=backend)
        folders = harness.ModelFolder(base_folder), harness.ModelFolder(pruned)
        return harness.run(*folders, spec=spec, seed=0, device="cpu", dtype="auto", reporter=reporter)

    return measured


@pytest.mark.parametrize("backend", ["shared", "hf"])
@pytest.mark.parametrize("factor", [50.0, 1e30])
def test_a_ruined_model_is_measured_to_the_end(damaged, run, backend, factor):
    found = run(damaged(factor), "pets", "words", "rolling", backend=backend)
    rows = {(row.task, row.metric): row for row in found.tasks}
    assert rows["words", "perplexity"].pruned == MetricValue(value=LARGEST)
    assert rows["words", "perplexity"].base.standard_error is not None
    assert rows["words", "perplexity"].paired.ratio.value == LARGEST
    assert rows["rolling", "word_perplexity"].pruned.is_bound
    bits = rows["rolling", "bits_per_byte"]
    assert not bits.pruned.is_bound
    assert bits.paired.difference.value == pytest.approx(bits.pruned.value - bits.base.value)
    written = found.model_dump_json()
    assert "Infinity" not in written
    assert BenchmarkComparison.model_validate(json.loads(written)) == found


@pytest.mark.parametrize("backend", ["shared", "hf"])
def test_logits_that_are_no_numbers_are_one_error(damaged, run, backend):
    with pytest.raises(EvaluationError, match="A log-likelihood of the pruned model is not finite"):
        run(damaged(math.inf), "pets", backend=backend)


def test_a_metric_that_is_no_number_for_the_ruined_model_alone_is_left_out_and_told(damaged, run, tasks, write_task):
    write_task(tasks, "shares", PETS)
    text = (tasks / "shares.yaml").read_text()
    (tasks / "shares.yaml").write_text(text + "process_results: !function mc2.shares\n")
    (tasks / "mc2.py").write_text(MC2)
    found = run(damaged(1e4), "pets", "shares", backend="shared")
    assert [row.task for row in found.tasks] == ["pets"]
    assert found.left_out == ("acc of the benchmark shares is left out, since it is no finite number: nan for pruned.",)


def test_free_text_of_a_ruined_model_is_compared(base_folder, damaged, quiet_reporter):
    request = Request(prompts=("one", "two three"), max_new_tokens=24)
    folders = harness.ModelFolder(base_folder), harness.ModelFolder(damaged(0.0), own_code=True)
    with harness.Pair(*folders, device="cpu", dtype="auto", reporter=quiet_reporter) as pair:
        found = compare(pair, request, reporter=quiet_reporter)
    assert "Infinity" not in found.model_dump_json()


# ---- by rule -----------------------------------------------------------------------------------------------------


def test_a_sum_that_overflows_is_the_bound_and_standard_errors_are_found_as_before():
    bounded = BoundedAggregation(perplexity)
    assert bounded([-1.0, -3.0]) == math.exp(2)
    assert bounded([-500.0]) == bounded([-1e9]) == LARGEST
    assert math.isfinite(stderr_for_metric(bounded, bootstrap_iters=100)([-1.0, -1e4, -340.0]))
    plain = stderr_for_metric(BoundedAggregation(mean), bootstrap_iters=100)
    assert plain([0.0, 1.0]) == mean_stderr([0.0, 1.0])
    assert math.isnan(BoundedAggregation(mean)([math.nan, 1.0]))


def test_a_ratio_is_exact_up_to_the_bound():
    found = as_ratio(Estimate(value=200.0, standard_error=2.0, low=196.0, high=400.0))
    assert found.value == math.exp(200)
    assert found.standard_error == 2 * math.exp(200)
    assert found.high == LARGEST
    beyond = as_ratio(Estimate(value=1e9, standard_error=2.0, low=1e8, high=1e10))
    assert (beyond.value, beyond.standard_error) == (LARGEST, None)
    assert as_ratio(Estimate(value=-1e9, standard_error=2.0)).value == 1 / LARGEST


def test_values_per_document_fit_a_perplexity_that_is_the_bound():
    assert fits([{("words", 0, "x"): -1e5}], scale="perplexity", expected=LARGEST)


def test_a_sweep_tells_of_the_same_perplexities():
    assert PerplexityAnswers(nats=(600.0,), tokens=(2,)).perplexity == perplexity_of(300)
    assert PerplexityAnswers(nats=(700.0,), tokens=(2,)).perplexity is None


# ---- for readers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison():
    both = [results(**{"acc,none": 0.5, "perplexity,none": value}) for value in (12.5, LARGEST)]
    rows = [row.model_copy(update={"dataset": "acme/rows"}) for row in compare_results(*both)]
    ratio = as_ratio(Estimate(value=1234.5, standard_error=1.0, low=60.0, high=9e9)).model_dump()
    told = {"ratio": ratio, "test": "t", "p_value": 0.01, "mark": "worse", "holm_p_value": 0.01}
    rows[1] = type(rows[1]).model_validate({**rows[1].model_dump(), "higher_is_better": False, "paired": told})
    return BenchmarkComparison(
        tasks=tuple(rows), limit=None, batch_size=None, dtype="float32", device="cpu", seed=0, lm_eval="0.4.13",
        seconds=1.0,
    )  # fmt: skip


def test_the_card_writes_a_bound_as_one_and_huge_numbers_with_a_power_of_ten(comparison):
    row = benchmarks(comparison).table.rows[1]
    assert row[1:] == ("worse", "12.500", "> 1e+150", "> +1e+150 % (+1.14e+28 to > +1e+150)")


def test_the_terminal_writes_the_same(comparison):
    line = benchmarks_table(comparison).splitlines()[2]
    assert " ".join(line.split()[3:]) == "12.5000 > 1e+150 +1.14e+28 to > +1e+150 % > +1e+150 % worse"


def test_a_bound_is_no_value_of_the_front_matter(comparison):
    (result,) = model_index(comparison, name="x")[0]["results"]
    assert [metric["name"].split()[0] for metric in result["metrics"]] == ["acc"]


def test_a_bound_without_values_per_document_has_no_relative_change(comparison):
    row = comparison.tasks[1].model_copy(update={"paired": None})
    assert row.percent is None
    tiny = row.model_copy(update={"base": MetricValue(value=1e-300), "pruned": MetricValue(value=1e100)})
    assert tiny.percent is None
