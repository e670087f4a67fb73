"""The documents of a calibration mix: which mixes there are, what their subsets hold, and each one's texts in order.

A mix is found by name or in a file; its subsets are opened, checked, and streamed in shuffled order; and where samples
are to be of one length, documents are joined and cut.  Nobody downloads a whole data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hubprune.core.errors import CalibrationError, HubpruneError, RecipeError
from hubprune.core.files import file_exists
from hubprune.core.privacy import no_calls_elsewhere
from hubprune.core.prompts import Message, chat_ids, rendered
from hubprune.core.recipe import CalibrationMix, CalibrationSubset, parse, read_yaml

if TYPE_CHECKING:
    from datasets import IterableDataset

DOCUMENT_FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
"""Suffix of a local file of documents -> builder of datasets that reads it."""

COSMOPEDIA_WEIGHTS: Mapping[str, float] = {
    "stories": 0.300, "web_samples_v2": 0.200, "web_samples_v1": 0.150, "wikihow": 0.150, "openstax": 0.125,
    "stanford": 0.075,
}  # fmt: skip

_COSMOPEDIA = partial(CalibrationSubset, dataset="HuggingFaceTB/cosmopedia")
COSMOPEDIA = CalibrationMix(
    name="cosmopedia", subsets=tuple(_COSMOPEDIA(config=c, weight=w) for c, w in COSMOPEDIA_WEIGHTS.items())
)

PAPER_SAMPLES = 256
"""Samples that He et al. 2024 (arXiv 2406.15786, section A and Figure 10) score on."""
PAPER_TOKENS = 2048
"""Tokens per sample there."""

C4 = CalibrationMix(
    name="c4",
    subsets=(CalibrationSubset(dataset="allenai/c4", config="en", split="validation", weight=1),),
    num_samples=PAPER_SAMPLES,
    max_tokens=PAPER_TOKENS,
    packed=True,
)
"""The setting of He et al. 2024.  They refer to Sun et al. 2023 for it, who take random windows out of documents that
are longer than a sequence; their own code joins the documents and cuts, and so does this."""


INSTRUCTIONS = {
    "codealpaca": CalibrationSubset(
        dataset="sahil2801/CodeAlpaca-20k", column=("instruction", "input", "output"), weight=1
    ),
    "mathinstruct": CalibrationSubset(dataset="TIGER-Lab/MathInstruct", column=("instruction", "output"), weight=1),
    # Beside its files the repo has a loading script, and with one of those datasets 4 and later open no config.
    "lima": CalibrationSubset(dataset="GAIR/lima", file="train.jsonl", column="conversations", weight=1),
}
"""The instruction sets of He et al. 2024, Figure 3, one document per row, which goes through a chat template where the
mix is asked to."""

MIXES: Mapping[str, CalibrationMix] = {
    "cosmopedia": COSMOPEDIA,
    "c4": C4,
    **{
        name: CalibrationMix(name=name, subsets=(subset,), num_samples=PAPER_SAMPLES, max_tokens=PAPER_TOKENS)
        for name, subset in INSTRUCTIONS.items()
    },
}
"""The shipped mixes."""


def is_file(dataset: str) -> bool:
    """Return whether a subset's data set is a local file of documents, by its suffix."""
    return Path(dataset).suffix in DOCUMENT_FILES


def find_mix(name: str, *, num_samples: int | None = None, max_tokens: int | None = None) -> CalibrationMix:
    """Return a mix by name, or read it from a YAML of the same fields, or make one of a file of documents.

    The name is one of `MIXES`, or the path of a .yaml, .jsonl, .json, .parquet or .txt file.  Numbers that are given,
    of documents or packed sequences and of tokens in each, take the place of the mix's own.

    Raises:
        RecipeError: no such mix or file, or a value that cannot be used.
    """
    path = Path(name)
    if name not in MIXES and path.suffix not in (*DOCUMENT_FILES, ".yaml", ".yml"):
        near = get_close_matches(name.lower(), MIXES, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        files = f"a .yaml with a mix, or a {', '.join(DOCUMENT_FILES)} file"
        raise RecipeError(
            f"There is no calibration mix {str(path)!r}.", hint=f"{meant}Shipped: {', '.join(MIXES)}. Or pass {files}."
        )
    if name not in MIXES and not file_exists(path):
        raise RecipeError(f"The calibration file {path} does not exist.")
    if name in MIXES:
        mix = MIXES[name]
    elif path.suffix in DOCUMENT_FILES:
        mix = CalibrationMix(name=path.name, subsets=(CalibrationSubset(dataset=str(path), weight=1.0),))
    else:
        mix = parse(CalibrationMix, {"name": path.stem, **read_yaml(path)})
    given = {"num_samples": num_samples, "max_tokens": max_tokens}
    return parse(CalibrationMix, {**mix.model_dump(), **{k: v for k, v in given.items() if v is not None}})


def check_subsets(mix: CalibrationMix, commits: Sequence[str | None]) -> None:
    """Find the config, split and columns of every subset; one document is read where nothing else tells its columns.

    There is one commit per subset, that of its data set; None for local files.

    Raises:
        CalibrationError: something is not there, with what is, or cannot be read.
    """
    with no_calls_elsewhere():
        for subset, commit in zip(mix.subsets, commits, strict=True):
            with _named(subset):
                _check_columns(subset, _open(subset, commit))


@dataclass(frozen=True, slots=True)
class Text:
    """A document before it is tokens."""

    plain: str
    turns: tuple[Message, ...]
    """The same as a conversation, for a chat template."""


def stream(subset: CalibrationSubset, *, commit: str | None, seed: int, buffer: int) -> Iterator[Text]:
    """Yield a subset's documents, blank ones left out, in the order that a seed and a buffer of this size give.

    Raises:
        CalibrationError: the subset cannot be read, or has no such config, split or text column.
    """
    with _named(subset):
        shuffled = _open(subset, commit).shuffle(seed=seed, buffer_size=buffer, max_buffer_input_shards=1)
        for row in shuffled:
            if (text := text_of(row, subset)).strip():
                yield Text(text, turns_of(row, subset))


def token_ids(tokenizer: Any, text: Text, *, chat_template: bool, **options: Any) -> tuple[int, ...]:
    """Return the tokens of a document: as the tokenizer reads it, or with what its chat template makes of the turns.

    Raises:
        CalibrationError: there are none.
        UnsupportedFormatError: the chat template cannot be rendered.
    """
    if chat_template:
        ids = chat_ids(tokenizer, rendered(tokenizer, text.turns, answer=False), **options)
    else:
        ids = tokenizer(text.plain, **options)["input_ids"]
    if not ids:
        raise CalibrationError("The base's tokenizer makes no tokens of a document.")
    return tuple(ids)


def _check_columns(subset: CalibrationSubset, rows: IterableDataset) -> None:
    """Refuse columns whose type can hold neither text nor a list of texts; where that is not sure, a row will tell."""
    if rows.features is None:
        for row in rows.take(1):
            text_of(row, subset)
        return
    for column in subset.columns:
        feature = rows.features.get(column, {})
        inner = getattr(feature, "feature", feature)  # of a list
        if isinstance(inner, dict) and inner.keys() >= {"role", "content"}:
            continue
        if isinstance(inner, dict) or getattr(inner, "dtype", "string") not in ("string", "large_string", "null"):
            raise _no_column(subset, column, list(rows.features))


def text_of(row: Mapping[str, Any], subset: CalibrationSubset) -> str:
    """Return the document that a row holds: its column's text, or the texts of several columns joined by blank lines.

    A column holds a text, nothing, or a list of texts or messages, such as the turns of a conversation.  One text alone
    is taken as it is; of several, those that are blank are left out.

    Raises:
        CalibrationError: a column is not there or holds something else.
    """
    texts: list[str] = []
    for column in subset.columns:
        value = row.get(column)
        found = value if isinstance(value, list) else [value] if value is not None else []
        found = [text.get("content") if _is_message(text) else text for text in found]
        if column not in row or not all(isinstance(text, str) for text in found):
            raise _no_column(subset, column, list(row))
        texts += found
    return texts[0] if len(texts) == 1 else "\n\n".join(text for text in texts if text.strip())


def turns_of(row: Mapping[str, Any], subset: CalibrationSubset) -> tuple[Message, ...]:
    """Return the document that a row holds as the turns of a conversation.

    Messages are these turns.  The columns `prompt` and `completion` are what a user and what the model says, where they
    are no messages themselves.  All else is one document, which is what a user says.
    """
    asked = {"prompt": "user", "completion": "assistant"}
    values = {column: row.get(column) for column in subset.columns}
    if all(value and isinstance(value, list) and all(map(_is_message, value)) for value in values.values()):
        messages = [message for value in values.values() for message in value or ()]
        return tuple({"role": message["role"], "content": message["content"]} for message in messages)
    if list(values) == list(asked) and all(isinstance(value, str) for value in values.values()):
        return tuple({"role": role, "content": values[column]} for column, role in asked.items())
    return ({"role": "user", "content": text_of(row, subset)},)


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _no_column(subset: CalibrationSubset, column: str, columns: Sequence[str]) -> CalibrationError:
    return CalibrationError(
        f"{subset.dataset} ({subset.label}) has no text column {column!r}.",
        hint=f"Its columns: {', '.join(map(str, columns))}. Set `column` in the mix.",
    )


def _open(subset: CalibrationSubset, commit: str | None) -> IterableDataset:
    """Open a split of a subset; nothing is read yet.  What is one file has one split, `train`."""
    import datasets

    splits: Mapping[str, IterableDataset]
    if file := subset.dataset if is_file(subset.dataset) else subset.file:
        suffix = PurePosixPath(file).suffix
        if suffix not in DOCUMENT_FILES:
            known = ", ".join(DOCUMENT_FILES)
            raise CalibrationError(f"{file} is none of {known}, the files that documents are read of.")
        place = file if is_file(subset.dataset) else f"hf://datasets/{subset.dataset}@{commit}/{file}"
        splits = datasets.load_dataset(DOCUMENT_FILES[suffix], data_files=place, streaming=True)
    else:
        try:
            splits = datasets.load_dataset(subset.dataset, subset.config, revision=commit, streaming=True)
        except ValueError as error:  # for a config that is missing or unknown, among other things
            known = datasets.get_dataset_config_names(subset.dataset, revision=commit)
            if subset.config in known:
                raise
            several = "has several configs, and the mix names none"
            raise CalibrationError(
                f"{subset.dataset} {f'has no config {subset.config!r}' if subset.config else several}.",
                hint=f"Its configs: {', '.join(known)}. Set `config` in the mix.",
            ) from error
    if subset.split not in splits:
        raise CalibrationError(
            f"{subset.dataset} ({subset.label}) has no split {subset.split!r}.",
            hint=f"Its splits: {', '.join(map(str, splits))}. Set `split` in the mix.",
        )
    return splits[subset.split]


@contextmanager
def _named(subset: CalibrationSubset) -> Iterator[None]:
    """Put the subset's name on whatever goes wrong with it."""
    try:
        yield
    except HubpruneError:
        raise
    except Exception as error:
        raise unreadable(f"{subset.dataset} ({subset.label}, {subset.split})", error) from error


def unreadable(name: str, error: Exception) -> CalibrationError:
    """Make an error of whatever a library said about a data set."""
    first_line = str(error).strip().partition("\n")[0] or type(error).__name__
    return CalibrationError(
        f"The calibration data set {name} cannot be read: {first_line}",
        hint="Check its name and your access, or pass another mix with --calibration.",
    )


def pack(documents: Iterable[Sequence[int]], *, length: int) -> Iterator[tuple[int, ...]]:
    """Join the tokens of documents in their order and yield them in pieces of exactly `length` tokens.

    Nothing is left out or added between documents, and a piece may hold the end of one and the start of the next.
    Documents are taken only as pieces are asked for; what is left at the very end is too short and left out.

    Raises:
        ValueError: a length below 1.
    """
    if length < 1:
        raise ValueError(f"a sequence has at least one token, not {length}")
    waiting: list[int] = []
    for ids in documents:
        waiting += ids
        whole = len(waiting) - len(waiting) % length
        for start in range(0, whole, length):
            yield tuple(waiting[start : start + length])
        del waiting[:whole]


def end_of_document(ids: Sequence[int], *, eos: int | None) -> tuple[int, ...]:
    """Return a document's tokens with the end-of-text token behind them, where there is one and it is not there yet."""
    return tuple(ids) if eos is None or (ids and ids[-1] == eos) else (*ids, eos)
