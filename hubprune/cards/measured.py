"""What was measured of base and pruned model: their benchmarks, task by task, and their speed and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hubprune.cards.context import Adding, Benchmarks, Long, Picture, Speed, Table
from hubprune.cards.markdown import INTERVAL, NONE, count, plain, signed, size_change, span, with_error, with_interval
from hubprune.core.artifacts import (
    BenchmarkComparison,
    Interval,
    Measure,
    QuantizedBenchmarks,
    SpeedMeasured,
    SpeedReport,
    TaskComparison,
    Together,
)
from hubprune.core.console import size

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


def benchmarks(comparison: BenchmarkComparison | None, *, picture: str | None = None) -> Benchmarks | None:
    """Compare base and pruned task by task; None where nothing was run."""
    if comparison is None or not comparison.tasks:
        return None
    columns = (
        "Task", "Metric", "Base", "This model", "Δ points", "Δ relative, %", "Verdict", "n", "Shots", "Chance",
    )  # fmt: skip
    rows = []
    for task in comparison.tasks:
        values = [with_error(m.value, m.standard_error) for m in (task.base, task.pruned)]
        whole = task.documents == task.documents_available
        n = count(task.documents) + ("" if whole else f" of {count(task.documents_available)}")
        read_by = f" ({task.filter})" if task.filter else ""
        metric = f"{task.metric}{read_by} {'↑' if task.higher_is_better else '↓'}"
        chance = NONE if task.chance is None else plain(task.chance, digits=4)
        differences = (with_interval(change) if change else NONE for change in (task.points, task.percent))
        mark = (task.paired and task.paired.mark) or NONE
        rows.append((task.task, metric, *values, *differences, mark, n, str(task.num_fewshot), chance))
    changes = [f"{row.task} {signed(row.points.value)}" for row in comparison.main_metrics() if row.points]
    text = f"Changes of the benchmarks in points with their 95 % intervals, against no change: {', '.join(changes)}"
    return Benchmarks(
        sentences=tuple(_benchmark_sentences(comparison)),
        table=Table(columns=columns, align="llrrrrlrrr", rows=tuple(rows)),
        picture=Picture(path=picture, text=text) if picture else None,
        notes=tuple(_test_sentences(comparison)),
        long=_long(comparison),
    )


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


def _benchmark_sentences(comparison: BenchmarkComparison) -> Iterator[str]:
    yield (
        f"Base and this model were measured in the same run, on the same documents, with lm-eval {comparison.lm_eval}"
        f" ({comparison.dtype}, {comparison.device}, seed {comparison.seed})."
    )
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
        "± is one standard error of a model's own value. Chance is the accuracy of guessing. Δ points is"
        " 100 × (this − base) for metrics between 0 and 1 and does not exist for others; Δ relative is this / base − 1."
        " ↑: higher is better, ↓: lower is better."
    )
    yield from _asked_sentences(comparison)
    if comparison.limit is not None:
        limit = count(comparison.limit)
        yield f"Limited to the first {limit} documents of each task: no figure here is the full benchmark's."


def _asked_sentences(comparison: BenchmarkComparison) -> Iterator[str]:
    """Say how many answers a model wrote itself, and put what they lost beside what the others did."""
    rows = comparison.main_metrics()
    known = [row for row in rows if row.requests is not None]
    written = [row for row in known if row.is_written]
    if written and len(known) == len(rows):
        texts = ", ".join(f"{row.task}, at most {count(row.new_tokens or 0)} tokens each" for row in written)
        asked = sum(row.requests or 0 for row in rows)
        wrote = sum(row.requests or 0 for row in written)
        yield (
            f"Each model was asked {count(asked)} times; {count(wrote)} of these times it wrote an answer ({texts}),"
            " else it scored answers that were given by their likelihood."
        )
    sides = [[row.task for row in comparison.shares(written=kind)] for kind in (True, False)]
    if (wrote_mean := comparison.mean_written) and (scored_mean := comparison.mean_scored):
        told = [
            f"{with_interval(mean, unit=' points', label=INTERVAL)} in the mean over {', '.join(tasks)}"
            for mean, tasks in zip((wrote_mean, scored_mean), sides, strict=True)
        ]
        yield f"Written against given answers: what it writes changed by {told[0]}; what it scores by {told[1]}."


def _test_sentences(comparison: BenchmarkComparison) -> Iterator[str]:
    """Say how changes were tested, as far as the rows of this card were."""
    tested = [row.paired for row in comparison.tasks if row.paired and row.paired.mark]
    if not tested:
        return
    yield (
        "Changes are compared document by document. Behind a change, in brackets, is its 95 % interval, for itself"
        " alone: that of Agresti and Min where answers are right or wrong, else that of Student's t. A mean over tasks"
        " has its interval from theirs, with the tasks taken as independent of each other. Verdicts answer for all"
        " tasks at once, so that an interval may leave out 0 where its verdict is not distinguishable."
    )
    used = {"likelihoods" if paired.ratio else paired.test for paired in tested}
    at_chance = (
        " At chance: neither of them, and the base is no better than guessing (exact binomial test, one-sided, 5 %), so"
        " that the task could show no loss."
    )
    guessable = any(row.chance is not None for row in comparison.tasks)
    yield (
        f"Verdicts rest on two-sided tests: {'; '.join(TESTS[key] for key in TESTS if key in used)}. Their p values are"
        " adjusted by Holm's method over the first metric of each task, and apart from these over all others. Worse,"
        f" better: adjusted p below 0.05.{at_chance if guessable else ''} Not distinguishable: all else."
    )
    seen = {row.metric for row in comparison.tasks if row.is_written}
    if told := [f"{metric}: {words}" for metric, words in WRITTEN_METRICS.items() if metric in seen]:
        read = any(row.filter for row in comparison.tasks)
        by = " In brackets behind a metric is how lm-eval reads the answer out of the text." if read else ""
        yield f"Metrics of written answers, by lm-eval's own rules: {'; '.join(told)}.{by}"
    if untested := [f"{r.task} ({r.metric})" for r in comparison.tasks if not (r.paired and r.paired.mark)]:
        yield f"Not tested, for want of values per document that vary: {', '.join(untested)}."


# ---- four models ----------------------------------------------------------------------------------------------------


def four_benchmarks(four: QuantizedBenchmarks | None) -> Benchmarks | None:
    """Put base and pruned model, each as it is and quantized, into one table; None where nothing was run."""
    if four is None or not four.both.tasks:
        return None
    columns = (
        "Task", "Metric", "Base", "Base, quantized", "Pruned", "This model", "Δ points to base", "Δ points to pruned",
        "Δ relative to pruned, %", "Verdict", "n", "Shots",
    )  # fmt: skip
    rows = tuple(_four_row(four, row) for row in four.both.tasks if _same_rows(four, row))
    compared = four.both
    sentences = [
        "Base and pruned model, each as it is and quantized in the same way with the same texts, answered the same"
        f" documents with lm-eval {compared.lm_eval} ({compared.dtype}, {compared.device}, seed {compared.seed}).",
        "± is one standard error of a model's own value; behind a change, in brackets, is its 95 % interval, document"
        " by document. Δ points is 100 × (this − other) for metrics between 0 and 1. The verdict is that of this model"
        " against the base, adjusted for the number of tasks by Holm's method. ↑: higher is better, ↓: lower.",
    ]
    if compared.limit is not None:
        sentences.append(f"Limited to the first {count(compared.limit)} documents of each task.")
    table = Table(columns=columns, align="llrrrrrrrlrr", rows=rows)
    return Benchmarks(sentences=tuple(sentences), table=table, picture=None, notes=())


def _same_rows(four: QuantizedBenchmarks, row: TaskComparison) -> tuple[TaskComparison, TaskComparison] | None:
    """Find the rows of the same metric: base against its quantized self, and pruned against quantized."""

    def found(comparison: BenchmarkComparison) -> TaskComparison | None:
        same = ((r.task, r.metric, r.filter) == (row.task, row.metric, row.filter) and r for r in comparison.tasks)
        return next((r for r in same if r), None)

    control, step = found(four.control), found(four.step)
    return (control, step) if control and step else None


def _four_row(four: QuantizedBenchmarks, row: TaskComparison) -> tuple[str, ...]:
    control, step = _same_rows(four, row) or (row, row)
    values = (row.base, control.pruned, step.base, row.pruned)
    whole = row.documents == row.documents_available
    changes = (with_interval(change) if change else NONE for change in (row.points, step.points, step.percent))
    metric = f"{row.metric}{f' ({row.filter})' if row.filter else ''} {'↑' if row.higher_is_better else '↓'}"
    return (
        row.task, metric, *(with_error(v.value, v.standard_error) for v in values), *changes,
        (row.paired and row.paired.mark) or NONE,
        count(row.documents) + ("" if whole else f" of {count(row.documents_available)}"), str(row.num_fewshot),
    )  # fmt: skip


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
        "The base was quantized by the same scheme and texts for the second column. The interval of the last one is"
        " from the documents, each of which all four models answered.",
    )
    return Adding(title="Does it add up?", sentences=sentences, table=Table(columns=columns, align="lrrrrr", rows=rows))


def _adds_up(row: Together) -> str:
    subject = "the mean of the benchmarks" if row.metric is None else f"{row.name} ({row.metric})"
    ends = row.excess.ends
    how = "they add up, as far as these documents can tell"
    if ends and ends[0] > 0:
        how = "both together cost less than the sum"
    elif ends and ends[1] < 0:
        how = "both together cost more than the sum"
    off = with_interval(row.excess, unit=" points", label="95 % interval ")
    return (
        f"Dropping changes {subject} by {signed(row.dropped.value)} points, quantizing by"
        f" {signed(row.quantized.value)}, both together by {signed(row.both.value)}: {off} off the sum of the two, so"
        f" that {how}."
    )


# ---- speed -----------------------------------------------------------------------------------------------------------

PEAKS: Mapping[str, str] = {
    "allocator": "weights and what the GPU's allocator held beside them",
    "resident": "resident memory of a process of its own, libraries and loading included",
}
MEASURES: Mapping[Measure, str] = {
    "prefill": "Prefill, tokens/s", "first-token": "First token, ms", "decode": "Decoding, tokens/s",
    "generation": "Whole answer, tokens/s",
}  # fmt: skip
"""Measure -> what the card calls it, with its unit."""
GLANCE: tuple[Measure, ...] = ("prefill", "decode")
"""Measures at a glance."""


def hardware(speed: SpeedReport) -> str:
    """Name what was timed on: a GPU by its name, a CPU with the number of its threads that were used."""
    machine = speed.environment.machine
    return f"{machine}, {speed.threads} thread{'s'[: speed.threads - 1]}" if speed.device == "cpu" else machine


def speed_rows(speed: SpeedReport | None) -> Iterator[tuple[str, ...]]:
    """Compare speed and peak memory at a glance, each with the hardware; no rows where nothing was timed."""
    if speed is None:
        return
    deepest = {row.measured.measure: row for row in speed.rows}
    for row in (deepest[measure] for measure in GLANCE if measure in deepest):
        seen, ends = row.measured, _ends(row.measured.ratio)
        told = f"{signed(seen.speedup_percent, digits=1)} % ({ends})"
        if row.verdict == "control failed":
            told = "not resolved: the base differs from itself"
        elif row.verdict == "not resolved":
            told = f"not resolved ({ends} %)"
        yield f"{MEASURES[seen.measure]} ({hardware(speed)})", *_paces(seen), told
    if peak := speed.peak_memory:
        yield f"Peak memory ({hardware(speed)})", *_byte_cells(peak.base, peak.pruned)


def section(speed: SpeedReport | None) -> Speed | None:
    """Show every measure with its interval and its control, and how it was measured; None where nothing was timed."""
    if speed is None or not speed.rows:
        return None
    columns = ("Measure", "Base", "This model", "Speed-up, %", "Verdict", "SDR", "Control, %")
    rows = []
    for row in speed.rows:
        seen, sdr = row.measured, NONE
        if row.sdr:
            value, low, high = (plain(number, digits=3) for number in (row.sdr.value, row.sdr.low, row.sdr.high))
            sdr = f"{value} ({low} to {high})"
        verdict = "not resolved" if row.verdict == "control failed" else row.verdict
        gain = f"{signed(seen.speedup_percent, digits=1)} ({_ends(seen.ratio)})"
        rows.append((MEASURES[seen.measure], *_paces(seen), gain, verdict, sdr, _ends(seen.control)))
    cache = speed.kv_cache
    memory = [(f"KV cache of {count(cache.tokens)} tokens, counted", *_byte_cells(cache.base, cache.pruned))]
    if peak := speed.peak_memory:
        memory.insert(0, (f"Peak: {PEAKS[peak.how]}", *_byte_cells(peak.base, peak.pruned)))
    return Speed(
        sentences=tuple(_how(speed)),
        table=Table(columns=columns, align="lrrrlrr", rows=tuple(rows)),
        memory=Table(columns=("Memory", "Base", "This model", "Change"), align="lrrr", rows=tuple(memory)),
        notes=tuple(_notes(speed)),
    )


def _ends(ratio: Interval) -> str:
    return span(100 * (ratio.low - 1), 100 * (ratio.high - 1), digits=1)


def _byte_cells(base: int, pruned: int) -> tuple[str, ...]:
    return size(base), size(pruned), size_change(base, pruned)


def _paces(seen: SpeedMeasured) -> tuple[str, str]:
    if seen.tokens_per_second is None or seen.base_tokens_per_second is None:
        return _three_digits(1000 * seen.base_seconds), _three_digits(1000 * seen.seconds)
    return _three_digits(seen.base_tokens_per_second), _three_digits(seen.tokens_per_second)


def _three_digits(value: float) -> str:
    """Write a positive number with three digits at least: 1,234, 56.7, 0.891."""
    digits = next(digits for digits, least in enumerate((99.95, 9.995, 0.9995, 0.0)) if value >= least)
    return f"{value:,.{digits}f}"


def _how(speed: SpeedReport) -> Iterator[str]:
    shape, versions = speed.rows[-1].measured, speed.environment.versions
    prompt = f"a prompt of {count(shape.depth)} tokens, then " if shape.depth else ""
    ran = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions)
    yield (
        f"Both models were timed in one process on {hardware(speed)} ({speed.device}, {speed.dtype}, attention"
        f" {speed.attention}, {ran}): {prompt}{count(shape.new_tokens)} new tokens, batch size {shape.batch_size}."
        " The tokens of a whole answer are the new ones, its time is that of both."
    )
    yield (
        f"Each of {shape.rounds} rounds timed the base, the base again and this model, in random order; both columns"
        " are medians."
    )


def _notes(speed: SpeedReport) -> Iterator[str]:
    yield (
        "Speed-up is the median over the rounds of the base's time over this model's, minus 1; in brackets is its"
        " 95 % bootstrap interval. It need not be the quotient of the two columns, which are medians of their own."
        " Control is that interval for the base against itself. Not resolved: the speed-up's interval holds 0, or the"
        " control's does not."
    )
    if change := speed.benchmarks:
        tasks = "1 benchmark" if len(change.tasks) == 1 else f"{len(change.tasks)} benchmarks"
        yield (
            f"SDR is points lost per percent of speed-up (equation 7 of arXiv 2406.15786): the mean of {tasks} changed"
            f" by {signed(change.points)} points. It exists where this model is faster, and its interval spans all that"
            " the intervals of both allow together."
        )
    yield from speed.notes
