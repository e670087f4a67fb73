"""SentencePiece's BPE as tokenizer.json has it: merges in order become the scores that llama.cpp merges by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from hubprune.exporting.vocabulary import (
    Added,
    TokenizerFiles,
    TokenType,
    Vocabulary,
    added_of,
    bpe_model,
    chat_template,
    ends,
    filled,
    flattened,
    merges_of,
    special_ids,
    vocab_of,
)

SPACE = "▁"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
FIRST_ONLY = (
    "a space at the start of a text, and the first word behind a special token, get one more space in llama.cpp "
    "than in transformers, as in SentencePiece itself"
)


def fits(files: TokenizerFiles) -> bool:
    """Tell whether tokenizer.json is of this kind: what is no piece is written in bytes."""
    model = files.tokenizer.get("model")
    return isinstance(model, dict) and model.get("byte_fallback") is True


def read(files: TokenizerFiles) -> Vocabulary:
    """Read a BPE with byte fallback from tokenizer.json.

    Raises:
        CheckpointError: it is broken.
        UnsupportedFormatError: llama.cpp would cut texts in another way.
    """
    model = bpe_model(files)
    add_space_prefix, notes = _space_prefix(files)
    vocab, merges = vocab_of(files, model), merges_of(files, model)
    if not set(BYTES) <= vocab.keys():
        raise files.foreign("it does not have all 256 bytes")
    if not _score_order(vocab, merges):
        raise files.foreign("its merges are not in the order of scores, by which llama.cpp merges")
    texts, types = filled(files, typed(vocab, added_of(files), unknown=model.get("unk_token")))
    ids, add_bos, add_eos = ends(files, special_ids(files, texts))
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=texts,
        types=types,
        scores=_scores(texts, merges),
        add_space_prefix=add_space_prefix,
        special_ids=ids,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=chat_template(files),
        notes=notes,
    )


def typed(vocab: Mapping[str, int], added: Sequence[Added], *, unknown: Any) -> dict[int, tuple[str, TokenType]]:
    """Return text and type of every token by its number."""
    known = {n: (text, TokenType.BYTE if BYTE.fullmatch(text) else TokenType.NORMAL) for text, n in vocab.items()}
    for token in added:
        # llama.cpp looks for these in the text as it is, before spaces become ▁.
        found = (token.content, TokenType.CONTROL) if token.special else _user_defined(token)
        known[token.number] = found
    if isinstance(unknown, str) and unknown in vocab:
        known[vocab[unknown]] = (unknown, TokenType.UNKNOWN)
    return known


def _user_defined(token: Added) -> tuple[str, TokenType]:
    return token.content.replace(SPACE, " "), TokenType.USER_DEFINED


def _space_prefix(files: TokenizerFiles) -> tuple[bool, tuple[str, ...]]:
    """Tell whether a space is put before texts, and what llama.cpp does differently about it."""
    prepends = _normalized(files)
    steps = flattened(files.tokenizer.get("pre_tokenizer"), key="pretokenizers")
    if not steps:
        return prepends, ()
    step = steps[0]
    default = "always" if step.get("add_prefix_space", True) else "never"
    scheme = step.get("prepend_scheme", default)
    fits = step.get("type") == "Metaspace" and step.get("replacement") == SPACE and step.get("split") is False
    if len(steps) > 1 or not fits or prepends or scheme not in ("always", "first", "never"):
        raise files.foreign("llama.cpp does not know how it cuts texts into words")
    return scheme != "never", () if scheme == "never" else (FIRST_ONLY,)


def _normalized(files: TokenizerFiles) -> bool:
    """Check that texts are only normalized by writing spaces as ▁; tell whether one is put before them."""
    steps = flattened(files.tokenizer.get("normalizer"), key="normalizers")
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if steps not in ([], [replace], [prepend, replace]):
        raise files.foreign("it normalizes texts")
    if not steps and not files.tokenizer.get("pre_tokenizer"):
        raise files.foreign("it does not write spaces as ▁")
    return prepend in steps


def _score_order(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> bool:
    """Tell whether merging by the score of the result is merging in the order of the list.

    It is when all ways to make a token stand together in the list, and none is missing there.
    """
    results = [left + right for left, right in merges]
    if len([*groupby(results)]) != len(set(results)):
        return False
    listed = set(merges)
    pairs = ((text[:cut], text[cut:]) for text in vocab if not _is_marked(text) for cut in range(1, len(text)))
    return all(pair in listed for pair in pairs if pair[0] in vocab and pair[1] in vocab)


def _is_marked(text: str) -> bool:
    """Tell whether a token is a byte or looks like a special token, which no text is merged into."""
    return text.startswith("<") and text.endswith(">")


def _scores(texts: Sequence[str], merges: Sequence[tuple[str, str]]) -> tuple[float, ...]:
    """Return minus the rank of the first merge that makes a token; single characters come last, nothing makes them."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return tuple(-float(ranks.get(text, len(merges))) for text in texts)
