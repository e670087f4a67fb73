#!/usr/bin/env bash
# Versions: huggingface_hub 2.4.0.
# Behaviour: ModelCardData puts evaluation results under one entry of the card's model-index when task, dataset type,
#   configuration, split and revision are the same. dataset_args, where num_few_shot goes, does not count: all get the
#   arguments of the result that comes first, and its source as well.
# Seen: 25-shot 53.1 and 0-shot 47.9 of one metric: written and read back, both are 25-shot; in the other order both
#   are 0-shot. Both name the first one's source. Loading and saving the card keeps it so.
# Why it matters: base and pruned models are often shown zero-shot and few-shot. The card then has two values for what
#   it says is one measurement, and nobody can tell which is which.
# Exit: 0 while huggingface_hub does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile huggingface_hub==2.4.0

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" venv/bin/python - <<'PY'
from huggingface_hub import EvalResult, ModelCard, ModelCardData


def result(shots: int, value: float, source: str) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type="allenai/ai2_arc",
        dataset_name="ARC Challenge",
        dataset_config="ARC-Challenge",
        dataset_split="test",
        dataset_args={"num_few_shot": shots},
        metric_type="acc_norm",
        metric_value=value,
        source_name=source,
        source_url=f"https://example.org/{shots}",
    )


def brief(results: list[EvalResult]) -> list[tuple[int, float, str]]:
    return [(entry.dataset_args["num_few_shot"], entry.metric_value, entry.source_name) for entry in results]


def read_back(results: list[EvalResult]) -> list[tuple[int, float, str]]:
    """Return few-shot number, value and source of each result after the card was written and read."""
    data = ModelCardData(model_name="pruned", eval_results=results)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n")
    again = ModelCard(str(card))
    if again.data.to_yaml() != card.data.to_yaml():
        raise SystemExit("changed: a second round is not like the first")
    return brief(again.data.eval_results)


pair = [result(25, 53.1, "leaderboard"), result(0, 47.9, "own run")]
print(ModelCardData(model_name="pruned", eval_results=pair).to_yaml())
for results in (pair, pair[::-1]):
    given = brief(results)
    first = given[0]
    back = read_back(results)
    print("given:    ", given)
    print("read back:", back)
    if back != [(first[0], value, first[2]) for _, value, _ in given]:
        raise SystemExit("changed: results with other arguments are kept apart now")
PY
