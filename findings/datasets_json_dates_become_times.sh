#!/usr/bin/env bash
# Versions: datasets 5.2.0, lm-eval 0.4.13.
# Behaviour: load_dataset("json") makes a column of texts a column of timestamps when each text reads like a date of
#   ISO 8601, without a word. lm-eval, which loads local task files this way, then shows and expects such an answer
#   with a time of day. One other text in the file, and all stay texts.
# Seen: answers "1969-07-20" and so on: target "1969-07-20 00:00:00", in the few-shot example too; a model that gives
#   each answer as the file has it gets exact_match 0.0. With one more row, whose answer is "unknown": 1.0.
# Why it matters: the same rows score 0 or 1 by what else is in the file, so that a filtered or a split task file
#   measures something else. A model that is good at copying the example gets points for a time nobody wrote.
# Exit: 0 while this happens, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile lm-eval==0.4.13 datasets==5.2.0

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" venv/bin/python - 2>log.txt <<'PY'
import json
from pathlib import Path

import lm_eval
from datasets import load_dataset
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

DATES = {
    "first step on the Moon": "1969-07-20",
    "fall of the Berlin Wall": "1989-11-09",
    "first flight of the Concorde": "1969-03-02",
    "sinking of the Titanic": "1912-04-15",
}


class Knows(LM):
    """A model that gives each answer as it is in the file."""

    def __init__(self, answers: dict[str, str]) -> None:
        super().__init__()
        self.answers = answers
        self.prompt = ""

    def generate_until(self, requests, **kwargs):
        self.prompt = requests[0].args[0]
        return [self.answers[request.args[0].split("\n\n")[-1].removesuffix(":")] for request in requests]

    def loglikelihood(self, requests, **kwargs):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, **kwargs):
        raise NotImplementedError


def evaluate(name: str, answers: dict[str, str]) -> tuple[str, float]:
    """Return the type of the column and the exact_match of a model that knows every answer."""
    file = Path(f"{name}.jsonl")
    file.write_text("".join(json.dumps({"event": event, "day": day}) + "\n" for event, day in answers.items()))
    kind = load_dataset("json", data_files=str(file), split="train").features["day"].dtype
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
        "output_type": "generate_until",
        "test_split": "test",
        "num_fewshot": 1,
        "doc_to_text": "{{event}}:",
        "doc_to_target": "{{day}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    model = Knows(answers)
    task = ConfigurableTask(config=config)
    results = lm_eval.simple_evaluate(model, tasks=[task], bootstrap_iters=0, log_samples=True)
    score = results["results"][name]["exact_match,none"]
    print(f"{name}: the column is {kind}, target {results['samples'][name][0]['target']!r}, exact_match {score}")
    print(f"    the first prompt: {model.prompt!r}")
    return kind, score


only = evaluate("only_dates", DATES)
mixed = evaluate("one_unknown", {**DATES, "birth of Homer": "unknown"})
if not only[0].startswith("timestamp") or only[1] != 0.0 or mixed != ("string", 1.0):
    raise SystemExit("changed: dates in JSON are read in another way now")
PY
