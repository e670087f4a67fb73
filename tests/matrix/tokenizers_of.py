"""Tokenizers as published bases have them: small vocabularies, real pipelines, and the classes that real repos name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = (
    "Once upon a time, in 2024, there was a river. The river was high, and the bridge was old.",
    "In 1999 it's 12345 of 2024; in 2024 they'll pay 3.14159 for the 1024th bridge!",
    "def add(a, b):\n    return a + b  # the sum of two numbers\n\n\nclass River:\n\tpass\n",
    "Le café est près de la rivière. Über die Brücke gehen. Москва и река. 川と橋。 नदी और पुल।",
)
"""What the vocabularies are learned from."""
WORDS = 700
"""Tokens of a vocabulary, special tokens and bytes included."""
GPT4_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_WORDS = GPT4_WORDS.replace("{1,3}", "")
CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Words:
    """A tokenizer: its pipeline, and what its tokenizer_config.json says."""

    pipeline: str
    """Which of the pipelines below: one of PIPELINES."""
    named: str | None
    """`tokenizer_class`; None where the base names none."""
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Other keys of tokenizer_config.json."""
    saved_by_newest: bool = False
    """Whether the newest transformers saved it again, as somebody who trained the base would."""


def write_words(words: Words, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into a folder that has a config.json."""
    made = PIPELINES[words.pipeline]()
    made.save(str(folder / "tokenizer.json"))
    special = {str(number): _entry(token) for number, token in sorted(made.get_added_tokens_decoder().items())}
    config = {
        **SPECIAL[words.pipeline], "added_tokens_decoder": special, "chat_template": CHAT,
        "clean_up_tokenization_spaces": False, "model_max_length": 512, **words.keys,
    }  # fmt: skip
    if words.named:
        config["tokenizer_class"] = words.named
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))
    if words.saved_by_newest:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        loaded.save_pretrained(folder)


def _entry(token: AddedToken) -> dict[str, Any]:
    kept = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {key: getattr(token, key) for key in kept}


# ---- pipelines ---------------------------------------------------------------------------------------------------


def _sentencepiece(specials: tuple[str, ...], pre: Any) -> Tokenizer:
    """Learn a vocabulary of pieces, put single bytes behind the special tokens, and fall back to them."""
    learned = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    learned.pre_tokenizer = pre
    learned.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=WORDS - len(specials) - 256, show_progress=False))
    model = json.loads(learned.to_str())["model"]
    ordered = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    ordered += [piece for piece in sorted(model["vocab"], key=model["vocab"].get) if piece not in ordered]
    vocab = {piece: number for number, piece in enumerate(ordered)}
    merges = [tuple(merge) for merge in model["merges"]]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


LLAMA_SPECIALS = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>")
GEMMA_SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<|user|>", "<|assistant|>")


def _starts_with(made: Tokenizer, token: str) -> Tokenizer:
    number = made.token_to_id(token)
    made.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, number)]
    )
    return made


def metaspace() -> Tokenizer:
    """As Mistral's newer repos have it: a space is put before the first word only."""
    made = _sentencepiece(LLAMA_SPECIALS, pre_tokenizers.Metaspace(prepend_scheme="first", split=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _starts_with(made, "<s>")


def prepended() -> Tokenizer:
    """As Llama 2, the first Mistral and Phi-3 have it: a space is put before every piece between special tokens."""
    made = _sentencepiece(LLAMA_SPECIALS, pre_tokenizers.Metaspace(prepend_scheme="always", split=True))
    made.pre_tokenizer = None
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _starts_with(made, "<s>")


def unopened() -> Tokenizer:
    """The same, with nothing before a text."""
    made = prepended()
    made.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return made


def gemma() -> Tokenizer:
    """As Gemma has it: no space is put before anything."""
    made = _sentencepiece(GEMMA_SPECIALS, pre_tokenizers.Metaspace(prepend_scheme="never", split=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _starts_with(made, "<bos>")


def _bytes(pre: list[Any]) -> Tokenizer:
    """Learn merges with GPT-2's splitting, so that another one shows, and split as `pre` says."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [*TEXT, "2024 1999 1024 12345 " * 40],
        trainers.BpeTrainer(vocab_size=WORDS - 3, initial_alphabet=alphabet, show_progress=False),
    )
    names = ("<|endoftext|>", "<|user|>", "<|assistant|>")
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    made.pre_tokenizer = pre_tokenizers.Sequence(pre)
    made.decoder = decoders.ByteLevel()
    return made


def digits() -> Tokenizer:
    """As Granite has it: digits stand alone."""
    return _bytes([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])


def gpt4() -> Tokenizer:
    """As Llama 3, OLMo 2 and Phi-4 have it."""
    split = pre_tokenizers.Split(Regex(GPT4_WORDS), "isolated")
    return _bytes([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def llama3() -> Tokenizer:
    """The same, and every text begins with a special token."""
    made = gpt4()
    number = made.token_to_id("<|endoftext|>")
    template = processors.TemplateProcessing(
        single="<|endoftext|> $A",
        pair="<|endoftext|> $A <|endoftext|>:1 $B:1",
        special_tokens=[("<|endoftext|>", number)],
    )
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return made


def qwen() -> Tokenizer:
    """As Qwen has it: digits stand alone, after NFC."""
    split = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    made = _bytes([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.normalizer = normalizers.NFC()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


PIPELINES = {made.__name__: made for made in (metaspace, prepended, unopened, gemma, digits, gpt4, llama3, qwen)}
LLAMAS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BYTES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "metaspace": LLAMAS,
    "prepended": LLAMAS,
    "unopened": LLAMAS,
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "digits": BYTES,
    "gpt4": BYTES,
    "llama3": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "qwen": {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": None},
}
