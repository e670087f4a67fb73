"""Results go to the leaderboards of registered benchmarks, and only those that belong there."""

from __future__ import annotations

from types import SimpleNamespace

import made
import pytest
import yaml

from hubprune.cards.front_matter import EVAL_RESULTS, add_eval_results
from hubprune.core.errors import HubError
from hubprune.workflows.publish.stages import leaderboards

EVAL_YAML = (
    "name: GSM8K\ntasks:\n- {id: gsm8k, config: main, split: test}\n- {id: other, config: socratic, split: test}\n"
)


class Hub:
    """A session of a Hub on which some data sets are registered."""

    endpoint = "https://hub.example.org"

    def __init__(self, folder, *, official=("openai/gsm8k",), specification=EVAL_YAML):
        self.file, self.official, self.asked = folder / "spec.yaml", official, 0
        self.file.write_text(specification, encoding="utf-8")

    def ask(self, question, **_):
        self.asked += 1
        return question(self)

    def list_datasets(self, *, benchmark):
        assert benchmark == "official"
        return [SimpleNamespace(id=name) for name in self.official]

    def hf_hub_download(self, name, file, *, repo_type):
        assert (name, file, repo_type) == ("openai/gsm8k", "eval.yaml", "dataset")
        return str(self.file)


def gsm8k(**changes):
    row = made.task("gsm8k", "exact_match", (0.3, 0.01), (0.2125, 0.01), dataset="openai/gsm8k", config="main")
    whole = {"documents": 2376, "filter": "strict-match", "num_fewshot": 5}
    return made.benchmarks(tasks=(row.model_copy(update={**whole, **changes}),), limit=None)


def written(folder, hub, comparison, *, warnings=None):
    warned = []
    add_eval_results(folder, comparison, tasks=leaderboards(comparison, session=hub, warn=warned.append))
    assert [warnings in warning for warning in warned] == ([True] if warnings else [])
    path = folder / EVAL_RESULTS
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None


def test_a_whole_registered_benchmark_is_listed_with_how_it_was_measured(tmp_path):
    assert written(tmp_path, Hub(tmp_path), gsm8k()) == [
        {
            "dataset": {"id": "openai/gsm8k", "task_id": "gsm8k", "revision": made.DATA_COMMIT},
            "value": 0.2125,
            "notes": "lm-eval 0.4.13 gsm8k, exact_match, strict-match as a share from 0 to 1, 5-shot",
        }
    ]


@pytest.mark.parametrize(
    "changes",
    [{"documents": 500}, {"dataset": None}, {"dataset_config": "other"}, {"split": "train"}, {"metric": "bleu"}],
)
def test_what_is_not_exactly_the_registered_task_is_not_listed(tmp_path, changes):
    assert written(tmp_path, Hub(tmp_path), gsm8k(**changes)) is None


@pytest.mark.parametrize(
    "hub",
    [
        {"official": ()},
        {"specification": "tasks: 3"},
        {"specification": "- x"},
        {"specification": ": :\n  :"},
        {"specification": EVAL_YAML.replace("socratic", "main")},
    ],
)
def test_a_data_set_that_is_not_registered_or_unclear_is_not_listed(tmp_path, hub):
    assert written(tmp_path, Hub(tmp_path, **hub), gsm8k()) is None


def test_a_hub_that_does_not_answer_costs_nothing_and_one_on_loopback_is_not_asked(tmp_path):
    hub = Hub(tmp_path)
    hub.ask = lambda *_, **__: (_ for _ in ()).throw(HubError("It is down."))
    assert written(tmp_path, hub, gsm8k(), warnings="It is down. Publish again with --force") is None
    local = Hub(tmp_path)
    local.endpoint = "http://127.0.0.1:80"
    assert written(tmp_path, local, gsm8k()) is None
    assert written(tmp_path, local, None) is None
    assert local.asked == 0
