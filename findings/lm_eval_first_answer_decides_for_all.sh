#!/usr/bin/env bash
# Versions: lm-eval 0.4.13, datasets 5.2.0.
# Behaviour: when doc_to_target is a template, and what it gives begins with "[" and ends with "]", lm-eval tries to
#   read it as a Python list. When that happens to the first document, the whole task is one of several right answers a
#   document: where the answer is a text, each of its letters is then right, and the text itself is wrong.
# Seen: eight documents, a model that gives every answer as it is in the file. exact_match is 1.0 while the list
#   "[3, 1]" is the third answer, and 0.0 when it is the first; a model that gives only the first letter of every answer
#   gets 0.0 and 0.875. The log says target "Paris", answer "Paris", exact_match 0.0.
# Why it matters: tasks on code, arithmetic and structured output have such answers. A selection of documents, or
#   another order of them, turns right answers into wrong ones, for the base model and the pruned one alike.
# Exit: 0 while lm-eval does this, otherwise not.
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
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

ANSWERS = ["Paris", "42", "[3, 1]", "blue", "7.5", "north", "H2O", "Bach"]
LIST_FIRST = sorted(ANSWERS, key=lambda answer: answer != "[3, 1]")


class Recites(LM):
    """A model that gives the answers that it was made with."""

    def __init__(self, answers: list[str]) -> None:
        super().__init__()
        self.answers = answers

    def generate_until(self, requests, **kwargs):
        return [self.answers[int(request.args[0].split()[-1])] for request in requests]

    def loglikelihood(self, requests, **kwargs):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, **kwargs):
        raise NotImplementedError


def evaluate(expected: list[str], given: list[str]) -> tuple[float, list[dict]]:
    """Return the score of a model that gives `given`, and the log."""
    rows = [{"question": f"Document {i}", "answer": answer} for i, answer in enumerate(expected)]
    Path("test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": "answers",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(Path("test.jsonl").resolve())}},
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    task = ConfigurableTask(config=config)
    results = lm_eval.simple_evaluate(Recites(given), tasks=[task], bootstrap_iters=0, log_samples=True)
    return results["results"]["answers"]["exact_match,none"], results["samples"]["answers"]


scores = {}
for order, expected in (("as it is", ANSWERS), ("the list first", LIST_FIRST)):
    for kind, given in (("answer", expected), ("first letter", [answer[0] for answer in expected])):
        score, samples = evaluate(expected, given)
        scores[order, kind] = score
        print(f"order {order}, the model gives every {kind}: exact_match {score}")
        sample = next(sample for sample in samples if sample["target"] == "Paris")
        logged = sample["target"], sample["resps"][0][0], sample["exact_match"]
        print("    logged: target {!r}, answer {!r}, exact_match {}".format(*logged))
if list(scores.values()) != [1.0, 0.0, 0.0, 0.875]:
    raise SystemExit("changed: a list as the first answer has another effect now")
PY
