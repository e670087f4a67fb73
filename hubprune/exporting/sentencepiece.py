"""SentencePiece's BPE, from tokenizer.json or from its own tokenizer.model.

In tokenizer.json are merges in order, which become the scores that llama.cpp merges by.  tokenizer.model is read
without SentencePiece's library: a protobuf message of pieces, scores and types.  The fields are those of
`sentencepiece_model.proto` (https://github.com/google/sentencepiece), the encoding is
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import groupby
from typing import Any

from hubprune.exporting.vocabulary import Added, TokenizerFiles, TokenType, Vocabulary, flattened

SPACE = "▁"
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
NEVER_SPLITS = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
"""Gemma's pre-tokenizer, which comes behind the replacement of all spaces."""
FIRST_ONLY = (
    "a space at the start of a text, and the first word behind a special token, get one more space in llama.cpp "
    "than in transformers, as in SentencePiece itself"
)


def fits(files: TokenizerFiles) -> bool:
    """Tell whether tokenizer.json is of this kind: what is no piece is written in bytes."""
    model = files.tokenizer.get("model")
    return isinstance(model, dict) and model.get("byte_fallback") is True


def read_pieces(files: TokenizerFiles) -> Vocabulary:
    """Read a BPE with byte fallback from tokenizer.json.

    Raises:
        CheckpointError: it is broken.
        UnsupportedFormatError: llama.cpp would cut texts in another way.
    """
    model = files.bpe_model()
    add_space_prefix, notes = _space_prefix(files)
    vocab, merges = files.vocab(model), files.merges(model)
    if not set(BYTE_PIECES) <= vocab.keys():
        raise files.foreign("it does not have all 256 bytes")
    if not _score_order(vocab, merges, {token.content for token in files.added()}):
        if (files.folder / FILE).is_file():
            return read_model(files)
        raise files.foreign("its merges are not in the order of scores, by which llama.cpp merges")
    texts, types = files.filled(_typed(vocab, files.added(), unknown=model.get("unk_token")))
    ids, add_bos, add_eos = files.ends(files.special_ids(texts))
    ranks: dict[str, int] = {}  # of the first merge that makes a token; single characters come last, nothing makes them
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return Vocabulary(
        model="llama", pre="default", tokens=texts, types=types,
        scores=tuple(-float(ranks.get(text, len(merges))) for text in texts), add_space_prefix=add_space_prefix,
        special_ids=ids, add_bos=add_bos, add_eos=add_eos, chat_template=files.chat_template(), notes=notes,
    )  # fmt: skip


def _typed(vocab: Mapping[str, int], added: Sequence[Added], *, unknown: Any) -> dict[int, tuple[str, TokenType]]:
    known = {n: (text, TokenType.BYTE if BYTE.fullmatch(text) else TokenType.NORMAL) for text, n in vocab.items()}
    for token in added:
        # llama.cpp looks for these in the text as it is, before spaces become ▁.
        user_defined = token.content.replace(SPACE, " "), TokenType.USER_DEFINED
        known[token.number] = (token.content, TokenType.CONTROL) if token.special else user_defined
    if isinstance(unknown, str) and unknown in vocab:
        known[vocab[unknown]] = (unknown, TokenType.UNKNOWN)
    return known


def _space_prefix(files: TokenizerFiles) -> tuple[bool, tuple[str, ...]]:
    """Tell whether a space is put before texts, and what llama.cpp does differently about it.

    Texts may only be normalized by writing spaces as ▁.
    """
    before = flattened(files.tokenizer.get("normalizer"), key="normalizers")
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if before not in ([], [replace], [prepend, replace]):
        raise files.foreign("it normalizes texts")
    if not before and not files.tokenizer.get("pre_tokenizer"):
        raise files.foreign("it does not write spaces as ▁")
    prepends = prepend in before
    steps = flattened(files.tokenizer.get("pre_tokenizer"), key="pretokenizers")
    if not steps or (replace in before and steps == [NEVER_SPLITS]):
        return prepends, ()
    step = steps[0]
    default = "always" if step.get("add_prefix_space", True) else "never"
    scheme = step.get("prepend_scheme", default)
    fits = step.get("type") == "Metaspace" and step.get("replacement") == SPACE and step.get("split") is False
    if len(steps) > 1 or not fits or prepends or scheme not in ("always", "first", "never"):
        raise files.foreign("llama.cpp does not know how it cuts texts into words")
    return scheme != "never", () if scheme == "never" else (FIRST_ONLY,)


def _score_order(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Set[str]) -> bool:
    """Tell whether merging by the score of the result is merging in the order of the list.

    It is when all ways to make a token stand together in the list, and none is missing there.  Bytes and what looks
    like a special token do not count, since no text is merged into them.  Nor do added tokens, which are looked up in
    a text before anything is merged; Gemma's runs of spaces are made by the first merges instead, with the same end.
    """
    results = [left + right for left, right in merges]
    first = 0
    while first < len(results) and results[first] in added:
        first += 1
    rest = [text for text in results[first:] if text not in added]
    if any(SPACE in text and text in added for text in results[first:]) or len([*groupby(rest)]) != len(set(rest)):
        return False
    listed = set(merges)
    made = (text for text in vocab if text not in added and not (text.startswith("<") and text.endswith(">")))
    pairs = ((text[:cut], text[cut:]) for text in made for cut in range(1, len(text)))
    return all(pair in listed for pair in pairs if pair[0] in vocab and pair[1] in vocab)


# ---- tokenizer.model ---------------------------------------------------------------------------------------------

FILE = "tokenizer.model"
PIECES, TRAINER, NORMALIZER = 1, 2, 3
TEXT, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, BPE = 3, 2
PRECOMPILED_CHARSMAP, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES, ESCAPE_WHITESPACES = 2, 3, 4, 5
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def read_model(files: TokenizerFiles) -> Vocabulary:
    """Read a tokenizer.model, with the added tokens of tokenizer_config.json.

    Raises:
        CheckpointError: it is broken.
        UnsupportedFormatError: it is no BPE, or normalizes in a way that llama.cpp does not.
    """
    pieces, trainer, normalizer = _message(files)
    if trainer.get(MODEL_TYPE, 1) != BPE:
        raise files.foreign(f"{FILE} is no BPE")
    if normalizer.get(REMOVE_EXTRA_WHITESPACES, 1):
        raise files.foreign(f"{FILE} removes spaces")
    if normalizer.get(PRECOMPILED_CHARSMAP) or not normalizer.get(ESCAPE_WHITESPACES, 1):
        raise files.foreign(f"{FILE} normalizes texts")
    known = {number: (text, kind) for number, (text, _, kind) in enumerate(pieces)}
    for number, (text, _) in known.items():
        files.check_number(text, number)
    _add(files, known)
    texts, types = files.filled(known)
    scores = [score for _, score, _ in pieces] + [-1000.0] * (len(texts) - len(pieces))
    ids = {"unk": 0, **files.special_ids(texts)}
    return Vocabulary(
        model="llama", pre="default", tokens=texts, types=types, scores=tuple(scores),
        add_space_prefix=bool(normalizer.get(ADD_DUMMY_PREFIX, 1)), special_ids=ids,
        add_bos=files.settings.get("add_bos_token") is not False,
        add_eos=files.settings.get("add_eos_token") is True, chat_template=files.chat_template(),
    )  # fmt: skip


def _add(files: TokenizerFiles, known: dict[int, tuple[str, TokenType]]) -> None:
    listed = files.settings.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise files.broken("added_tokens_decoder is no object")
    for key, entry in listed.items():
        token = files.added_token(entry, int(key) if key.isdecimal() else None)
        if known.get(token.number, ("", None))[1] != TokenType.UNKNOWN:
            kind = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
            known[token.number] = (token.content, kind)


def _message(files: TokenizerFiles) -> tuple[list[tuple[str, float, TokenType]], dict[int, Any], dict[int, Any]]:
    """Return the pieces, and the settings of trainer and normalizer by field number."""
    data = (files.folder / FILE).read_bytes()
    pieces, trainer, normalizer = [], dict[int, Any](), dict[int, Any]()
    try:
        for field, value in _fields(data):
            if field == PIECES:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece[SCORE])[0] if SCORE in piece else 0.0
                pieces.append((piece[TEXT].decode(), score, TokenType(piece.get(TYPE, 1))))
            elif field == TRAINER:
                trainer = dict(_fields(value))
            elif field == NORMALIZER:
                normalizer = dict(_fields(value))
    except (ValueError, IndexError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise files.broken(f"{FILE} is no SentencePiece model") from error
    return pieces, trainer, normalizer


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield field number and value: an int for a varint, bytes for everything else."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == VARINT:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if kind == BYTES:
            length, position = _varint(data, position)
        else:
            length = {FIXED64: 8, FIXED32: 4}[kind]
        if position + length > len(data):
            raise ValueError("truncated")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while data[position] & 0x80:
        value |= (data[position] & 0x7F) << shift
        shift, position = shift + 7, position + 1
        if shift > 63:
            raise ValueError("varint of more than 64 bits")
    return value | data[position] << shift, position + 1
