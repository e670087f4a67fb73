"""The documents of a training: of the calibration mix, and neither scored, nor held out, nor out of a benchmark.

Each subset's shuffled stream is read from its start, as the calibration reads it.  What was scored is passed over, the
first documents after it are held out, and those that follow are trained on, in the shares of the mix.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import CalibrationRecord, CalibrationSource
from hubprune.core.console import Reporter
from hubprune.core.errors import CalibrationError
from hubprune.core.privacy import no_calls_elsewhere, public_name
from hubprune.core.recipe import CalibrationMix, EvaluationSpec
from hubprune.healing.texts import Seen
from hubprune.pruning.documents import stream, token_ids

HEAD = 32
"""Two documents are the same where their first tokens are: they may be cut off at different lengths."""


@dataclass(frozen=True)
class Texts:
    """Documents as token ids."""

    trained: tuple[tuple[int, ...], ...]
    held_out: tuple[tuple[int, ...], ...]
    record: CalibrationRecord
    """Of those that are trained on."""
    left_out: int
    """Documents that shared a passage with a benchmark."""

    @property
    def held_out_tokens(self) -> int:
        """Tokens that are held out."""
        return sum(map(len, self.held_out))


def draw(
    mix: CalibrationMix, *, commits: Sequence[str | None], seed: int, tokenizer: Any, max_tokens: int, wanted: int,
    held_out: int, scored: frozenset[tuple[int, ...]], benchmarks: Seen, reporter: Reporter,
) -> Texts:  # fmt: skip
    """Draw so many documents to train on, or as many as there are, and so many to hold out.

    `scored` are the heads of documents that were scored, see `heads`, without what a chat template makes of them.

    Raises:
        CalibrationError: a subset cannot be read, or nothing is left to train on or to hold out.
    """
    total = sum(subset.weight for subset in mix.subsets)
    quotas = zip(*(mix.model_copy(update={"num_samples": n}).counts() for n in (held_out, wanted)), strict=True)
    trained, held, sources, left_out = list[tuple[int, ...]](), list[tuple[int, ...]](), list[CalibrationSource](), 0
    cut = {"truncation": True, "max_length": max_tokens}
    reporter.note("drawing documents to train on")
    with no_calls_elsewhere():
        for subset, commit, (to_hold, to_train) in zip(mix.subsets, commits, quotas, strict=True):
            own: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = [], []
            for text in stream(subset, commit=commit, seed=seed, buffer=mix.shuffle_buffer):
                ids = token_ids(tokenizer, text, chat_template=mix.chat_template, **cut)
                # What a chat template puts before them would make all documents one.
                plain = token_ids(tokenizer, text, chat_template=False, **cut) if mix.chat_template else ids
                if len(ids) < 2 or plain[:HEAD] in scored:
                    continue
                if benchmarks.holds(text.plain):
                    left_out += 1
                    continue
                (own[0] if len(own[0]) < to_hold else own[1]).append(ids)
                if len(own[1]) >= to_train:
                    break
            held += own[0]
            trained += own[1]
            sources.append(CalibrationSource(
                dataset=public_name(subset.dataset), config=subset.config, split=subset.split, commit=commit,
                weight=subset.weight / total, documents=len(own[1]), tokens=sum(map(len, own[1])),
            ))  # fmt: skip
    if not trained or not held:
        raise CalibrationError(
            f"{mix.name} has {len(held)} documents to hold out and {len(trained)} to train on, besides those that were "
            "scored.",
            hint="Pass other texts with --data MIX or FILE, or a lower --held-out.",
        )
    digest = hashlib.sha256()
    for document in trained:
        digest.update(array("q", [len(document), *document]).tobytes())
    record = CalibrationRecord(
        mix=mix.name, sources=tuple(sources), max_tokens=max_tokens, chat_template=mix.chat_template, seed=seed,
        shuffle_buffer=mix.shuffle_buffer, token_sha256=digest.hexdigest(),
    )  # fmt: skip
    return Texts(tuple(trained), tuple(held), record, left_out)


def heads(documents: Sequence[Sequence[int]]) -> frozenset[tuple[int, ...]]:
    """Return what documents are known by."""
    return frozenset(tuple(ids[:HEAD]) for ids in documents)


def benchmark_texts(spec: EvaluationSpec) -> Seen:
    """Collect the passages of all documents that some benchmarks ask about.

    Raises:
        EvaluationError: a benchmark or its data set cannot be loaded.
    """
    if not spec.tasks:
        return Seen(frozenset())
    from hubprune.evaluation.tasks import load_tasks

    suite = load_tasks(spec)
    return Seen.of(text for task in suite.tasks.values() for row in task.eval_docs for text in _strings(row))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _strings(part)


def own_files(folder: Path) -> str | None:
    """Return the folder of task files that a published result carries, where there is one."""
    tasks = folder / "tasks"
    return str(tasks) if tasks.is_dir() else None
