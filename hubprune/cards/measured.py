"""What was measured of base and pruned model: their benchmarks, task by task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hubprune.cards.context import Adding, Benchmarks, Long, Picture, Table
from hubprune.cards.markdown import INTERVAL, NONE, count, plain, signed, with_error, with_interval
from hubprune.core.artifacts import (
    BenchmarkComparison,
    Chat,
    MetricValue,
    QuantizedBenchmarks,
    TaskComparison,
    Together,
)

TESTS: Mapping[str, str] = {
    "mcnemar": "McNemar's exact test of the documents that one of the two alone got right",
    "likelihoods": "for perplexities, a paired t-test of the documents' log-likelihoods",
    "t": "a paired t-test of the documents' values",
    "normal": "for groups in which every task counts the same, a normal test of the mean over their tasks",
}
"""What a row's verdict rests on."""
WRITTEN_METRICS: Mapping[str, str] = {
    "exact_match": "share of the answers that are a right one, but for what the benchmark passes over, such as case",
    "em": "share of the answers that are the right one, the mean over those who gave one where several did",
    "f1": "how many words an answer and a right one have in common (harmonic mean of precision and recall)",
    "contains": "share of the texts that hold the right answer somewhere",
    "prompt_level_strict_acc": "share of the prompts of which every instruction was followed",
    "inst_level_strict_acc": "share of the instructions that were followed",
    "prompt_level_loose_acc": "share of the prompts of which every instruction was followed, asterisks and the"
    " first and last line passed over",
    "inst_level_loose_acc": "share of the instructions that were followed, the same passed over",
}
"""Metric of answers that a model writes -> what it tells."""


def of_the_day(chat: Chat) -> str:
    """Say which day a chat template wrote into prompts, as a sentence with a space before it; nothing where none."""
    if chat.date is None:
        return ""
    return f" The template writes the day into every prompt: here {chat.date}, on another day another text."


def benchmarks(
    comparison: BenchmarkComparison | None, *, picture: str | None = None, has_chat: bool = False
) -> Benchmarks | None:
    """Compare base and pruned task by task; None where nothing was run.

    `has_chat` says that there is a chat template, so that it matters whether it was used.
    """
    if comparison is None or not comparison.tasks:
        return None
    table, details = tables(("Base", "This model"), [(row, None, (row.base, row.pruned)) for row in comparison.tasks])
    changes = [f"{row.task} {signed(row.points.value)}" for row in comparison.main_metrics() if row.points]
    text = f"Changes of the benchmarks in points with their 95 % intervals, against no change: {', '.join(changes)}"
    return Benchmarks(
        sentences=tuple(_benchmark_sentences(comparison, has_chat=has_chat)),
        table=table,
        details=details,
        picture=Picture(path=picture, text=text) if picture else None,
        notes=(*_asked_sentences(comparison), *_computed_sentences(comparison), *_test_sentences(comparison)),
        long=_long(comparison),
    )


Compared = tuple[TaskComparison, TaskComparison | None, tuple[MetricValue, ...]]
"""This model against the base, against the pruned model where that is another, and the values of all."""


def tables(names: tuple[str, ...], rows: Sequence[Compared]) -> tuple[Table, Table]:
    """Write what a reader asks for first, and in a second table of the same rows all else; shares in percent."""
    seen, more = [], []
    for row, step, values in rows:
        share = 100 if row.is_share else 1
        read_by = f" ({row.filter})" if row.filter else ""
        metric = f"{row.metric}{read_by}{', %' if row.is_share else ''} {'↑' if row.higher_is_better else '↓'}"
        figures = (with_error(share * v.value, None, digits=2 if row.is_share else 3) for v in values)
        mark = (row.paired and row.paired.mark) or NONE
        seen.append((f"{row.task}, {metric}", mark, *figures, *(_changed(each) for each in (row, step) if each)))
        errors = (
            NONE if v.standard_error is None else plain(share * v.standard_error, digits=2 if row.is_share else 3)
            for v in values
        )
        relative = (step or row).percent
        whole = row.documents == row.documents_available
        n = count(row.documents) + ("" if whole else f" of {count(row.documents_available)}")
        chance = NONE if row.chance is None else plain(100 * row.chance, digits=2)
        told = with_interval(relative) if relative else NONE
        more.append((row.task, metric, *errors, told, n, str(row.num_fewshot), chance))
    stepped = any(step for _, step, _ in rows)
    changes = ("Change from base", "Change from pruned") if stepped else ("Change",)
    relative_to = "Relative to pruned, %" if stepped else "Relative change, %"
    columns = ("Task", "Metric", *(f"± {name}" for name in names), relative_to, "n", "Shots", "Chance, %")
    return (
        Table(
            columns=("Task and metric", "Verdict", *names, *changes), align="ll" + "r" * len(names + changes),
            rows=tuple(seen),
        ),
        Table(columns=columns, align="ll" + "r" * (len(names) + 4), rows=tuple(more)),
    )  # fmt: skip


def _changed(row: TaskComparison) -> str:
    """Write a change in points, or relative where there are no points, with its interval."""
    if row.points:
        return with_interval(row.points, unit=" points")
    return with_interval(row.percent, unit=" %") if row.percent else NONE


def _long(comparison: BenchmarkComparison) -> Long | None:
    """Put accuracy beside the number of examples, as in Table 11 of arXiv 2406.15786; None where nothing is long."""
    shots = {f"banking77_{number}shot": number for number in range(1, 6)}
    metrics = {"acc": "likeliest of all", "exact_match": "written greedily"}
    found = {(row.task, row.metric): row for row in comparison.tasks if row.task in shots}
    tasks = [task for task in shots if (task, "acc") in found]
    if not tasks:
        return None
    rows = []
    for metric, told in metrics.items():
        chosen = [found[task, metric] for task in tasks if (task, metric) in found]
        for side in ("base", "pruned") if len(chosen) == len(tasks) else ():
            values = [100 * getattr(row, side).value for row in chosen]
            cells = (f"{value:.1f}" for value in (*values, sum(values) / len(values)))
            rows.append(({"base": "base", "pruned": "this model"}[side], told, *cells))
    first = found[tasks[0], "acc"]
    heads = [f"{shots[task]} ({count(found[task, 'acc'].prompt_tokens or 0)} tokens)" for task in tasks]
    guessing = "" if first.chance is None else f" Guessing gives {100 * first.chance:.1f}."
    return Long(
        sentence=(
            f"Accuracy in % on {count(first.documents)} rows of BANKING77, by the examples shown of each intent"
            " and the tokens of the longest prompt: the likeliest of all intents, and the one that greedy decoding"
            f" writes.{guessing}"
        ),
        table=Table(columns=("Model", "Answer", *heads, "Mean"), align="ll" + "r" * (len(tasks) + 1), rows=tuple(rows)),
    )


def _benchmark_sentences(comparison: BenchmarkComparison, *, has_chat: bool) -> Iterator[str]:
    yield (
        f"Base and this model were measured in the same run, on the same documents, with lm-eval {comparison.lm_eval}"
        f" ({comparison.dtype}, {comparison.device}, seed {comparison.seed})."
    )
    yield from through_chat(comparison, has_chat=has_chat)
    yield from limited(comparison)
    if (wrote := comparison.mean_written) and (scored := comparison.mean_scored):
        tasks = ", ".join(row.task for row in comparison.shares(written=True))
        means = [with_interval(mean, unit=" points", label=INTERVAL) for mean in (wrote, scored)]
        yield f"On average, answers that it writes ({tasks}) changed by {means[0]}, those that it scores by {means[1]}."


def _computed_sentences(comparison: BenchmarkComparison) -> Iterator[str]:
    # What computed the log-likelihoods, and how that was compared with lm-eval's own backend.
    if comparison.backend == "hf":
        why = f", since {comparison.fallback}" if comparison.fallback else ""
        yield f"Log-likelihoods are from lm-eval's own Hugging Face backend{why}."
    else:
        compared = ""
        if check := comparison.self_check:
            compared = (
                f"; lm-eval's own backend computed {count(check.requests)} requests of each as well, and differed by at"
                f" most {check.largest_difference:.1e} nats"
            )
        way = " layer by layer from their files," if comparison.backend == "layers" else ""
        yield (
            f"Log-likelihoods were computed for both in one pass,{way} which runs once what they have in"
            f" common{compared}."
        )
    yield (
        "± is one standard error of a model's own value. Chance is the accuracy of guessing. A change is this − base in"
        " points, or this / base − 1 where the metric is no share; the relative change is this / base − 1 for all. All"
        " changes are computed from unrounded values. ↑: higher is better, ↓: lower is better."
    )


def _asked_sentences(comparison: BenchmarkComparison) -> Iterator[str]:
    """Say how many answers a model wrote itself, where that is known."""
    rows = comparison.main_metrics()
    known = [row for row in rows if row.requests is not None]
    written = [row for row in known if row.is_written]
    if written and len(known) == len(rows):
        texts = ", ".join(f"{row.task}, at most {count(row.new_tokens or 0)} tokens each" for row in written)
        asked = sum(row.requests or 0 for row in rows)
        wrote = sum(row.requests or 0 for row in written)
        yield (
            f"Each model was asked {count(asked)} times: {count(wrote)} times it wrote an answer ({texts}), otherwise"
            " it scored given answers by their likelihood."
        )


def _test_sentences(comparison: BenchmarkComparison) -> Iterator[str]:
    """Say how changes were tested, as far as the rows of this card were."""
    tested = [row.paired for row in comparison.tasks if row.paired and row.paired.mark]
    if not tested:
        return
    yield (
        "Models are compared document by document. In brackets behind a change is its 95 % interval, for itself alone:"
        " that of Agresti and Min where answers are right or wrong, else that of Student's t. The interval of a mean"
        " over tasks follows from theirs, with the tasks taken as independent. Verdicts are adjusted for the number of"
        " tasks, intervals are not: one may leave out 0 where the verdict is not distinguishable."
    )
    used = {"likelihoods" if paired.ratio else paired.test for paired in tested}
    at_chance = (
        " At chance: neither of these, and the base is no better than guessing (exact binomial test, one-sided, 5 %),"
        " so that the task could show no loss."
    )
    guessable = any(row.chance is not None for row in comparison.tasks)
    yield (
        f"Verdicts rest on two-sided tests: {'; '.join(TESTS[key] for key in TESTS if key in used)}. Their p values are"
        " adjusted by Holm's method over the first metric of each task, and separately over all others. Worse,"
        f" better: adjusted p below 0.05.{at_chance if guessable else ''} Not distinguishable: all else."
    )
    seen = {row.metric for row in comparison.tasks if row.is_written}
    if told := [f"{metric}: {words}" for metric, words in WRITTEN_METRICS.items() if metric in seen]:
        read = any(row.filter for row in comparison.tasks)
        by = " In brackets behind a metric is how lm-eval extracts the answer from the text." if read else ""
        yield f"Metrics of written answers, by lm-eval's own rules: {'; '.join(told)}.{by}"
    if untested := [f"{r.task} ({r.metric})" for r in comparison.tasks if not (r.paired and r.paired.mark)]:
        yield f"Not tested, for want of values per document that vary: {', '.join(untested)}."


# ---- four models ----------------------------------------------------------------------------------------------------


def four_benchmarks(four: QuantizedBenchmarks | None) -> Benchmarks | None:
    """Put base and pruned model, each as it is and quantized, into one table; None where nothing was run."""
    if four is None or not four.both.tasks:
        return None
    found = ((row, _same_rows(four, row)) for row in four.both.tasks)
    rows = [(row, same[1], (row.base, same[0].pruned, same[1].base, row.pruned)) for row, same in found if same]
    table, details = tables(("Base", "Base, quantized", "Pruned", "This model"), rows)
    compared = four.both
    sentences = (
        "Base and pruned model, each as it is and quantized in the same way with the same texts, answered the same"
        f" documents with lm-eval {compared.lm_eval} ({compared.dtype}, {compared.device}, seed {compared.seed}).",
        *through_chat(compared),
        *limited(compared),
    )
    return Benchmarks(sentences=sentences, table=table, details=details, picture=None, notes=(SIDES,))


SIDES = (
    "± is one standard error of a model's own value; in brackets behind a change is its 95 % interval, from paired"
    " documents. The verdict is that of this model against the base, adjusted for the number of tasks by Holm's method."
    " ↑: higher is better, ↓: lower is better."
)
"""How the tables of a sibling are read."""


def through_chat(comparison: BenchmarkComparison, *, has_chat: bool = False) -> Iterator[str]:
    """Say that prompts went through a chat template, or with `has_chat` that they did not."""
    if comparison.chat:
        yield (
            "Prompts went through the base's chat template, with examples as turns of their own, as by lm-eval's"
            f" --apply_chat_template.{of_the_day(comparison.chat)}"
        )
    elif has_chat:
        yield "Prompts are the tasks' own texts, without the base's chat template, as is lm-eval's default."


def limited(comparison: BenchmarkComparison) -> Iterator[str]:
    """Say how many documents were seen, where that is not all."""
    if comparison.limit is not None:
        limit = count(comparison.limit)
        yield f"Limited to the first {limit} documents of each task: no figure here is the full benchmark's."


def _same_rows(four: QuantizedBenchmarks, row: TaskComparison) -> tuple[TaskComparison, TaskComparison] | None:
    """Find the rows of the same metric: base against its quantized self, and pruned against quantized."""

    def found(comparison: BenchmarkComparison) -> TaskComparison | None:
        same = ((r.task, r.metric, r.filter) == (row.task, row.metric, row.filter) and r for r in comparison.tasks)
        return next((r for r in same if r), None)

    control, step = found(four.control), found(four.step)
    return (control, step) if control and step else None


def adding(four: QuantizedBenchmarks | None) -> Adding | None:
    """Say whether what dropping and quantizing cost adds up; None where no metric tells."""
    if four is None or not four.together:
        return None
    last = four.together[-1]
    rows = tuple(
        (
            row.name if row.metric is None else f"{row.name}, {row.metric}", with_interval(row.dropped),
            with_interval(row.quantized), signed(row.dropped.value + row.quantized.value), with_interval(row.both),
            with_interval(row.excess),
        )
        for row in four.together
    )  # fmt: skip
    columns = ("Points", "Dropping alone", "Quantizing alone", "Sum of the two", "Both (this model)", "Both − sum")
    sentences = (
        _adds_up(last),
        "For the second column, the base was quantized by the same scheme with the same texts. The interval of the last"
        " one is from the documents, each of which all four models answered.",
    )
    table = Table(columns=columns, align="lrrrrr", rows=rows)
    verdict = f"Dropping and quantizing: {_how(last)}."
    return Adding(title="Does it add up?", sentences=sentences, table=table, verdict=verdict)


def _how(row: Together) -> str:
    ends = row.excess.ends
    if ends and (ends[0] > 0 or ends[1] < 0):
        return f"both together cost {'less' if ends[0] > 0 else 'more'} than the sum"
    return "they add up, as far as these documents can tell"


def _adds_up(row: Together) -> str:
    subject = "the mean of the benchmarks" if row.metric is None else f"{row.name} ({row.metric})"
    off = with_interval(row.excess, unit=" points", label=INTERVAL)
    return f"In {subject}, both together differ from the sum of the two by {off}, so that {_how(row)}."
