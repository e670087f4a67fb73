"""Read the documents of one subset of a mix: find it, check what it holds, stream it in shuffled order.

The shipped calibration mixes, and how `--calibration` finds one.

Join documents and cut them into sequences of one length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hubprune.core.errors import CalibrationError, HubpruneError, RecipeError
from hubprune.core.files import file_exists
from hubprune.core.privacy import no_calls_elsewhere
from hubprune.core.recipe import CalibrationMix, CalibrationSubset, parse, read_yaml

if TYPE_CHECKING:
    from datasets import IterableDataset


# ---- mixes ---------------------------------------------------------------------------------------------------------


DOCUMENT_FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
"""Suffix of a local file of documents -> builder of datasets that reads it."""

COSMOPEDIA_WEIGHTS: Mapping[str, float] = {
    "stories": 0.300,
    "web_samples_v2": 0.200,
    "web_samples_v1": 0.150,
    "wikihow": 0.150,
    "openstax": 0.125,
    "stanford": 0.075,
}

COSMOPEDIA = CalibrationMix(
    name="cosmopedia",
    subsets=tuple(
        CalibrationSubset(dataset="HuggingFaceTB/cosmopedia", config=config, weight=weight)
        for config, weight in COSMOPEDIA_WEIGHTS.items()
    ),
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


def _instructions(name: str, subset: CalibrationSubset) -> CalibrationMix:
    return CalibrationMix(name=name, subsets=(subset,), num_samples=PAPER_SAMPLES, max_tokens=PAPER_TOKENS)


CODEALPACA = _instructions(
    "codealpaca",
    CalibrationSubset(dataset="sahil2801/CodeAlpaca-20k", column=("instruction", "input", "output"), weight=1),
)
MATHINSTRUCT = _instructions(
    "mathinstruct", CalibrationSubset(dataset="TIGER-Lab/MathInstruct", column=("instruction", "output"), weight=1)
)
# Beside its files the repo has a loading script, and with one of those datasets 4 and later open none of the configs.
LIMA = _instructions(
    "lima", CalibrationSubset(dataset="GAIR/lima", file="train.jsonl", column="conversations", weight=1)
)

MIXES: Mapping[str, CalibrationMix] = {mix.name: mix for mix in (COSMOPEDIA, C4, CODEALPACA, MATHINSTRUCT, LIMA)}
"""The shipped mixes.  The instruction sets are those of He et al. 2024, Figure 3, one document per row without the
template of any chat: a base has none."""


def is_file(dataset: str) -> bool:
    """Return whether a subset's data set is a local file of documents, by its suffix."""
    return Path(dataset).suffix in DOCUMENT_FILES


def find_mix(name: str, *, num_samples: int | None = None, max_tokens: int | None = None) -> CalibrationMix:
    """Return a mix by name, or read it from a YAML of the same fields, or make one of a file of documents.

    Args:
        name: one of `MIXES`, or the path of a .yaml, .jsonl, .json, .parquet or .txt file.
        num_samples: documents or packed sequences in all, in place of the mix's own number.
        max_tokens: tokens per document or packed sequence, in place of the mix's own number.

    Raises:
        RecipeError: no such mix or file, or a value that cannot be used.
    """
    mix = MIXES.get(name) or _from_file(Path(name))
    given = {"num_samples": num_samples, "max_tokens": max_tokens}
    return parse(CalibrationMix, {**mix.model_dump(), **{k: v for k, v in given.items() if v is not None}})


def _from_file(path: Path) -> CalibrationMix:
    if path.suffix in (*DOCUMENT_FILES, ".yaml", ".yml") and not file_exists(path):
        raise RecipeError(f"The calibration file {path} does not exist.")
    if path.suffix not in (*DOCUMENT_FILES, ".yaml", ".yml"):
        raise RecipeError(
            f"There is no calibration mix {str(path)!r}.",
            hint=f"Shipped: {', '.join(MIXES)}. Or pass a .yaml with a mix, or a {', '.join(DOCUMENT_FILES)} file.",
        )
    if path.suffix in DOCUMENT_FILES:
        return CalibrationMix(name=path.name, subsets=(CalibrationSubset(dataset=str(path), weight=1.0),))
    return parse(CalibrationMix, {"name": path.stem, **read_yaml(path)})


# ---- documents -----------------------------------------------------------------------------------------------------


def check_subsets(mix: CalibrationMix, commits: Sequence[str | None]) -> None:
    """Find the config, split and columns of every subset; one document is read where nothing else tells its columns.

    Args:
        mix: the subsets.
        commits: commit of each subset's data set, None for local files.

    Raises:
        CalibrationError: something is not there, with what is, or cannot be read.
    """
    with no_calls_elsewhere():
        for subset, commit in zip(mix.subsets, commits, strict=True):
            with _named(subset):
                _check_columns(subset, _open(subset, commit))


def stream(subset: CalibrationSubset, *, commit: str | None, seed: int, buffer: int) -> Iterator[str]:
    """Yield a subset's documents, blank ones left out, in the order that a seed and a buffer of this size give.

    Raises:
        CalibrationError: the subset cannot be read, or has no such config, split or text column.
    """
    with _named(subset):
        shuffled = _open(subset, commit).shuffle(seed=seed, buffer_size=buffer, max_buffer_input_shards=1)
        for row in shuffled:
            if (text := text_of(row, subset)).strip():
                yield text


def text_of(row: Mapping[str, Any], subset: CalibrationSubset) -> str:
    """Return the document that a row holds: its column's text, or the texts of several columns joined by blank lines.

    A column holds a text, nothing, or a list of texts, such as the turns of a conversation.  One text alone is taken as
    it is; of several, those that are blank are left out.

    Raises:
        CalibrationError: a column is not there or holds something else.
    """
    texts = [text for column in subset.columns for text in _texts(row, column, subset)]
    return texts[0] if len(texts) == 1 else "\n\n".join(text for text in texts if text.strip())


def unreadable(name: str, error: Exception) -> CalibrationError:
    """Make an error of whatever a library said about a data set."""
    first_line = str(error).strip().partition("\n")[0] or type(error).__name__
    return CalibrationError(
        f"The calibration data set {name} cannot be read: {first_line}",
        hint="Check its name and your access, or pass another mix with --calibration.",
    )


def _texts(row: Mapping[str, Any], column: str, subset: CalibrationSubset) -> list[str]:
    value = row.get(column)
    texts = value if isinstance(value, list) else [value] if value is not None else []
    if column not in row or not all(isinstance(text, str) for text in texts):
        raise _no_column(subset, column, list(row))
    return texts


def _no_column(subset: CalibrationSubset, column: str, columns: Sequence[str]) -> CalibrationError:
    return CalibrationError(
        f"{subset.dataset} ({subset.label}) has no text column {column!r}.",
        hint=f"Its columns: {', '.join(map(str, columns))}. Set `column` in the mix.",
    )


def _check_columns(subset: CalibrationSubset, rows: IterableDataset) -> None:
    if rows.features is not None:
        for column in subset.columns:
            if column not in rows.features or _is_no_text(rows.features[column]):
                raise _no_column(subset, column, list(rows.features))
    else:
        for row in rows.take(1):
            text_of(row, subset)


def _is_no_text(feature: Any) -> bool:
    """Tell a type that can hold neither text nor a list of texts; where that is not sure, the rows will tell."""
    inner = getattr(feature, "feature", feature)  # of a list
    return isinstance(inner, dict) or getattr(inner, "dtype", "string") not in ("string", "large_string", "null")


@contextmanager
def _named(subset: CalibrationSubset) -> Iterator[None]:
    """Put the subset's name on whatever goes wrong with it."""
    try:
        yield
    except HubpruneError:
        raise
    except Exception as error:
        raise unreadable(f"{subset.dataset} ({subset.label}, {subset.split})", error) from error


def _open(subset: CalibrationSubset, commit: str | None) -> IterableDataset:
    splits = _splits(subset, commit)
    if subset.split not in splits:
        raise CalibrationError(
            f"{subset.dataset} ({subset.label}) has no split {subset.split!r}.",
            hint=f"Its splits: {', '.join(map(str, splits))}. Set `split` in the mix.",
        )
    return splits[subset.split]


def _splits(subset: CalibrationSubset, commit: str | None) -> Mapping[str, IterableDataset]:
    """Open all splits of a subset; nothing is read yet.  What is one file has one split, `train`."""
    import datasets

    splits: Mapping[str, IterableDataset]
    if is_file(subset.dataset):
        splits = datasets.load_dataset(_builder(subset.dataset), data_files=subset.dataset, streaming=True)
        return splits
    if subset.file:
        place = f"hf://datasets/{subset.dataset}@{commit}/{subset.file}"
        splits = datasets.load_dataset(_builder(subset.file), data_files=place, streaming=True)
        return splits
    try:
        splits = datasets.load_dataset(subset.dataset, subset.config, revision=commit, streaming=True)
    except ValueError as error:  # what datasets raises for a config that is missing or unknown, among other things
        raise _no_config(subset, commit, error) from error
    return splits


def _builder(file: str) -> str:
    """Return the builder of datasets that reads a file of this name."""
    suffix = PurePosixPath(file).suffix
    if suffix not in DOCUMENT_FILES:
        raise CalibrationError(f"{file} is none of {', '.join(DOCUMENT_FILES)}, the files that documents are read of.")
    return DOCUMENT_FILES[suffix]


def _no_config(subset: CalibrationSubset, commit: str | None, error: ValueError) -> Exception:
    from datasets import get_dataset_config_names

    known = get_dataset_config_names(subset.dataset, revision=commit)
    if subset.config in known:
        return error
    said = f"has no config {subset.config!r}" if subset.config else "has several configs, and the mix names none"
    return CalibrationError(
        f"{subset.dataset} {said}.", hint=f"Its configs: {', '.join(known)}. Set `config` in the mix."
    )


# ---- sequences -----------------------------------------------------------------------------------------------------


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
