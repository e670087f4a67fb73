"""The tokenizer of a checkpoint in the terms of llama.cpp: what all kinds have, and byte-level BPE.

A tokenizer that llama.cpp would run in another way is refused: it would be wrong without a word.  Of byte-level BPE it
knows the patterns that cut a text into words by name, and nothing else of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from hubprune.core.errors import CheckpointError, UnsupportedFormatError
from hubprune.core.prompts import DEFAULT, chat_templates
from hubprune.core.strict import parse_json


class TokenType(IntEnum):
    """What a token is, as llama.cpp and SentencePiece number it."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens and the rules that cut text into them."""

    model: Literal["gpt2", "llama"]
    """Byte-level BPE, or pieces in SentencePiece's manner."""
    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    scores: tuple[float, ...] | None = None
    """What pieces are merged by, the highest first; None for byte-level BPE."""
    merges: tuple[str, ...] | None = None
    """Pairs with a space between, the first to merge first; None for pieces."""
    add_space_prefix: bool = False
    special_ids: Mapping[str, int]
    """Token ids of `bos`, `eos`, `unk` and `pad`, as far as there are any."""
    add_bos: bool
    add_eos: bool
    chat_template: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Added:
    """A token that is found in a text before anything else is."""

    number: int
    content: str
    special: bool


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """The parsed tokenizer files of a folder."""

    folder: Path
    tokenizer: Mapping[str, Any]
    """tokenizer.json, empty where there is none."""
    settings: Mapping[str, Any]
    """tokenizer_config.json, empty where there is none."""
    config: Mapping[str, Any]
    size: int
    """Rows of the embedding."""

    def broken(self, what: str) -> CheckpointError:
        """Make the error for a file that is no tokenizer."""
        return CheckpointError(f"The tokenizer files of {self.folder} are broken: {what}.")

    def foreign(self, what: str) -> UnsupportedFormatError:
        """Make the error for a tokenizer that llama.cpp runs in another way, or not at all."""
        return UnsupportedFormatError(
            f"The tokenizer of {self.folder} cannot be exported: {what}.",
            hint="Export writes byte-level BPE with a pattern that llama.cpp knows, and the BPE of SentencePiece.",
        )

    def bpe_model(self) -> Mapping[str, Any]:
        """Return the `model` of tokenizer.json, which has to be a plain BPE."""
        model = self.tokenizer.get("model")
        if not isinstance(model, dict):
            raise self.broken("tokenizer.json has no model")
        if model.get("type", "BPE") != "BPE":
            raise self.foreign(f"its model is {model.get('type')!r:.40}, not BPE")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(key):
                raise self.foreign(f"its BPE has a {key}")
        return model

    def vocab(self, model: Mapping[str, Any]) -> dict[str, int]:
        """Return token -> id of a BPE, each id once and inside the embedding."""
        vocab = model.get("vocab")
        if not isinstance(vocab, dict) or not all(type(i) is int for i in vocab.values()):
            raise self.broken("vocab is no map from tokens to numbers")
        if len(set(vocab.values())) != len(vocab):
            raise self.broken("two tokens have the same number")
        for token, number in vocab.items():
            self.check_number(token, number)
        return vocab

    def check_number(self, token: str, number: int) -> None:
        """Raise CheckpointError unless the embedding has a row for a token."""
        if not 0 <= number < self.size:
            raise self.broken(f"token {token!r:.40} is number {number}, and the embedding has {self.size} rows")

    def merges(self, model: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the merges of a BPE, written as pairs or with a space between."""
        merges = model.get("merges")
        if not isinstance(merges, list):
            raise self.broken("merges is no list")
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
                raise self.broken(f"the merge {pair!r:.60} is no pair")
        return [(left, right) for left, right in pairs]

    def added(self) -> tuple[Added, ...]:
        """Return the added tokens of tokenizer.json."""
        listed = self.tokenizer.get("added_tokens") or []
        if not isinstance(listed, list):
            raise self.broken("added_tokens is no list")
        return tuple(self.added_token(entry, entry.get("id") if isinstance(entry, dict) else None) for entry in listed)

    def added_token(self, entry: Any, number: Any) -> Added:
        """Check an entry of a list of added tokens."""
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not content or type(number) is not int:
            raise self.broken(f"the added token {entry!r:.60} has no text or no number")
        self.check_number(content, number)
        return Added(number=number, content=content, special=entry.get("special") is True)

    def filled(self, known: Mapping[int, tuple[str, TokenType]]) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
        """Return texts and types of all rows of the embedding; rows without a token are unused."""
        rows = [known.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(self.size)]
        texts = [text for text, _ in rows]
        if len(set(texts)) != len(texts):
            twice = Counter(texts).most_common(1)[0][0]
            raise self.broken(f"two numbers have the text {twice!r:.40}")
        return tuple(texts), tuple(kind for _, kind in rows)

    def special_ids(self, texts: tuple[str, ...]) -> dict[str, int]:
        """Return the ids of the special tokens: named in tokenizer_config.json, else numbered in config.json."""
        numbers = {text: number for number, text in enumerate(texts)}
        found = {}
        for name in ("bos", "eos", "unk", "pad"):
            named = self.settings.get(f"{name}_token")
            named = named.get("content") if isinstance(named, dict) else named
            if isinstance(named, str):
                number = numbers.get(named)
            else:
                number = self.config.get(f"{name}_token_id")
                number = number[0] if isinstance(number, list) and number else number
            if type(number) is int:
                self.check_number(f"{name}_token", number)
                found[name] = number
        if "eos" not in found:  # llama.cpp would take a token of another model for it
            raise self.foreign("neither tokenizer_config.json nor config.json names an end token (eos_token)")
        return found

    def ends(self, ids: Mapping[str, int]) -> tuple[dict[str, int], bool, bool]:
        """Return the special ids, and whether texts get a start token and an end token.

        The start token is the one that is really put before texts.
        """
        before, behind = self._added_around()
        if len(before) > 1 or behind not in ([], [ids["eos"]]):
            raise self.foreign(f"it puts the tokens {before} before and {behind} behind every text")
        known = {**ids, **({"bos": before[0]} if before else {})}
        return known, bool(before), bool(behind)

    def _added_around(self) -> tuple[list[int], list[int]]:
        """Return the tokens that tokenizer.json puts before and behind every text."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            bare, dressed = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
        except Exception as error:
            raise self.broken(f"tokenizer.json cannot be loaded: {error!s:.100}") from error
        for start in range(len(dressed) - len(bare) + 1):
            if dressed[start : start + len(bare)] == bare:
                return dressed[:start], dressed[start + len(bare) :]
        raise self.foreign("its post-processor changes texts")

    def chat_template(self) -> str | None:
        """Return the chat template: a file of its own, else the default one of tokenizer_config.json."""
        return chat_templates(self.folder).get(DEFAULT)


def open_tokenizer(folder: Path, config: Mapping[str, Any], *, size: int) -> TokenizerFiles:
    """Parse the tokenizer files of a folder, as far as there are any; `config` and `size` are those of the model.

    Raises:
        CheckpointError: one is no JSON object.
    """
    paths = folder / "tokenizer.json", folder / "tokenizer_config.json"
    tokenizer, settings = (parse_json(p.read_bytes(), where=str(p)) if p.is_file() else {} for p in paths)
    return TokenizerFiles(folder=folder, tokenizer=tokenizer, settings=settings, config=config, size=size)


def flattened(part: Any, *, key: str) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, sequences taken apart."""
    if not isinstance(part, dict):
        return []
    if part.get("type") != "Sequence":
        return [part]
    inner = part.get(key)
    return [step for entry in inner for step in flattened(entry, key=key)] if isinstance(inner, list) else []


# ---- byte-level BPE ----------------------------------------------------------------------------------------------

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = "the pattern of GPT-2"
DIGITS_GPT2 = "single digits, then the pattern of GPT-2"
PRE_TOKENIZERS: Mapping[tuple[str, bool], str] = {
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "smaug-bpe",
    (GPT2, False): "gpt-2",
    (DIGITS_GPT2, False): "smollm",
    (TEKKEN, True): "tekken",
    (QWEN2, False): "qwen2",
    (GPT4O, False): "gpt-4o",
}
"""Pattern, and whether words that are tokens are taken whole (`ignore_merges`) -> llama.cpp's name for both."""
NOT_NORMALIZED = "transformers joins accents that a text has as characters of their own (NFC), llama.cpp does not"
NEVER_MERGES = "▁ ▁"
"""Stands in for an empty list, which llama.cpp does not load: no byte-level text has this character."""


def read_byte_level(files: TokenizerFiles) -> Vocabulary:
    """Read a byte-level BPE from tokenizer.json.

    Raises:
        CheckpointError: it is broken.
        UnsupportedFormatError: it is no byte-level BPE, or of a kind that llama.cpp does not know.
    """
    model = files.bpe_model()
    pattern, notes = _pattern(files), _normalization(files)
    vocab, merges = files.vocab(model), files.merges(model)
    known = {number: (text, TokenType.NORMAL) for text, number in vocab.items()}
    for token in files.added():
        known[token.number] = (token.content, TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
    texts, types = files.filled(known)
    ids, add_bos, add_eos = files.ends(files.special_ids(texts))
    return Vocabulary(
        model="gpt2", pre=_pre_tokenizer(files, pattern, model, vocab, merges), tokens=texts, types=types,
        merges=tuple(f"{left} {right}" for left, right in merges) or (NEVER_MERGES,), special_ids=ids,
        add_bos=add_bos, add_eos=add_eos, chat_template=files.chat_template(), notes=notes,
    )  # fmt: skip


def _normalization(files: TokenizerFiles) -> tuple[str, ...]:
    """Say what llama.cpp leaves out of the normalization of texts, which may be NFC."""
    match flattened(files.tokenizer.get("normalizer"), key="normalizers"):
        case []:
            return ()
        case [{"type": "NFC"}]:
            return (NOT_NORMALIZED,)
    raise files.foreign("it normalizes texts")


def _pattern(files: TokenizerFiles) -> str:
    steps = flattened(files.tokenizer.get("pre_tokenizer"), key="pretokenizers")
    if not steps or steps[-1].get("type") != "ByteLevel":
        raise files.foreign("it is neither byte-level nor SentencePiece's")
    *before, byte_level = steps
    if byte_level.get("add_prefix_space"):
        raise files.foreign("it puts a space before every text")
    uses_gpt2 = byte_level.get("use_regex", True) is not False
    match before:
        case [] if uses_gpt2:
            return GPT2
        case [{"type": "Digits", "individual_digits": True}] if uses_gpt2:
            return DIGITS_GPT2
        case [{"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", **options}] if (
            pattern in (LLAMA3, TEKKEN, QWEN2, GPT4O) and not uses_gpt2 and not options.get("invert")
        ):
            return pattern
    raise files.foreign("llama.cpp does not know how it cuts texts into words")


def _pre_tokenizer(
    files: TokenizerFiles, pattern: str, model: Mapping[str, Any], vocab: dict[str, int], merges: list[tuple[str, str]]
) -> str:
    """Return llama.cpp's name of the pattern.

    Where it has no name for this pattern with this treatment of whole words, the other one does as well if merging
    makes every token of its own text: then no word is treated differently.
    """
    whole_words = model.get("ignore_merges") is True
    if name := PRE_TOKENIZERS.get((pattern, whole_words)):
        return name
    other = PRE_TOKENIZERS[pattern, not whole_words]
    from tokenizers.models import BPE

    merging = BPE(vocab=vocab, merges=merges, ignore_merges=False)
    looked_up = {token.content for token in files.added()}  # found before anything is merged
    rest = {text: number for text, number in vocab.items() if text not in looked_up}
    if all([token.id for token in merging.tokenize(text)] == [number] for text, number in rest.items()):
        return other
    taken = f"{'with' if whole_words else 'without'} words that are taken whole (ignore_merges)"
    raise files.foreign(f"llama.cpp knows how it cuts texts into words, but not {taken}")
