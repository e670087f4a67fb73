"""SentencePiece's own tokenizer.model, read without its library: a protobuf message of pieces, scores and types.

The fields are those of `sentencepiece_model.proto` (https://github.com/google/sentencepiece); the encoding is
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hubprune.exporting.vocabulary import (
    TokenizerFiles,
    TokenType,
    Vocabulary,
    added_token,
    chat_template,
    check_number,
    filled,
    special_ids,
)

FILE = "tokenizer.model"
PIECES, TRAINER, NORMALIZER = 1, 2, 3
TEXT, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, BPE = 3, 2
PRECOMPILED_CHARSMAP, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES, ESCAPE_WHITESPACES = 2, 3, 4, 5
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def read(files: TokenizerFiles) -> Vocabulary:
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
    for text, number in ((text, number) for number, (text, _) in known.items()):
        check_number(files, text, number)
    _add(files, known)
    texts, types = filled(files, known)
    scores = [score for _, score, _ in pieces] + [-1000.0] * (len(texts) - len(pieces))
    ids = {"unk": 0, **special_ids(files, texts)}
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=texts,
        types=types,
        scores=tuple(scores),
        add_space_prefix=bool(normalizer.get(ADD_DUMMY_PREFIX, 1)),
        special_ids=ids,
        add_bos=files.settings.get("add_bos_token") is not False,
        add_eos=files.settings.get("add_eos_token") is True,
        chat_template=chat_template(files),
    )


def _add(files: TokenizerFiles, known: dict[int, tuple[str, TokenType]]) -> None:
    listed = files.settings.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise files.broken("added_tokens_decoder is no object")
    for key, entry in listed.items():
        token = added_token(files, entry, int(key) if key.isdecimal() else None)
        if known.get(token.number, ("", None))[1] != TokenType.UNKNOWN:
            kind = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
            known[token.number] = (token.content, kind)


def _message(
    files: TokenizerFiles,
) -> tuple[list[tuple[str, float, TokenType]], dict[int, Any], dict[int, Any]]:
    """Return the pieces, and the settings of trainer and normalizer by field number."""
    data = Path(files.folder / FILE).read_bytes()
    pieces, trainer, normalizer = [], dict[int, Any](), dict[int, Any]()
    try:
        for field, value in _fields(data):
            if field == PIECES:
                pieces.append(_piece(dict(_fields(value))))
            elif field == TRAINER:
                trainer = dict(_fields(value))
            elif field == NORMALIZER:
                normalizer = dict(_fields(value))
    except (ValueError, IndexError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise files.broken(f"{FILE} is no SentencePiece model") from error
    return pieces, trainer, normalizer


def _piece(fields: dict[int, Any]) -> tuple[str, float, TokenType]:
    score = struct.unpack("<f", fields[SCORE])[0] if SCORE in fields else 0.0
    return fields[TEXT].decode(), score, TokenType(fields.get(TYPE, 1))


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
