"""`hubprune refresh`, `reproduce`, `export` and `quantize`, of what was written before, and what they tell people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from hubprune.commands.summary import table
from hubprune.commands.terminal import show, to_json
from hubprune.core.console import Reporter, duration, size
from hubprune.core.requests import ExportRequest, QuantizeRequest, RefreshRequest, ReproduceRequest

if TYPE_CHECKING:
    from hubprune.core.artifacts import (
        Difference,
        GgufExport,
        Parity,
        ParityFigures,
        QuantizationRecord,
        RefreshReport,
        Reproduction,
        Scalar,
    )


WOULD_CHANGE = 3
"""Exit code of a check that found something to do."""
RESUME = "Run the same command again: a repo that has its commit gets none again."
REFRESH_EXAMPLES = (
    "Exit codes: 0 all is up to date or refreshed, 3 --check found something to do, 5 somebody edited a repo,"
    " 1 one could not be refreshed for another reason, or several for more than one."
    "  |  Examples:  hubprune refresh me/Llama-3.2-3B-attn-drop-3 --check"
    "  |  hubprune refresh me/one me/two me/three"
    "  |  hubprune refresh acme/model --create-pr"
)
LONGEST = 48
"""Characters of a value of config.json that are shown."""
DIFFERS = 3
"""Exit code where everything was run and something is not equal."""
REPRODUCE_EXAMPLES = (
    "Exit codes: 0 everything is equal that should be, 3 something differs, 1 it could not be run."
    "  |  Examples:  hubprune reproduce me/Llama-3.2-3B-attn-drop-3"
    "  |  hubprune reproduce ./published --calibration texts.jsonl --report reproduction.json"
)
SHOWN = 3
"""Differences of a part that are written out; the JSON has all of them."""
WIDTH = 60
"""Characters of a value that are shown."""


def refresh(request: RefreshRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Bring repos that are out to what this version writes: modeling file, tokenizer files, config.json and card.

    Nothing is computed and no weights are sent.  Every repo gets one commit, is loaded back, and says in its
    hubprune.json and on its card what changed.
    """
    from hubprune.workflows.refresh import refresh_all, to_json

    reports = refresh_all(request, reporter=reporter)
    typer.echo(to_json(reports) if as_json else refresh_lines(reports))
    failed = {report.exit_code for report in reports if report.outcome == "failed"}
    changes = any(report.outcome == "would change" for report in reports)
    if code := (failed.pop() if len(failed) == 1 else 1) if failed else WOULD_CHANGE if changes else 0:
        raise typer.Exit(code)


def refresh_lines(reports: Sequence[RefreshReport]) -> str:
    """Write one line per repo; below it, where something changes, every file and key."""
    return "\n".join(line for report in reports for line in _refreshed(report))


def _refreshed(report: RefreshReport) -> Iterator[str]:
    yield f"{report.repo_id}  {_told(report)}"
    if report.changed:
        digests = [f"{(file.before or 'none')[:12]} -> {(file.after or 'none')[:12]}" for file in report.changed]
        rows = [[f"  {f.outcome}", f.path, told] for f, told in zip(report.changed, digests, strict=True)]
        yield table(rows, left=3)
    if same := [file.path for file in report.files if file.outcome == "same"] if report.changed else []:
        yield f"  same     {', '.join(same)}"
    for change in report.config:
        yield f"  config.json  {change.key}: {_value(change.before)} -> {_value(change.after)}"
    for note in report.notes:
        yield f"  note: {note}"
    if report.commit:
        tag = f", tag {report.tag}" if report.tag else ""
        yield f"  {report.url}{tag}"
        sent = f"{size(report.sent_bytes)} in {duration(report.seconds)}"
        yield f"  {len(report.changed)} files, {sent}; no weights were sent"


def _told(report: RefreshReport) -> str:
    if report.outcome == "failed":
        return f"failed: {report.error}"
    if not report.changed:
        return f"{report.outcome} with hubprune {report.to_version}"
    before = "" if report.from_version == report.to_version else f"{report.from_version} -> "
    return f"{report.outcome}: hubprune {before}{report.to_version}"


def _value(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def reproduce(request: ReproduceRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Run the recipe of a published result again, publish nothing, and say what is equal and what differs."""
    from hubprune.workflows import reproduce as again

    seen = again.reproduce(request, reporter=reporter)
    show(to_json(seen) if as_json else reproduction_lines(seen))
    if not seen.equal:
        raise typer.Exit(DIFFERS)


def reproduction_lines(seen: Reproduction) -> str:
    """Write a table of all parts, the first differences of each, likely causes, and the verdict."""
    at = f" at {seen.commit[:12]}" if seen.commit else ""
    parts = [
        f"{seen.name}{at}, made of {seen.base} at {seen.base_commit[:12]}",
        table([[part.name, part.outcome, part.detail] for part in seen.parts], left=3),
    ]
    for part in (part for part in seen.parts if part.differences):
        rows = [[part.name, "published", "files" if part.name == "manifest" else "reproduced"]]
        rows += [[f"  {row.place}", *_pair(row)] for row in part.differences[:SHOWN]]
        more = len(part.differences) - SHOWN
        parts.append(table(rows, left=3) + (f"\n  and {more:,} more: --json has all" if more > 0 else ""))
    if seen.causes:
        head = "this changed nothing:" if seen.equal else "what may be the cause:"
        parts.append("\n".join([head, *(f"  {cause}" for cause in seen.causes)]))
    where = f"\nreproduced files: {seen.folder}" if seen.folder else ""
    names = [part.name for part in seen.parts if part.outcome == "differs"]
    differ = f"not reproduced: {', '.join(names)} {'differs' if len(names) == 1 else 'differ'}"
    parts.append(f"{'reproduced: everything is equal that should be' if seen.equal else differ}{where}")
    return "\n\n".join(parts)


def _pair(row: Difference) -> list[str]:
    """Write two values; of two long texts what stands where they part."""
    pair = (row.published, row.found)
    if not all(isinstance(value, str) for value in pair):
        return [_short(value, start=0) for value in pair]
    texts = [str(value) for value in pair]
    same = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    return [_short(text, start=max(0, same - WIDTH // 3) if max(map(len, texts)) > WIDTH else 0) for text in texts]


def _short(value: Scalar, *, start: int) -> str:
    if value is None:
        return "none"
    if not isinstance(value, str):
        return repr(value)
    text = value[start : start + WIDTH]
    shown = repr(text)[1:-1] if not text.isprintable() else text
    return f"{'…' if start else ''}{shown}{'…' if len(value) > start + WIDTH else ''}"


GGUF_EXAMPLES = "Example:  hubprune export gguf me/Llama-3.2-3B-attn-drop-3 --outtype q8_0 --out gguf"


def gguf(request: ExportRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Write a GGUF file for llama.cpp, and compare it with the checkpoint in transformers."""
    from hubprune.workflows.export import export_gguf

    made = export_gguf(request, reporter=reporter)
    show(to_json(made) if as_json else export_lines(made))


def export_lines(made: GgufExport) -> str:
    """Write what a file holds, how close it is, and where it is."""
    return "\n".join(_lines(made))


def _lines(made: GgufExport) -> Iterator[str]:
    yield f"architecture  {made.architecture}, {made.layers} layers, {made.outtype}, {size(made.size)}"
    if made.layers_without_attention:
        yield f"no attention  in {_numbers(made.layers_without_attention)}"
    if made.layers_without_mlp:
        yield f"no MLP        in {_numbers(made.layers_without_mlp)}"
    yield f"tokenizer     {made.tokenizer}"
    yield f"context       {made.context_length:,} tokens"
    for note in made.notes:
        yield f"note          {note}"
    if made.parity is not None:
        yield from ("", *_parity(made.parity))
    yield ""
    yield f"written{' and verified' if made.parity else ''}: {made.file}"
    if made.not_verified:
        yield f"not verified: {made.not_verified}"


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _parity(parity: Parity) -> Iterator[str]:
    columns = [("this model", parity.model)]
    if parity.control is not None:
        columns.append(("unpruned base", parity.control))
    rows = [["llama.cpp against transformers", *(name for name, _ in columns)]]
    figures: list[tuple[str, Callable[[ParityFigures], str]]] = [
        ("same next token", lambda f: f"{f.agreed} of {f.positions}"),
        ("largest difference of a logit", lambda f: f"{f.max_logit_difference:.2e}"),
        ("difference, share of the spread", lambda f: f"{f.relative_difference:.1e}"),
        ("divergence of next tokens, nats", lambda f: "-" if f.kl_divergence is None else f"{f.kl_divergence:.1e}"),
        ("same greedy text", lambda f: f"{f.equal_greedy_texts} of {f.greedy_texts}"),
        ("same tokens", lambda f: f"{f.equal_tokenized_texts} of {f.tokenized_texts}"),
    ]
    rows += [[label, *(write(found) for _, found in columns)] for label, write in figures]
    yield table(rows)
    if parity.without_control:
        yield f"no control: {parity.without_control}"
    yield f"demanded: {parity.rule}"


QUANTIZE_EXAMPLES = (
    "Examples:  hubprune quantize ./pruned"
    "  |  hubprune quantize me/Llama-3.2-3B-attn-drop-3 --group-size 64 --out small"
    "  |  hubprune quantize ./pruned --scheme fp8 --calibration texts.jsonl"
)


def quantize(request: QuantizeRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Write a checkpoint in fewer bits, as transformers and vLLM load it; verify it, and publish nothing."""
    from hubprune.workflows import quantize as workflow

    made = workflow.quantize(request, reporter=reporter)
    lines = f"{quantization_lines(made.record)}\n\nwritten and verified: {workflow.target_of(request)}"
    show(to_json(made) if as_json else lines)


def quantization_lines(record: QuantizationRecord) -> str:
    """Write what has how few bits, and how far its next tokens are from those before."""
    change = record.weight_bytes / record.source_bytes - 1
    group = f"groups of {record.group_size}" if record.group_size else "one scale per row"
    rows = [
        ["made of", f"{record.source}{f' at {record.source_commit[:12]}' if record.source_commit else ''}"],
        ["scheme", f"{record.scheme}, {record.method}, {group}"],
        ["matrices", f"{record.matrices}, {record.quantized_parameters:,} weights of {record.bits_per_weight:g} bits"],
        ["weights", f"{size(record.source_bytes)} -> {size(record.weight_bytes)}, {change:+.1%}"],
    ]
    if texts := record.calibration:
        rows.append(["calibrated on", f"{texts.documents} {texts.unit} of {texts.mix}, {texts.tokens:,} tokens"])
    if found := record.divergence:
        measured = f"{found.documents} others, {found.tokens:,} tokens"
        rows += [
            ["measured on", measured],
            ["KL before, after", f"{found.kl:.4f} ± {1.96 * found.kl_error:.4f} nats per token"],
            ["same first choice", f"{found.top1:.2%}"],
            ["perplexity", f"{found.perplexity:.4g} -> {found.quantized_perplexity:.4g}"],
        ]
    return table(rows, left=2)
