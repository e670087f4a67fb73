"""Read the documents of one subset of a mix: find it, check what it holds, stream it in shuffled order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from hubprune.core.endpoint import no_calls_elsewhere
from hubprune.core.errors import CalibrationError, HubpruneError
from hubprune.core.recipe import CalibrationMix, CalibrationSubset
from hubprune.pruning.mixes import DOCUMENT_FILES, is_file

if TYPE_CHECKING:
    from datasets import IterableDataset


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
