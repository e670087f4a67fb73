"""Byte-level BPE: llama.cpp knows the patterns that cut a text into words by name, and nothing else of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubprune.exporting.vocabulary import (
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

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = "the pattern of GPT-2"
DIGITS_GPT2 = "single digits, then the pattern of GPT-2"
PRE_TOKENIZERS: Mapping[tuple[str, bool], str] = {
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "smaug-bpe",
    (GPT2, False): "gpt-2",
    (DIGITS_GPT2, False): "smollm",
    (TEKKEN, True): "tekken",
}
"""Pattern, and whether words that are tokens are taken whole (`ignore_merges`) -> llama.cpp's name for both."""
NEVER_MERGES = "▁ ▁"
"""Stands in for an empty list, which llama.cpp does not load: no byte-level text has this character."""


def read(files: TokenizerFiles) -> Vocabulary:
    """Read a byte-level BPE from tokenizer.json.

    Raises:
        CheckpointError: it is broken.
        UnsupportedFormatError: it is no byte-level BPE, or of a kind that llama.cpp does not know.
    """
    model = bpe_model(files)
    pattern = _pattern(files)
    vocab, merges = vocab_of(files, model), merges_of(files, model)
    known = {number: (text, TokenType.NORMAL) for text, number in vocab.items()}
    for token in added_of(files):
        known[token.number] = (token.content, TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
    texts, types = filled(files, known)
    ids, add_bos, add_eos = ends(files, special_ids(files, texts))
    return Vocabulary(
        model="gpt2",
        pre=_pre_tokenizer(files, pattern, model, vocab, merges),
        tokens=texts,
        types=types,
        merges=tuple(f"{left} {right}" for left, right in merges) or (NEVER_MERGES,),
        special_ids=ids,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=chat_template(files),
    )


def _pattern(files: TokenizerFiles) -> str:
    """Return the pattern that cuts a text into words."""
    if flattened(files.tokenizer.get("normalizer"), key="normalizers"):
        raise files.foreign("it normalizes texts")
    steps = flattened(files.tokenizer.get("pre_tokenizer"), key="pretokenizers")
    if not steps or steps[-1].get("type") != "ByteLevel":
        raise files.foreign("it is neither byte-level nor SentencePiece's")
    *before, byte_level = steps
    if byte_level.get("add_prefix_space"):
        raise files.foreign("it puts a space before every text")
    if found := _known(before, uses_gpt2=byte_level.get("use_regex", True) is not False):
        return found
    raise files.foreign("llama.cpp does not know how it cuts texts into words")


def _known(before: list[Mapping[str, Any]], *, uses_gpt2: bool) -> str | None:
    match before:
        case []:
            return GPT2 if uses_gpt2 else None
        case [{"type": "Digits", "individual_digits": True}]:
            return DIGITS_GPT2 if uses_gpt2 else None
        case [{"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", **options}]:
            known = pattern in (LLAMA3, TEKKEN) and not uses_gpt2 and not options.get("invert")
            return pattern if known else None
    return None


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
    if _merges_reach_all(vocab, merges, but={token.content for token in added_of(files)}):
        return PRE_TOKENIZERS[pattern, not whole_words]
    raise files.foreign(
        "llama.cpp knows how it cuts texts into words, but not "
        + ("with" if whole_words else "without")
        + " words that are taken whole (ignore_merges)"
    )


def _merges_reach_all(vocab: dict[str, int], merges: list[tuple[str, str]], *, but: set[str]) -> bool:
    """Tell whether merging makes each token of its own text, but for those that are found before."""
    from tokenizers.models import BPE

    model = BPE(vocab=vocab, merges=merges, ignore_merges=False)
    return all([t.id for t in model.tokenize(text)] == [number] for text, number in vocab.items() if text not in but)
