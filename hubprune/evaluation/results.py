"""From lm-eval's results of two models, and its samples, to rows that compare them.  Pure: no model, no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from statistics import mean
from typing import Any

from hubprune.core.artifacts import (
    CameBack,
    Estimate,
    MetricValue,
    PairedComparison,
    TaskAnswers,
    TaskComparison,
    Together,
    main_rows,
    perplexity_of,
)
from hubprune.core.errors import EvaluationError
from hubprune.evaluation.compare import (
    Pairs,
    Scale,
    Value,
    combine,
    compare_pairs,
    difference,
    judge,
    pair,
    refuse_other_documents,
    share_of_loss,
)
from hubprune.evaluation.sources import hub_id, new_tokens

Document = tuple[str, int, str]
"""Task, id and hash of a document."""
Answers = Mapping[Document, Value]
PLAIN: tuple[Scale, ...] = ("mean", "perplexity")
WEIGHTED: tuple[Scale, ...] = ("perplexity", "bits")
Results = Mapping[str, Any]
MAIN_METRICS = ("acc_norm", "acc", "exact_match")
"""Metrics that come first where a task has them, best first; all others keep the task's own order."""
NOT_FINITE = "Try --dtype float32; if it computed in that, the model overflows and cannot be measured so."
CHOICE_METRICS = frozenset({"acc", "acc_norm"})
"""Metrics of multiple-choice tasks that tell how often the right choice was picked."""


def refuse_different_documents(base: Results, pruned: Results) -> None:
    """Make sure that both models answered the same documents, since their numbers are compared in pairs.

    Raises:
        EvaluationError: a task's documents differ in id or content.
    """
    for task, samples in base["samples"].items():
        both = samples, pruned["samples"].get(task, ())
        ours, theirs = ({(s["doc_id"], s["doc_hash"]): s for s in each} for each in both)
        refuse_other_documents(ours, theirs, of=task)


def compare_results(
    base: Results, pruned: Results, *, requested: Mapping[str, tuple[str, ...]],
    commits: Mapping[str, str | None], warn: Callable[[str], None],
) -> tuple[TaskComparison, ...]:  # fmt: skip
    """Compare two models in rows, in the order of the requested names; a task's main metric comes first.

    A group that lm-eval has an aggregate for (`mmlu`) is one row per metric, so that its 57 subjects do not outweigh
    the other benchmarks in a mean.  A group without an aggregate or with mixed few-shot counts stands for its members,
    and so does a tag.

    A metric without a finite value for both models is left out, and `warn` is told so: a model that lost nearly all has
    such metrics, as where each of its choices is so unlikely that their shares are 0 / 0.

    `requested` maps each requested name to its tasks, `commits` each task to the commit of its data set.

    Raises:
        EvaluationError: a task has no metric with a finite value for the base, or none has one for both models.
    """
    rows = _all_rows(base, pruned, requested, commits, warn)
    if not rows:
        raise EvaluationError("No benchmark has a metric with a finite value for both models.", hint=NOT_FINITE)
    paired = (compare_answers(_per_task(base, row), _per_task(pruned, row), row) for row in rows)
    return judge([row.model_copy(update={"paired": p}) for row, p in zip(rows, paired, strict=True)])


def _all_rows(
    base: Results, pruned: Results, requested: Mapping[str, tuple[str, ...]], commits: Mapping[str, str | None],
    warn: Callable[[str], None],
) -> list[TaskComparison]:  # fmt: skip
    names = dict.fromkeys(n for name, tasks in requested.items() for n in _reported(base, name, tasks))
    return [row for name in names for row in _rows(base, pruned, name, commits, warn)]


def answers_of(
    results: Results, *, requested: Mapping[str, tuple[str, ...]], warn: Callable[[str], None]
) -> tuple[TaskAnswers, ...]:
    """Make the rows of one model alone, in the order of a comparison, each with its value for every document.

    Raises:
        EvaluationError: a task has no metric with a finite value.
    """
    found = []
    for row in _all_rows(results, results, requested, {}, warn):
        whole = {document: value for task in _per_task(results, row) for document, value in task.items()}
        values = {d: value for d, value in sorted(whole.items()) if not isinstance(value, tuple)}
        # Only of a metric that is a mean over documents can a paired error be computed from them.
        usable = values if values and fits([values], scale="mean", expected=row.base.value) else {}
        answers = TaskAnswers(
            task=row.task, metric=row.metric, is_share=row.is_share, higher_is_better=row.higher_is_better,
            chance=row.chance, result=row.base,
            documents=tuple(f"{task} {number} {text[:12]}" for task, number, text in usable),
            answers=tuple(usable.values()),
        )  # fmt: skip
        found.append(answers)
    return tuple(found)


def _per_task(results: Results, row: TaskComparison) -> list[Answers]:
    """Read what a model got on the documents of each task of a row; nothing where one value is no finite number."""
    _, _, filter_name = _metric_keys(results, row.task)[row.metric].partition(",")
    samples = results.get("samples", {})
    found: list[Answers] = []
    for task in _leaves(results, row.task):
        own = [s for s in samples.get(task, ()) if row.metric in s and s.get("filter", filter_name) == filter_name]
        values = {(task, int(s["doc_id"]), str(s["doc_hash"])): _value(s[row.metric]) for s in own}
        known = {document: value for document, value in values.items() if value is not None}
        found.append(known if len(known) == len(values) else {})
    return found


def _reported(results: Results, name: str, tasks: tuple[str, ...]) -> Iterator[str]:
    """Yield the entries of the results that a requested name is reported by."""
    is_group = _metric_keys(results, name) and _common(_leaves(results, name), results["n-shot"])
    if name in results["configs"] or is_group:
        yield name
    elif name in results["group_subtasks"]:
        for child in results["group_subtasks"][name]:
            yield from _reported(results, child, (child,))
    else:
        yield from tasks


def _rows(
    base: Results, pruned: Results, name: str, commits: Mapping[str, str | None], warn: Callable[[str], None]
) -> list[TaskComparison]:
    leaves = _leaves(base, name)
    configs = {leaf: base["configs"][leaf] for leaf in leaves}
    counts = [base["n-samples"][leaf] for leaf in leaves]
    splits = {leaf: c.get("test_split") or c.get("validation_split") for leaf, c in configs.items()}
    shared = {  # by all rows; where the tasks differ in something, that is None
        "task": name,
        "documents": sum(count["effective"] for count in counts),
        "documents_available": sum(count["original"] for count in counts),
        "num_fewshot": int(base["n-shot"][leaves[0]]),
        "version": str(base["versions"].get(name, "N/A")),
        "dataset": _text(_common(leaves, {leaf: hub_id(c.get("dataset_path")) for leaf, c in configs.items()})),
        "dataset_config": _text(_common(leaves, {leaf: c.get("dataset_name") for leaf, c in configs.items()})),
        "dataset_commit": _text(_common(leaves, commits)),
        "split": _text(_common(leaves, splits)),
    }
    shared["requests"], shared["new_tokens"] = _asked(base, leaves)
    rows = []
    for metric, key in sorted(_metric_keys(base, name).items(), key=lambda item: _place(item[0])):
        results = {"base": base["results"][name], "pruned": pruned["results"][name]}
        if unfit := [f"{r.get(key)} for {model}" for model, r in results.items() if _metric(r, key) is None]:
            warn(f"{metric} of the benchmark {name} is left out, since it is no finite number: {', '.join(unfit)}.")
            continue
        better = base["higher_is_better"].get(leaves[0], {}).get(metric)
        facts = shared | {model: _metric(r, key) for model, r in results.items()} | {"metric": metric}
        read_by = key.partition(",")[2]
        facts |= {"filter": read_by if read_by != "none" else None, "higher_is_better": better is not False}
        rows.append(TaskComparison(chance=_chance(base, metric, leaves), **facts))
    if not rows and not any(_metric(base["results"][name], key) for key in _metric_keys(base, name).values()):
        raise EvaluationError(f"The benchmark {name} has no metric with a finite value.", hint=NOT_FINITE)
    return rows


def _asked(results: Results, leaves: tuple[str, ...]) -> tuple[int | None, int | None]:
    """Count the requests of all documents, and take the most tokens that may be written for one; None for none.

    Samples without requests are of older files.
    """
    requests = most = 0
    for leaf in leaves:
        # Where answers are read from a text in several ways, a document has a sample for each of them.
        samples = results.get("samples", {}).get(leaf, ())
        for arguments in {s["doc_id"]: s["arguments"] for s in samples if "arguments" in s and "doc_id" in s}.values():
            requests += len(arguments)
            kwargs = (argument[1] for argument in arguments if len(argument) > 1 and isinstance(argument[1], Mapping))
            most = max(most, *(new_tokens(given) for given in kwargs), 0)
    return requests or None, most or None


def _chance(results: Results, metric: str, leaves: tuple[str, ...]) -> float | None:
    """Compute the accuracy of guessing over all documents, or None where answers are not picked from choices."""
    configs = [results["configs"][leaf] for leaf in leaves]
    # Code of a task's own may count anything and call it accuracy: truthfulqa_mc2 does.
    if metric not in CHOICE_METRICS or any(
        c.get("output_type") != "multiple_choice" or c.get("process_results") for c in configs
    ):
        return None
    shares = []
    for sample in (sample for leaf in leaves for sample in results["samples"][leaf]):
        right = len(set(sample["target"])) if isinstance(sample["target"], list) else 1  # which it nearly always is
        # For acc_mutual_info, each choice is asked for a second time, after nothing.
        times = 2 if "acc_mutual_info" in sample["metrics"] else 1
        shares.append(right * times / len(sample["arguments"]))
    return mean(shares)


def _leaves(results: Results, name: str) -> tuple[str, ...]:
    """List the tasks below an entry of the results."""
    if name not in results["group_subtasks"]:
        return (name,)
    return tuple(leaf for child in results["group_subtasks"][name] for leaf in _leaves(results, child))


def samples_of(results: Results, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield lm-eval's samples of all tasks below an entry of the results."""
    for leaf in _leaves(results, name):
        yield from results["samples"].get(leaf, ())


def _common(leaves: tuple[str, ...], values: Mapping[str, Any]) -> tuple[Any] | None:
    """Take the value that all tasks share, in a tuple since it may be None or 0; None where they differ."""
    different = {values.get(leaf) for leaf in leaves}
    return (different.pop(),) if len(different) == 1 else None


def _text(common: tuple[Any] | None) -> str | None:
    return None if common is None or common[0] is None else str(common[0])


def _metric_keys(results: Results, name: str) -> dict[str, str]:
    """Map each metric to its key in the results, `acc,none`; of several filters the first one counts."""
    keys: dict[str, str] = {}
    for key in results["results"].get(name, {}):
        metric, comma, _ = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            keys.setdefault(metric, key)
    return keys


def _place(metric: str) -> int:
    # `sorted` is stable, so all metrics that are not named here keep the task's own order.
    return MAIN_METRICS.index(metric) if metric in MAIN_METRICS else len(MAIN_METRICS)


def _metric(result: Mapping[str, Any], key: str) -> MetricValue | None:
    metric, _, filter_name = key.partition(",")
    value, error = _finite(result.get(key)), _finite(result.get(f"{metric}_stderr,{filter_name}"))
    if value is None:
        return None
    found = MetricValue(value=value, standard_error=error)
    return found.model_copy(update={"standard_error": None}) if found.is_bound else found


def _finite(value: Any) -> float | None:
    """Take a number as it is; None for "N/A", NaN, infinity, and whatever else lm-eval puts in the place of one."""
    with suppress(TypeError, ValueError):
        if math.isfinite(number := float(value)):
            return number
    return None


def _value(value: Any) -> Value | None:
    """Take a number, or a sum with the words or bytes that it is over."""
    if not isinstance(value, (list, tuple)):
        return _finite(value)
    numbers = [number for part in value if (number := _finite(part)) is not None]
    return (numbers[0], numbers[1]) if len(numbers) == len(value) == 2 and numbers[1] > 0 else None


def compare_answers(base: Sequence[Answers], pruned: Sequence[Answers], row: TaskComparison) -> PairedComparison | None:
    """Compare what both models got on the documents of each task of a row, of which a group has several.

    Nothing is taken for granted of how lm-eval makes one number of many: only a way that gives both models' own values
    from the documents is used, over all documents at once or as the mean over tasks.  Returns None where no such way is
    known, as for the F1 of a whole corpus.
    """
    if any(not ours or ours.keys() != theirs.keys() for ours, theirs in zip(base, pruned, strict=True)):
        return None
    whole = [[{d: v for answers in side for d, v in answers.items()}] for side in (base, pruned)]
    weighted = isinstance(next(iter(whole[0][0].values())), tuple)
    ways: list[tuple[Scale, Sequence[Answers], Sequence[Answers]]]
    ways = [(scale, whole[0], whole[1]) for scale in (WEIGHTED if weighted else PLAIN)]
    if not weighted and len(base) > 1:
        ways.append(("mean", base, pruned))
    for scale, ours, theirs in ways:
        if fits(ours, scale=scale, expected=row.base.value) and fits(theirs, scale=scale, expected=row.pruned.value):
            pairs = [pair(one, other, of=row.task) for one, other in zip(ours, theirs, strict=True)]
            return compare_pairs(pairs, scale=scale, chance=row.chance)
    return None


def fits(tasks: Sequence[Answers], *, scale: Scale, expected: float) -> bool:
    """Tell whether a number is what a scale makes of the values of all documents, every task counting the same."""
    sums = ([v if isinstance(v, tuple) else (v, 1.0) for v in answers.values()] for answers in tasks)
    means = [math.fsum(total for total, _ in rows) / math.fsum(length for _, length in rows) for rows in sums]
    nats = -sum(means) / len(means)
    value = {"mean": -nats, "perplexity": perplexity_of(nats), "bits": nats / math.log(2)}[scale]
    return math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9)


def together(
    results: Mapping[str, Results], *, dropped: Sequence[TaskComparison], quantized: Sequence[TaskComparison],
    both: Sequence[TaskComparison],
) -> tuple[Together, ...]:  # fmt: skip
    """Say of every main metric that is a share, and of their mean, whether what two changes cost adds up.

    Args:
        results: lm-eval's of `base`, `dropped`, `quantized` and `both`.
        dropped, quantized, both: rows of these against the base, in the same order.
    """
    found = []
    for one, other, joint in zip(*map(main_rows, (dropped, quantized, both)), strict=True):
        changes = one.points, other.points, joint.points
        excess = _excess(results, one)
        if excess and changes[0] and changes[1] and changes[2]:
            found.append((one, *changes, excess.affine(times=100)))
    rows = [
        Together(name=row.task, metric=row.metric, dropped=a, quantized=b, both=c, excess=excess)
        for row, a, b, c, excess in found
    ]
    if len(rows) > 1:
        weights = [1 / len(rows)] * len(rows)
        names = ("dropped", "quantized", "both", "excess")
        means = {name: combine([getattr(row, name) for row in rows], weights) for name in names}
        rows.append(Together(name="mean", metric=None, **means))
    return tuple(rows)


def came_back(results: Mapping[str, Results], dropped: Sequence[TaskComparison]) -> tuple[CameBack, ...]:
    """Say of every main metric with a value per document which share of what pruning lost came back.

    Args:
        results: lm-eval's of `base`, `pruned` and `healed`.
        dropped: rows of the pruned model against the base.
    """
    found = []
    for row in main_rows(dropped):
        sign = 1 if row.higher_is_better else -1
        scales: list[tuple[Scale, int]] = [("mean", sign), ("perplexity", 1)]
        for scale, times in scales:
            if not (plain := _lined_up(results, row, scale=scale)):
                continue
            base, pruned, healed = ([times * v for v in plain[name]] for name in ("base", "pruned", "healed"))
            lost = difference(Pairs(pruned, base)).affine(times=100 if row.is_share else 1)
            share = None
            if lost.low is not None and lost.low > 0:
                pairs = zip(base, pruned, healed, strict=True)
                share = share_of_loss(*zip(*((b - p, h - p) for b, p, h in pairs), strict=True))
            found.append(CameBack(task=row.task, metric=row.metric, lost=lost, share=share))
            break
    return tuple(found)


def _excess(results: Mapping[str, Results], row: TaskComparison) -> Estimate | None:
    """Estimate by how much a change of both is off the sum of the single ones; None where no document has a value."""
    plain = _lined_up(results, row, scale="mean")
    if plain is None:
        return None
    sums = [d + q - b for b, d, q in zip(plain["base"], plain["dropped"], plain["quantized"], strict=True)]
    return difference(Pairs(sums, plain["both"]))


def _lined_up(results: Mapping[str, Results], row: TaskComparison, *, scale: Scale) -> dict[str, list[float]] | None:
    """Return what each model got on every document, in one order; None where a scale does not make the row of it."""
    values = {
        name: {d: v for answers in _per_task(found, row) for d, v in answers.items()} for name, found in results.items()
    }
    documents = sorted(values["base"])
    numbers = {name: [answers.get(document) for document in documents] for name, answers in values.items()}
    plain = {name: [v for v in column if isinstance(v, int | float)] for name, column in numbers.items()}
    if not documents or any(len(column) < len(documents) for column in plain.values()):
        return None
    if not fits([dict(zip(documents, plain["base"], strict=True))], scale=scale, expected=row.base.value):
        return None
    return plain
