"""Draw the documents of a calibration mix: streamed, shuffled with a seed, cut to the same length, counted exactly."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from hubprune.artifacts import CalibrationRecord, CalibrationSource
from hubprune.console import Reporter
from hubprune.endpoint import no_calls_elsewhere
from hubprune.errors import CalibrationError, HubpruneError
from hubprune.pruning.mixes import DOCUMENT_FILES
from hubprune.recipe import CalibrationMix, CalibrationSubset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Document:
    """One document as the model reads it."""

    source: int
    """Index of its subset in the mix."""
    ids: tuple[int, ...]
    """Token ids, the tokenizer's own special tokens included."""


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """The documents that were drawn, and the record of how."""

    documents: tuple[Document, ...]
    record: CalibrationRecord


def resolve_commits(mix: CalibrationMix) -> tuple[str | None, ...]:
    """Resolve the data set of every subset to a commit; None for local files.  Takes one request per data set.

    Raises:
        CalibrationError: a data set does not exist, may not be read, or cannot be reached.
    """
    wanted = [(subset.dataset, subset.revision) for subset in mix.subsets]
    commits = {pair: _resolve_commit(*pair) for pair in dict.fromkeys(wanted)}
    return tuple(commits[pair] for pair in wanted)


def file_hashes(mix: CalibrationMix) -> dict[str, str]:
    """Return the SHA-256 of every local file of a mix: what tells its present text from another."""
    paths = sorted({subset.dataset for subset in mix.subsets if _is_file(subset.dataset)})
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}


def _resolve_commit(dataset: str, revision: str | None) -> str | None:
    if _is_file(dataset):
        if not Path(dataset).is_file():
            raise CalibrationError(f"The calibration file {dataset} does not exist.")
        return None
    try:
        return _ask_commit(dataset, revision)
    except Exception as error:
        raise _unreachable(dataset, error) from error


def _ask_commit(dataset: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    def passing(error: BaseException) -> bool:
        return isinstance(error, HfHubHTTPError) and error.response.status_code in (429, 500, 502, 503, 504)

    tries = Retrying(
        retry=retry_if_exception(passing), stop=stop_after_attempt(4), wait=wait_exponential(max=8), reraise=True
    )
    return tries(lambda: HfApi().dataset_info(dataset, revision=revision).sha)


def _is_file(dataset: str) -> bool:
    return Path(dataset).suffix in DOCUMENT_FILES


def _unreachable(dataset: str, error: Exception) -> CalibrationError:
    first_line = str(error).strip().partition("\n")[0] or type(error).__name__
    return CalibrationError(
        f"The calibration data set {dataset} cannot be read: {first_line}",
        hint="Check its name and your access, or pass another mix with --calibration.",
    )


def draw(
    mix: CalibrationMix,
    *,
    commits: Sequence[str | None],
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    context_length: int | None,
    reporter: Reporter,
) -> CalibrationSet:
    """Draw exactly the mix's number of documents from every subset and tokenize them.

    Args:
        mix: subsets, weights, lengths.
        commits: commit of each subset's data set, from `resolve_commits`.
        seed: of the streaming shuffle.
        tokenizer: the base's.
        context_length: longest input of the base; a larger `max_tokens` is lowered to it.
        reporter: shown the progress in documents.

    Raises:
        CalibrationError: a subset is missing, too small for its share, or has no such text column.
    """
    max_tokens = min(mix.max_tokens, context_length or mix.max_tokens)
    # With very few samples a small subset's share rounds to no document at all: it is not part of what was drawn.
    parts = [part for part in zip(mix.subsets, mix.counts(), commits, strict=True) if part[1]]
    documents: list[Document] = []
    with no_calls_elsewhere(), reporter.progress("drawing", total=mix.num_samples, unit="documents") as advance:
        for source, (subset, count, commit) in enumerate(parts):
            texts = _texts(subset, count, commit=commit, seed=seed, buffer=mix.shuffle_buffer, advance=advance)
            documents += [Document(source, ids) for ids in _tokenize(tokenizer, texts, max_tokens)]
    drawn = [(subset, commit) for subset, _, commit in parts]
    return CalibrationSet(tuple(documents), _record(mix, documents, drawn, seed=seed, max_tokens=max_tokens))


def _texts(
    subset: CalibrationSubset, count: int, *, commit: str | None, seed: int, buffer: int, advance: Callable[[int], None]
) -> list[str]:
    texts: list[str] = []
    for text in _stream(subset, commit=commit, seed=seed, buffer=buffer):
        texts.append(text)
        advance(1)
        if len(texts) == count:
            return texts
    raise CalibrationError(
        f"{subset.dataset} ({subset.label}, {subset.split}) has {len(texts)} documents, the mix wants {count} of it.",
        hint="Lower --num-samples, or change the weights of the mix." if texts else "Is it the right split?",
    )


def _stream(subset: CalibrationSubset, *, commit: str | None, seed: int, buffer: int) -> Iterator[str]:
    """Yield a subset's non-blank texts in shuffled order."""
    try:
        stream = _open_stream(subset, commit).shuffle(seed=seed, buffer_size=buffer, max_buffer_input_shards=1)
        for row in stream:
            text = row.get(subset.column)
            if not isinstance(text, str):
                raise CalibrationError(
                    f"{subset.dataset} ({subset.label}) has no text column {subset.column!r}.",
                    hint=f"Its columns: {', '.join(map(str, row))}. Set `column` in the mix.",
                )
            if text.strip():
                yield text
    except HubpruneError:
        raise
    except Exception as error:
        raise _unreachable(f"{subset.dataset} ({subset.label}, {subset.split})", error) from error


def _open_stream(subset: CalibrationSubset, commit: str | None) -> Any:
    import datasets

    if _is_file(subset.dataset):
        builder = DOCUMENT_FILES[Path(subset.dataset).suffix]
        return datasets.load_dataset(builder, data_files=subset.dataset, split="train", streaming=True)
    return datasets.load_dataset(subset.dataset, subset.config, split=subset.split, revision=commit, streaming=True)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[tuple[int, ...]]:
    rows = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    if not all(rows):
        raise CalibrationError("The base's tokenizer makes no tokens of a document.")
    return [tuple(row) for row in rows]


def _record(
    mix: CalibrationMix,
    documents: Sequence[Document],
    drawn: Sequence[tuple[CalibrationSubset, str | None]],
    *,
    seed: int,
    max_tokens: int,
) -> CalibrationRecord:
    total = sum(subset.weight for subset, _ in drawn)
    lengths = [[len(d.ids) for d in documents if d.source == source] for source in range(len(drawn))]
    sources = (
        CalibrationSource(
            # A local path says nothing to anybody else, and a card must not tell where its author keeps files.
            dataset=Path(subset.dataset).name if _is_file(subset.dataset) else subset.dataset,
            config=subset.config,
            split=subset.split,
            commit=commit,
            weight=subset.weight / total,
            documents=len(tokens),
            tokens=sum(tokens),
        )
        for (subset, commit), tokens in zip(drawn, lengths, strict=True)
    )
    return CalibrationRecord(
        mix=mix.name,
        sources=tuple(sources),
        max_tokens=max_tokens,
        seed=seed,
        shuffle_buffer=mix.shuffle_buffer,
        token_sha256=_digest(documents),
    )


def _digest(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(array("q", [len(document.ids), *document.ids]).tobytes())
    return digest.hexdigest()
