"""`hubprune export`: the formats of other runtimes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hubprune.commands.summary import table
from hubprune.commands.terminal import show, to_json
from hubprune.core.console import Reporter, size
from hubprune.core.requests import ExportRequest

if TYPE_CHECKING:
    from hubprune.exporting.artifact import GgufExport, Parity, ParityFigures

EXAMPLES = "Example:  hubprune export gguf me/Llama-3.2-3B-attn-drop-3 --outtype q8_0 --out pruned.gguf"


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
    figures = [_figures(found) for _, found in columns]
    rows += [[label, *(found[label] for found in figures)] for label in figures[0]]
    yield table(rows)
    if parity.without_control:
        yield f"no control: {parity.without_control}"
    yield f"demanded: {parity.rule}"


def _figures(found: ParityFigures) -> dict[str, str]:
    return {
        "same next token": f"{found.agreed} of {found.positions}",
        "largest difference of a logit": f"{found.max_logit_difference:.2e}",
        "difference, share of the spread": f"{found.relative_difference:.1e}",
        "same greedy text": f"{found.equal_greedy_texts} of {found.greedy_texts}",
        "same tokens": f"{found.equal_tokenized_texts} of {found.tokenized_texts}",
    }
