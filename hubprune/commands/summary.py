"""Write results for people: the tables that commands print on stdout.  JSON for machines comes from the artifacts."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.core.console import decimal, duration, size

if TYPE_CHECKING:
    from hubprune.core.artifacts import (
        AdoptedForm,
        Adoption,
        BenchmarkComparison,
        Checkup,
        DropPlan,
        Environment,
        Estimate,
        HealedCheckpoint,
        HealingRecord,
        Interval,
        LayerScores,
        Metric,
        PublishReport,
        RepetitionComparison,
        Sdr,
        SiblingReport,
        UploadPlan,
        Verification,
        WrittenCheckpoint,
    )


def table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Align columns; the first `left` ones to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def ratio_text(ratio: Interval) -> str:
    """Write a ratio with its interval."""
    return f"{ratio.median:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def sdr_text(sdr: Sdr | None) -> str:
    """Write a speedup degradation ratio with its interval."""
    return f"{sdr.value:.2f} [{sdr.low:.2f}, {sdr.high:.2f}]" if sdr else "n/a"


FORMULAS: Mapping[Metric, str] = {
    "cosine": "1 - cos(X, Y)", "cosine-no-residual": "1 - cos(U, f(U))", "relative-magnitude": "|F| / |X + F|",
    "loss": "rise of the loss without it, nats per token", "kl": "KL(base || without it), nats per token",
    "angular": "arccos(cos(X, Y)) / pi of the last token, from the first to the last layer of a run",
}  # fmt: skip
"""Formulas of the metrics; X and Y enter and leave a sublayer, U enters its module f, and F is what it adds to X."""


def scores_table(scores: LayerScores, *, plan: DropPlan | None = None) -> str:
    """Write all layers, the lowest attention score first where there are any, with what a plan drops."""
    return f"{scores_head(scores)}\n{table(score_rows(scores, plan=plan), left=0)}"


def score_rows(scores: LayerScores, *, plan: DropPlan | None = None) -> list[list[str]]:
    """Return the cells of that table, its head first."""
    found: dict[int, list[str]] = {}  # of every layer that loses or lacks something, what that is
    if plan:
        only_attention = not plan.layers("mlp")  # where the word is enough
        for layer in plan.layers("attn"):
            found.setdefault(layer, []).append("dropped" if only_attention else "attention dropped")
        for layer in plan.layers("mlp"):
            found.setdefault(layer, []).append("MLP dropped")
        for layer in plan.absent_layers["attn"]:
            found.setdefault(layer, []).append("not in the base")
    names = {"attn": "attention", "mlp": "MLP", "block": "block"}
    first, *others = scores.mean.kinds
    columns = {names[first]: getattr(scores.mean, first), "± se": getattr(scores.standard_error, first)}
    columns |= {names[kind]: getattr(scores.mean, kind) for kind in others}
    rows = [["layer", *columns, ""]]
    for layer in scores.mean.ascending(first):
        values = (f"{column[layer]:.6f}" for column in columns.values())
        rows.append([str(layer), *values, ", ".join(found.get(layer, ()))])
    return rows


def scores_head(scores: LayerScores) -> str:
    """Say what the scores are, and what they were computed on."""
    record = scores.calibration
    return (
        f"Importance S = {FORMULAS.get(scores.metric, scores.metric)}, {scores.aggregation} mean, "
        f"{record.documents} {record.unit}, {record.tokens:,} tokens of {record.mix}"
    )


def check_rows(verification: Verification) -> list[list[str]]:
    """Return the cells of a table of every check with what it saw."""
    return [["passed" if c.passed else "FAILED", c.name, c.detail] for c in verification.checks]


FORMS: Mapping[AdoptedForm, str] = {
    "llm-drop": "LLM-Drop: drop_attn_list and drop_mlp_list",
    "anymodel": "ModelOpt: block_configs",
    "fewer": "fewer layers, sublayers or neurons, found by their values",
}


def adoption_lines(done: Adoption, *, out: Path | None) -> str:
    """Write what of its base is left in what others pruned, and what was written of it."""
    plan, kept = done.plan, f"{done.compared} tensors"
    commit, whole = f" at {done.base_commit[:12]}" if done.base_commit else "", plan.removed_layers
    rows = [["form", FORMS[done.form]], ["base", f"{done.base_model}{commit}"]]
    gone = {
        "layers": whole,
        "attention of layers": sorted({*plan.layers("attn")} - {*whole}),
        "MLP of layers": sorted({*plan.layers("mlp")} - {*whole}),
    }
    rows += [[f"gone: {what}", ", ".join(map(str, layers))] for what, layers in gone.items() if layers]
    for (before, left), layers in plan.widths.changes.items() if plan.widths else ():
        rows.append([f"neurons, layers {', '.join(map(str, layers))}", f"{left:,} of {before:,}"])
    same = f"the base's, rounded to {', '.join(done.rounded)}" if done.rounded else "the base's, byte for byte"
    rows.append([kept, f"{len(done.changed)} trained or changed since" if done.changed else same])
    rows.append(["layout", plan.layout])
    parts_told = [table(rows, left=2)]
    if done.made and out:
        parts_told += [checkpoint_lines(done.made.written), f"written and verified: {out}"]
    else:
        parts_told.append("Write it anew with --out FOLDER, or publish it with hubprune publish --adopt.")
    return "\n\n".join(parts_told)


def checkpoint_lines(written: WrittenCheckpoint) -> str:
    """Write what became smaller, and by how much."""
    return table(checkpoint_rows(written))


def checkpoint_rows(written: WrittenCheckpoint) -> list[list[str]]:
    """Return the cells of that table, its head first."""
    kinds: tuple[tuple[str, int, int, Callable[[int], str]], ...] = (
        ("parameters", written.base_parameters, written.parameters, "{:,}".format),
        ("weights", written.base_weight_bytes, written.weight_bytes, size),
        ("KV cache per token", written.base_kv_bytes_per_token, written.kv_bytes_per_token, "{:,} B".format),
    )
    rows = [["", "base", "pruned", "change"]]
    for name, base, pruned, write in kinds:
        rows.append([name, write(base), write(pruned), f"{100 * (pruned / base - 1):+.2f} %"])
    return rows


def benchmarks_table(benchmarks: BenchmarkComparison) -> str:
    """Write every metric of base and pruned with its change in points and in relative percent, and the mean change."""
    return "\n".join([table(benchmark_rows(benchmarks), left=2), *mean_lines(benchmarks)])


def benchmark_rows(benchmarks: BenchmarkComparison) -> list[list[str]]:
    """Return the cells of that table, its head first."""
    rows = [["task", "metric", "n", "base", "pruned", "Δ points", "95 % interval", "Δ relative", "verdict"]]
    for task in benchmarks.tasks:
        points, percent = task.points, task.percent
        change = f"{points.value:+.2f}" if points else ""
        ends = _interval(points) if points else f"{ends} %" if percent and (ends := _interval(percent)) else ""
        relative = f"{decimal(percent.value, digits=2, sign=True)} %" if percent else ""
        values = (decimal(v.value, digits=4) for v in (task.base, task.pruned))
        mark = (task.paired and task.paired.mark) or ""
        rows.append([task.task, task.metric, str(task.documents), *values, change, ends, relative, mark])
    return rows


def mean_lines(benchmarks: BenchmarkComparison) -> list[str]:
    """Write the mean change with its interval, where there is one."""
    if not (mean := benchmarks.mean_points):
        return []
    within = f" [{ends}]" if (ends := _interval(mean)) else ""
    return [f"mean change of the shares: {mean.value:+.2f} points{within}"]


def _interval(estimate: Estimate) -> str:
    if not estimate.ends:
        return ""
    return " to ".join(decimal(end, digits=2, sign=True) for end in estimate.ends)


def free_text_line(repetition: RepetitionComparison) -> str:
    """Write how much more the pruned model repeats itself, in one line."""
    seq_rep, loops = repetition.seq_rep_4, repetition.loops
    change = seq_rep.change.affine(times=100)
    within = f" [{ends}]" if (ends := _interval(change)) else ""
    return (
        f"free text: seq-rep-4 {100 * seq_rep.base:.2f} % -> {100 * seq_rep.pruned:.2f} %, {change.value:+.2f} points"
        f"{within}; texts ending in a loop: {loops.base} -> {loops.pruned} of {loops.texts}"
    )


def publish_summary(report: PublishReport, *, with_card: bool = False, folder: str = "", written: str = "") -> str:
    """Write what a publish did: where the result is, what became smaller, what it cost, what it writes now.

    Of a dry run, `with_card` adds the card; its files in `folder` and its report, `written`, are what goes on from it.
    """
    return "\n\n".join(_publish_parts(report, with_card, folder, written))


def _publish_parts(report: PublishReport, with_card: bool, folder: str, written: str) -> Iterator[str]:  # noqa: FBT001
    if (
        with_card and report.upload and not report.published
    ):  # long, so it comes before what is read first at the end of a terminal
        yield f"README.md as it would be published:\n\n{report.upload.card.strip()}"
    yield checkpoint_lines(report.checkpoint)
    if report.benchmarks:
        yield benchmarks_table(report.benchmarks)
    if report.generation and report.generation.repetition:
        yield free_text_line(report.generation.repetition)
    if loaded := report.loaded_back:
        yield f"Loaded back from the Hub, given the prompt {loaded.prompt!r} it writes:\n{loaded.text.strip()} …"
    if published := report.published:
        what = "published" if published.created else "up to date"
        rows = [[what, published.repo_id], ["commit", published.commit], ["url", published.url]]
        rows += [["tag", published.tag]] if published.tag else []
        rows += [["pull request", published.pull_request_url]] if published.pull_request_url else []
        yield table(rows, left=2)
    for sibling in report.siblings:
        yield sibling_lines(sibling)
    if not report.published:
        if report.upload:
            yield upload_lines(report.upload)
        yield "dry run: nothing was published"
        yield _next_steps(folder, written)


def _next_steps(folder: str, written: str) -> str:
    """Write the two commands that follow a dry run, or how to get there."""
    from hubprune.workflows.push import report_beside

    unused = ("kept" if number == 1 else f"kept-{number}" for number in count(1))
    free = (name for name in unused if not Path(name).exists() and not report_beside(Path(name)).exists())
    kept = shlex.quote(folder or next(free))
    beside = not written or (folder and Path(written) == report_beside(Path(folder)))
    pushed = f"hubprune push {kept}" + ("" if beside else f" {shlex.quote(written)}")
    lines = table([["to see the card:", f"hubprune card {kept} --preview"], ["to publish it:", pushed]], left=2)
    return lines if folder else f"Run it again with --out {kept}, which computes nothing again, then\n{lines}"


def sibling_lines(report: SiblingReport) -> str:
    """Write what became of a sibling: what it is, how close it is to the pruned model, where it is."""
    rows = []
    if made := report.quantized:
        weights = f"{size(made.record.weight_bytes)}, {made.record.bits_per_weight:.2f} bits per quantized weight"
        rows.append(["weights", weights])
        if seen := made.record.divergence:
            rows.append(["KL", f"{seen.kl:.4f} ± {seen.kl_error:.4f} nats per token, top-1 {100 * seen.top1:.1f} %"])
    if healing := report.healing:
        rows += [[name, told] for name, told in _healing_rows(healing)]
    for made_file in report.exports:
        seen_there = made_file.parity.model if made_file.parity else None
        told = f", same next token at {seen_there.agreed} of {seen_there.positions}" if seen_there else ""
        rows.append([made_file.outtype, f"{size(made_file.size)}{told}"])
    if report.recovered and (mean := report.recovered.step.mean_points):
        lost = report.recovered.dropped.mean_points
        ends = f" [{_interval(mean)}]" if _interval(mean) else ""
        before = f"pruning {lost.value:+.2f}, " if lost else ""
        rows.append(["points (mean)", f"{before}healing {mean.value:+.2f}{ends}"])
    if (four := report.benchmarks) and four.together:
        last = four.together[-1]
        changes = (last.dropped, last.quantized, last.both, last.excess)
        one, other, both, off = (f"{round(change.value, 2) + 0.0:+.2f}" for change in changes)  # and never -0.00
        ends = f" [{last.excess.low:+.2f} to {last.excess.high:+.2f}]" if last.excess.ends else ""
        told = f"dropping {one}, quantizing {other}, both {both}; off the sum {off}{ends}"
        rows.append([f"points ({last.name})", told])
    if published := report.published:
        what = "published" if published.created else "up to date"
        rows += [[what, published.repo_id], ["commit", published.commit]]
        rows += [["tag", published.tag]] if published.tag else []
        rows += [["pull request", published.pull_request_url]] if published.pull_request_url else []
    elif report.upload:
        rows.append(["dry run", f"{report.repo_id}: {_upload_total(report.upload)}"])
    return f"{report.repo_id}:\n{table(rows, left=2)}"


def upload_lines(plan: UploadPlan) -> str:
    """Write what a publish would do with every file, and how much it would send."""
    where = f"{plan.repo_id}, branch {plan.revision}{' (as a pull request)' if plan.create_pr else ''}"
    state = f"compared with {plan.parent[:12]}" if plan.parent else "which does not exist yet"
    rows = [["", "file", "size", "new to the Hub"]]
    rows += [[f.change, f.path, size(f.size), "?" if f.new_bytes is None else size(f.new_bytes)] for f in plan.files]
    return f"{where}, {state}:\n{table(rows, left=2)}\n\n{_upload_total(plan)}"


def _upload_total(plan: UploadPlan) -> str:
    counted = {change: sum(f.change == change for f in plan.files) for change in ("new", "changed", "deleted")}
    changes = ", ".join(f"{number} {change}" for change, number in counted.items() if number)
    if not changes:
        return "nothing would change"
    if plan.new_bytes is None:
        return f"files: {changes}; {size(plan.upload_bytes)}, of which the new part could not be found out"
    share = f" ({100 * plan.new_bytes / plan.upload_bytes:.2f} %)" if plan.upload_bytes else ""
    primer = f", {size(plan.primer_bytes)} of it to ask for the base's chunks" if plan.primer_bytes else ""
    sent = f"about {size(plan.new_bytes)}{share} would be sent{primer}"
    return f"files: {changes}; {size(plan.upload_bytes)}, of which {sent}"


def environment_table(environment: Environment) -> str:
    """Write versions and machine."""
    names = ("hubprune", "python", "platform", "machine", "threads")
    rows = [[name, str(getattr(environment, name))] for name in names]
    return table([*rows, *map(list, environment.versions.items())], left=2)


def checkup_lines(seen: Checkup) -> str:
    """Write what was found, a line each with what to do about it, and what every stage needs."""
    marks = {"ok": "ok", "warning": "warn", "error": "ERROR"}
    lines = []
    for finding in seen.findings:
        lines.append([marks[finding.status], finding.name, finding.told])
        lines += [["", "", f"-> {finding.hint}"]] if finding.hint else []
    parts = [table(lines, left=3)]
    if seen.stages:
        rows = [["stage", "way", "memory", "read", "written", "FLOP", "about"]]
        for need in seen.stages:
            about = "" if need.seconds is None else duration(need.seconds)
            sizes = (size(amount) if amount else "" for amount in (need.memory, need.read, need.written))
            rows.append([need.stage, need.way, *sizes, f"{need.flop:.1e}" if need.flop else "", about])
        total = sum(need.seconds or 0 for need in seen.stages)
        parts.append(table(rows, left=2))
        parts.append(f"together about {duration(total)}, downloads and uploads aside; every figure is arithmetic")
    return "\n\n".join(parts)


def _healing_rows(record: HealingRecord) -> Iterator[tuple[str, str]]:
    before, after = record.before, record.after
    base = f"base {record.base_perplexity:.3f}"
    yield "perplexity", f"{base}, pruned {before.perplexity:.3f}, healed {after.perplexity:.3f}"
    yield "KL to the base", f"{before.kl:.4f} -> {after.kl:.4f} nats per token, top-1 {100 * after.top1:.1f} %"
    if back := record.recovered:
        value, low, high = (100 * share for share in (back.value, back.low, back.high))
        yield "came back", f"{value:.1f} % of the lost log-perplexity [{low:.1f}, {high:.1f}]"


def healing_lines(healed: HealedCheckpoint) -> str:
    """Write what a training brought back, on documents that were held out."""
    record = healed.record
    before, after = record.before, record.after
    rows = [["held out", "base", "pruned", "healed"]]
    rows.append(["perplexity", *(f"{v:.3f}" for v in (record.base_perplexity, before.perplexity, after.perplexity))])
    rows.append(["KL to the base", "0", f"{before.kl:.4f}", f"{after.kl:.4f}"])
    rows.append(["same next token", "100.0 %", f"{100 * before.top1:.1f} %", f"{100 * after.top1:.1f} %"])
    told = "pruning had lost nothing of the held-out perplexity"
    if back := record.recovered:
        value, low, high = (100 * share for share in (back.value, back.low, back.high))
        told = f"{value:.1f} % of the lost log-perplexity is back [{low:.1f}, {high:.1f}]"
    trained = f"{record.steps:,} steps, {record.tokens:,} tokens in {duration(record.seconds)}"
    return f"{table(rows)}\n{told}; {trained}"
