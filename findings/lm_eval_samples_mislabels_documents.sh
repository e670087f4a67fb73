#!/usr/bin/env bash
# Versions: lm-eval 0.4.13, datasets 5.2.0.
# Behaviour: simple_evaluate(samples={task: ids}) evaluates the chosen documents in the order of the data set, but
#   logs the ids in the order given: with [7, 3] the log says that document 7 is what is document 3. The few-shot
#   examples are drawn by the place in the run and not by the document, so that prompts differ from those of a run
#   over everything.
# Seen: samples [7, 3]: (doc_id 7, "Q3"), (doc_id 3, "Q7"). Neither [7, 3] nor [3, 7] gives one prompt of the full
#   run; limit=8 gives the full run's first eight.
# Why it matters: `samples` is the way to look closer at documents that a run got wrong. They are asked with other
#   examples than in that run, and joining the two logs by doc_id compares different questions.
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


class Constant(LM):
    """A model that scores an answer by its length: what it says does not matter here."""

    def loglikelihood(self, requests, **kwargs):
        return [(-float(len(request.args[1])), False) for request in requests]

    def loglikelihood_rolling(self, requests, **kwargs):
        raise NotImplementedError

    def generate_until(self, requests, **kwargs):
        raise NotImplementedError


def lines(letter: str) -> str:
    return "".join(json.dumps({"question": f"{letter}{i}", "answer": i % 2}) + "\n" for i in range(20))


Path("train.jsonl").write_text(lines("T"))
Path("test.jsonl").write_text(lines("Q"))
CONFIG = {
    "task": "tiny",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {split: str(Path(f"{split}.jsonl").resolve()) for split in ("train", "test")}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "train",
    "num_fewshot": 2,
    "doc_to_text": "{{question}}:",
    "doc_to_target": "answer",
    "doc_to_choice": ["no", "yes"],
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def evaluate(**selection) -> list[tuple[int, str, str]]:
    """Return what the log says of each document: its doc_id, its question, its prompt."""
    task = ConfigurableTask(config=dict(CONFIG))
    results = lm_eval.simple_evaluate(Constant(), tasks=[task], bootstrap_iters=0, log_samples=True, **selection)
    prompts = []
    for sample in results["samples"]["tiny"]:
        first = sample["arguments"]["gen_args_0"] if isinstance(sample["arguments"], dict) else sample["arguments"][0]
        prompt = first["arg_0"] if isinstance(first, dict) else first[0]
        prompts.append((sample["doc_id"], sample["doc"]["question"], prompt))
    return prompts


full = evaluate()
first_eight = evaluate(limit=8)
print("limit=8 is the start of the full run:", first_eight == full[:8])
print("the full run: ", [entry for entry in full if entry[1] in ("Q3", "Q7")])
chosen = {order: evaluate(samples={"tiny": list(order)}) for order in ((3, 7), (7, 3))}
for order, entries in chosen.items():
    print(f"samples {list(order)}:", entries)

labels = [(doc_id, question) for doc_id, question, _ in chosen[7, 3]]
shared_prompts = {prompt for *_, prompt in full} & {prompt for entries in chosen.values() for *_, prompt in entries}
if first_eight != full[:8] or labels != [(7, "Q3"), (3, "Q7")] or shared_prompts:
    raise SystemExit("changed: `samples` labels or asks its documents in another way now")
PY
