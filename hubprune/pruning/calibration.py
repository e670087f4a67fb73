"""Draw the samples of a calibration mix: streamed, shuffled with a seed, cut off or packed, counted exactly."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from hubprune.core.artifacts import CalibrationRecord, CalibrationSource
from hubprune.core.console import Advance, Reporter, Unit
from hubprune.core.errors import CalibrationError
from hubprune.core.files import file_exists
from hubprune.core.privacy import no_calls_elsewhere
from hubprune.core.recipe import CalibrationMix, CalibrationSubset
from hubprune.pruning.documents import Text, end_of_document, is_file, pack, stream, token_ids, unreadable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Document:
    """One document, or packed sequence, as the model reads it."""

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
    commits: dict[tuple[str, str | None], str | None] = {}
    for subset in mix.subsets:
        if (pair := (subset.dataset, subset.revision)) not in commits:
            if is_file(subset.dataset) and not file_exists(subset.dataset):
                raise CalibrationError(f"The calibration file {subset.dataset} does not exist.")
            commits[pair] = None if is_file(subset.dataset) else _ask_commit(*pair)
    return tuple(commits[subset.dataset, subset.revision] for subset in mix.subsets)


def _ask_commit(dataset: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    def passing(error: BaseException) -> bool:
        return isinstance(error, HfHubHTTPError) and error.response.status_code in (429, 500, 502, 503, 504)

    stop, wait = stop_after_attempt(4), wait_exponential(max=8)
    tries = Retrying(retry=retry_if_exception(passing), stop=stop, wait=wait, reraise=True)
    try:
        info = tries(lambda: HfApi().dataset_info(dataset, revision=revision))
        if info.gated:  # everybody may see its commit; only this tells whether its files may be read
            tries(lambda: HfApi().auth_check(dataset, repo_type="dataset"))
    except GatedRepoError as error:
        raise CalibrationError(
            f"The calibration data set {dataset} is gated, and this run has no access to it.",
            hint=f"Ask for access at {constants.ENDPOINT}/datasets/{dataset} and log in with `hf auth login`, or pass "
            "another mix with --calibration.",
        ) from error
    except Exception as error:
        raise unreadable(dataset, error) from error
    return info.sha


def file_hashes(mix: CalibrationMix) -> dict[str, str]:
    """Return the SHA-256 of every local file of a mix: what tells its present text from another."""
    paths = sorted({subset.dataset for subset in mix.subsets if is_file(subset.dataset)})
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}


def draw(
    mix: CalibrationMix,
    *,
    commits: Sequence[str | None],
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    context_length: int | None,
    reporter: Reporter,
) -> CalibrationSet:
    """Draw exactly the mix's number of samples from every subset and tokenize them.

    A sample is a document, cut off at `max_tokens`; or, where the mix is packed, a sequence of exactly `max_tokens`
    tokens.  For these the documents of a subset are read as the tokenizer reads each of them, special tokens included,
    an end-of-text token behind each one (as pretraining does, and the code of He et al. 2024), joined in the shuffled
    order and cut.  Where the mix goes through a chat template, a document is what that makes of it.

    The commits are those of `resolve_commits`, the seed is of the streaming shuffle.  The tokenizer is the base's, and
    so is `context_length`, its longest input, to which a larger `max_tokens` is lowered.

    Raises:
        CalibrationError: a subset is missing, too small for its share, or has no such text column.
    """
    max_tokens = min(mix.max_tokens, context_length or mix.max_tokens)
    if max_tokens < mix.max_tokens:
        reporter.note(f"samples have {max_tokens} tokens, the base's context, instead of the mix's {mix.max_tokens}")
    # With very few samples a small subset's share rounds to no sample at all: it is not part of what was drawn.
    parts = [part for part in zip(mix.subsets, mix.counts(), commits, strict=True) if part[1]]
    unit: Unit = "sequences" if mix.packed else "documents"
    with no_calls_elsewhere(), reporter.progress("drawing", total=mix.num_samples, unit=unit) as advance:
        part_of = partial(_draw_of, mix=mix, seed=seed, tokenizer=tokenizer, max_tokens=max_tokens, advance=advance)
        drawn = [part_of(subset, count, commit=commit) for subset, count, commit in parts]
    documents = tuple(Document(source, ids) for source, part in enumerate(drawn) for ids in part.samples)
    total = sum(part.subset.weight for part in drawn)
    record = CalibrationRecord(
        mix=mix.name,
        sources=tuple(part.source(weight=part.subset.weight / total, packed=mix.packed) for part in drawn),
        max_tokens=max_tokens,
        packed=mix.packed,
        chat_template=mix.chat_template,
        seed=seed,
        shuffle_buffer=mix.shuffle_buffer,
        token_sha256=_digest(documents),
    )
    return CalibrationSet(documents, record)


def divide(drawn: CalibrationSet, mix: CalibrationMix) -> tuple[CalibrationSet, tuple[Document, ...]]:
    """Divide what was drawn of a larger mix into what `mix` alone would have drawn, and the documents beyond that.

    The two differ in their number of samples; of each subset the same ones come first.  Of packed sequences it is not
    known how many documents the first were made of, so that these have to be drawn by themselves.
    """
    counts = iter(count for count in mix.counts())
    left = {number: next(counts) for number in range(len(drawn.record.sources))}
    first: list[Document] = []
    others: list[Document] = []
    for document in drawn.documents:
        left[document.source] -= 1
        (first if left[document.source] >= 0 else others).append(document)
    sources = tuple(
        source.model_copy(update={
            "documents": sum(d.source == number for d in first),
            "tokens": sum(len(d.ids) for d in first if d.source == number),
        })
        for number, source in enumerate(drawn.record.sources)
    )  # fmt: skip
    record = drawn.record.model_copy(update={"sources": sources, "token_sha256": _digest(first)})
    return CalibrationSet(tuple(first), record), tuple(others)


def _digest(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(array("q", [len(document.ids), *document.ids]).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Part:
    subset: CalibrationSubset
    commit: str | None
    samples: tuple[tuple[int, ...], ...]
    texts: int  # documents that were read

    def source(self, *, weight: float, packed: bool) -> CalibrationSource:
        """Record it, with its share of the mix."""
        subset = self.subset
        return CalibrationSource(
            # A local path says nothing to anybody else, and a card must not tell where its author keeps files.
            dataset=Path(subset.dataset).name if is_file(subset.dataset) else subset.dataset,
            config=subset.config,
            split=subset.split,
            commit=self.commit,
            weight=weight,
            documents=len(self.samples),
            texts=self.texts if packed else None,
            tokens=sum(map(len, self.samples)),
        )


def _draw_of(
    subset: CalibrationSubset,
    count: int,
    *,
    commit: str | None,
    mix: CalibrationMix,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    advance: Advance,
) -> _Part:
    """Draw a number of samples of a subset, or raise where there are fewer."""
    read = 0
    ids_of = partial(token_ids, tokenizer, chat_template=mix.chat_template)

    def counted() -> Iterator[Text]:
        nonlocal read
        for text in stream(subset, commit=commit, seed=seed, buffer=mix.shuffle_buffer):
            read += 1
            yield text

    if mix.packed:
        eos = tokenizer.eos_token_id
        # Without `verbose` the tokenizer warns of every text that is longer than the model's context.
        whole = (end_of_document(ids_of(text, verbose=False), eos=eos) for text in counted())
        found = pack(whole, length=max_tokens)
    else:
        found = (ids_of(text, truncation=True, max_length=max_tokens) for text in counted())
    samples: list[tuple[int, ...]] = []
    for ids in islice(found, count):
        samples.append(ids)
        advance(1)
    if len(samples) < count:
        enough = f", enough for {len(samples)} sequences of {max_tokens} tokens" if mix.packed else ""
        raise CalibrationError(
            f"{subset.dataset} ({subset.label}, {subset.split}) has {read} documents{enough}, the mix wants {count} "
            "of it.",
            hint="Lower --num-samples, or change the weights of the mix." if read else "Is it the right split?",
        )
    return _Part(subset, commit, tuple(samples), read)
