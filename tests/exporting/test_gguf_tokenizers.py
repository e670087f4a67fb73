"""Tokenizers in GGUF files: what is written, what is refused, and the same tokens in llama.cpp."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from exported import base, export
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from hubprune.core.errors import CheckpointError, UnsupportedFormatError
from hubprune.exporting import vocabulary
from hubprune.exporting.parity import TEXTS
from hubprune.exporting.vocabulary import TokenType
from hubprune.exporting.writing import read_vocabulary

SIZE = 400
SENTENCES = [
    "The river was high, and the bridge had been closed since the morning.",
    "It's 2024, isn't it? They'll say WE'RE late; I'D not. 1234567890 3.14159",
    "Zażółć gęślą jaźń — naïve café, Straße, 日本語   and spaces\n\n\tand tabs",
    "def add(a, b):\n    return a + b  # 1,000,000 and $9.99 50%",
    "Hello HelloWorld camelCase UPPER lower, the the there then them",
] * 3
SPECIAL = ["<s>", "</s>", "<|x|>"]


def byte_level_tokenizer(steps, *, ignore_merges=False):
    """Train a small byte-level BPE."""
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=SIZE, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return with_start(made)


def with_start(made):
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


PLAIN, CUT = (
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    pre_tokenizers.ByteLevel(add_prefix_space=False),
)
KINDS = {
    "llama-bpe": ([split(vocabulary.LLAMA3), PLAIN], True),
    "smaug-bpe": ([split(vocabulary.LLAMA3), PLAIN], False),
    "tekken": ([split(vocabulary.TEKKEN), PLAIN], True),
    "qwen2": ([split(vocabulary.QWEN2), PLAIN], False),
    "gpt-4o": ([split(vocabulary.GPT4O), PLAIN], False),
    "gpt-2": ([CUT], False),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True), CUT], False),
}


def gemma_tokenizer():
    """The same as Gemma has it: no space before a text, and runs of spaces that are made by the first merges."""
    made = pieces_tokenizer()
    runs = [("▁" * left, "▁" * right) for left in range(5, 0, -1) for right in range(6 - left, 0, -1)]
    model = json.loads(made.to_str())["model"]
    vocab = {**model["vocab"], **{"▁" * length: len(model["vocab"]) + length - 4 for length in range(4, 7)}}
    merges = [*runs, *(pair for pair in map(tuple, model["merges"]) if pair not in runs)]
    made.model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made.add_tokens([AddedToken(text, normalized=False) for text in ("▁" * length for length in range(2, 7))])
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    return made


def pieces_tokenizer():
    """Make a BPE with byte fallback as conversions of SentencePiece have it: every way to make a token is a merge."""
    words = ["the", "th", "he", "▁the", "▁th", "▁t", "▁a", "an", "▁an", "in", "▁in", "er", "▁▁", "▁▁▁", "re", "ll"]
    letters = sorted({c for text in SENTENCES for c in text if c.isascii() and c.isprintable() and c != " "} | {"▁"})
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *letters, *words]
    vocab = {text: number for number, text in enumerate(texts)}
    pairs = [(w[:i], w[i:]) for w in words for i in range(1, len(w)) if w[:i] in vocab and w[i:] in vocab]
    made = Tokenizer(models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def checkpoint(folder, tokenizer, **settings):
    """Write a tiny Llama with a tokenizer."""
    made = base(folder, vocab_size=SIZE, bos_token_id=None, eos_token_id=None)
    tokenizer.save(f"{made.folder}/tokenizer.json")
    named = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (Path(made.folder) / "tokenizer_config.json").write_text(json.dumps(named))
    return Path(made.folder)


def read(folder):
    return read_vocabulary(folder, json.loads((folder / "config.json").read_text()), size=SIZE)


def edit(folder, **changes):
    """Change parts of tokenizer.json."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def llama_cpp_tokens(folder, tmp_path):
    """What llama.cpp cuts texts into, and what transformers does."""
    llama_cpp = pytest.importorskip("llama_cpp")
    from transformers import AutoTokenizer

    export(folder, tmp_path / "x.gguf", outtype="f16", no_verify=True)
    llama = llama_cpp.Llama(str(tmp_path / "x.gguf"), vocab_only=True, verbose=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, *SENTENCES[:5], "a<|x|>b </s> c"]
    return [llama.tokenize(t.encode(), add_bos=True, special=True) for t in texts], [
        tokenizer(t).input_ids for t in texts
    ]


@pytest.mark.parametrize("pre", KINDS)
def test_byte_level_tokenizers_are_known_by_their_pattern_and_cut_the_same_in_llama_cpp(pre, tmp_path):
    steps, ignore_merges = KINDS[pre]
    folder = checkpoint(tmp_path / "b", byte_level_tokenizer(steps, ignore_merges=ignore_merges))
    found = read(folder)
    assert (found.model, found.pre, found.add_bos, found.add_eos) == ("gpt2", pre, True, False)
    assert found.special_ids == {"bos": 0, "eos": 1}
    assert found.types[:4] == (*(TokenType.CONTROL,) * 3, TokenType.NORMAL)
    ours, theirs = llama_cpp_tokens(folder, tmp_path)
    assert ours == theirs


def test_pieces_get_scores_in_the_order_of_their_merges_and_cut_the_same_in_llama_cpp(tmp_path):
    folder = checkpoint(tmp_path / "b", pieces_tokenizer())
    found = read(folder)
    assert (found.model, found.pre, found.add_bos, found.add_space_prefix) == ("llama", "default", True, True)
    by_text = dict(zip(found.tokens, found.scores, strict=True))
    assert by_text["th"] > by_text["he"] > by_text["▁t"] > by_text["ll"] > by_text["t"]
    assert found.types[:4] == (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE)
    assert (found.tokens[-1], found.types[-1]) == (f"[PAD{SIZE - 1}]", TokenType.UNUSED)
    ours, theirs = llama_cpp_tokens(folder, tmp_path)
    assert ours[:-1] == theirs[:-1]  # the last one has a special token in its middle


def test_gemmas_pieces_are_read_with_their_runs_of_spaces_and_cut_the_same_in_llama_cpp(tmp_path):
    folder = checkpoint(tmp_path / "b", gemma_tokenizer())
    found = read(folder)
    assert (found.model, found.add_space_prefix, found.notes) == ("llama", False, ())
    assert found.types[found.tokens.index("   ")] == TokenType.USER_DEFINED
    ours, theirs = llama_cpp_tokens(folder, tmp_path)
    assert ours == theirs


def test_qwens_normalization_is_left_to_the_reader_with_a_note(tmp_path):
    tokenizer = byte_level_tokenizer([split(vocabulary.QWEN2), PLAIN])
    tokenizer.normalizer = normalizers.NFC()
    found = read(checkpoint(tmp_path / "b", tokenizer))
    assert (found.pre, found.notes) == ("qwen2", (vocabulary.NOT_NORMALIZED,))


def test_the_file_holds_tokens_types_merges_and_special_tokens(tmp_path):
    folder = checkpoint(
        tmp_path / "b", byte_level_tokenizer(*KINDS["gpt-2"][:1]), pad_token="<|x|>", chat_template="{{ x }}"
    )
    export(folder, tmp_path / "x.gguf", outtype="f16", no_verify=True)
    found = {name: field.contents() for name, field in GGUFReader(tmp_path / "x.gguf").fields.items()}
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]
    assert {text: i for i, text in enumerate(found["tokenizer.ggml.tokens"])}.items() >= vocab["vocab"].items()
    assert found["tokenizer.ggml.merges"] == [" ".join(pair) for pair in vocab["merges"]]
    assert [found[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")] == [0, 1, 2]
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.chat_template"]) == (True, "{{ x }}")


def test_a_chat_template_of_its_own_wins(tmp_path):
    folder = checkpoint(tmp_path / "b", byte_level_tokenizer([CUT]), chat_template="old")
    (folder / "chat_template.jinja").write_text("new")
    assert read(folder).chat_template == "new"


def test_whole_words_do_not_matter_where_merges_reach_every_token(tmp_path):
    folder = checkpoint(tmp_path / "b", byte_level_tokenizer([CUT], ignore_merges=True))
    assert read(folder).pre == "gpt-2"
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    edit(folder, model={**model, "merges": []})
    with pytest.raises(UnsupportedFormatError, match="but not with words that are taken whole"):
        read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "neither byte-level nor SentencePiece's"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "a space before every text"),
        ({"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}, "does not know how it cuts"),
        ({"normalizer": {"type": "NFKC"}}, "it normalizes texts"),
        ({"model": {"type": "Unigram"}}, "its model is 'Unigram', not BPE"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_run_in_another_way_is_refused(changes, message, tmp_path):
    folder = checkpoint(tmp_path / "b", byte_level_tokenizer([CUT]))
    edit(folder, **changes)
    with pytest.raises(UnsupportedFormatError, match=message):
        read(folder)


def test_another_pattern_is_refused(tmp_path):
    folder = checkpoint(tmp_path / "b", byte_level_tokenizer([split(r"\p{L}+|\s+"), PLAIN]))
    with pytest.raises(UnsupportedFormatError, match="does not know how it cuts texts into words"):
        read(folder)


def test_pieces_whose_merges_are_not_in_the_order_of_scores_are_refused(tmp_path):
    folder = checkpoint(tmp_path / "b", pieces_tokenizer())
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    for merges in (model["merges"][1:], [*model["merges"][3:], *model["merges"][:3]][::2]):
        edit(folder, model={**model, "merges": merges})
        with pytest.raises(UnsupportedFormatError, match="not in the order of scores"):
            read(folder)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    folder = checkpoint(tmp_path / "b", byte_level_tokenizer([CUT]), eos_token=None)
    with pytest.raises(UnsupportedFormatError, match="names an end token"):
        read(folder)


BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": {**BPE, "vocab": {"a": -1}}},
        {"model": {**BPE, "vocab": {"a": 10**12}}},
        {"model": {**BPE, "vocab": {"a": 1.5}}},
        {"model": {**BPE, "vocab": {"a": 0, "b": 0}}},
        {"model": {**BPE, "vocab": ["a"]}},
        {"model": {**BPE, "merges": "a b"}},
        {"model": {**BPE, "merges": [["a"]]}},
        {"model": {**BPE, "merges": [3]}},
        {"model": BPE, "added_tokens": {"id": 1}},
        {"model": BPE, "added_tokens": [{"id": 10**12, "content": "x"}]},
        {"model": BPE, "added_tokens": [{"id": "1", "content": "x"}]},
        {"model": BPE, "added_tokens": [{"id": 1, "content": "a"}]},
        {"model": BPE, "added_tokens": [7]},
        {"model": BPE, "post_processor": {"type": "Nonsense"}},
    ],
    ids=str,
)
def test_a_hostile_tokenizer_is_an_error_in_one_sentence(changes, tmp_path):
    folder = checkpoint(tmp_path / "b", byte_level_tokenizer([CUT]), bos_token="a", eos_token="b")
    edit(folder, **changes)
    with pytest.raises((CheckpointError, UnsupportedFormatError)) as caught:
        read(folder)
    assert len(caught.value.message) < 400


# ---- tokenizer.model ---------------------------------------------------------------------------------------------


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number, value):
    """One field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentencepiece(*, kind=2, removes=0, charsmap=b"", escapes=1):
    """A tokenizer.model with the pieces of the tokenizer above."""
    types = {"<unk>": 2, "<s>": 3, "</s>": 3}
    vocab = json.loads(pieces_tokenizer().to_str())["model"]["vocab"]
    data = b""
    for text, number in vocab.items():
        piece = field(1, text.encode()) + field(2, -float(number))
        piece += field(3, types.get(text, 6 if text.startswith("<0x") else 1))
        data += field(1, piece)
    normalizer = field(2, charsmap) + field(4, removes) + field(5, escapes)
    return data + field(2, field(3, kind)) + field(3, normalizer)


@pytest.fixture
def with_model_file(tmp_path):
    folder = checkpoint(tmp_path / "b", pieces_tokenizer())
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(sentencepiece())
    return folder


def test_a_sentencepiece_model_is_read_without_its_library(with_model_file):
    found = read(with_model_file)
    same = read_json_twin(with_model_file)
    assert (found.tokens, found.types, found.model, found.add_space_prefix) == (
        same.tokens,
        same.types,
        "llama",
        True,
    )
    assert found.scores[300] == -300.0
    assert (found.special_ids, found.add_bos) == ({"unk": 0, "bos": 1, "eos": 2}, True)


def read_json_twin(folder):
    pieces_tokenizer().save(str(folder / "tokenizer.json"))
    return read(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": 1}, "is no BPE"),
        ({"removes": 1}, "removes spaces"),
        ({"charsmap": b"nfkc"}, "normalizes texts"),
        ({"escapes": 0}, "normalizes texts"),
    ],
)
def test_other_sentencepiece_models_are_refused(options, message, with_model_file):
    (with_model_file / "tokenizer.model").write_bytes(sentencepiece(**options))
    with pytest.raises(UnsupportedFormatError, match=message):
        read(with_model_file)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 40,
        sentencepiece()[:-1],
        b"\x0a\xff\xff\xff\xff\x7fx",
        b"\x0a\x02\x0a\x00\x18\x63",
        field(1, field(1, 7)),
        field(1, 7),
        field(2, 7),
    ],
)
def test_a_broken_sentencepiece_model_is_an_error(data, with_model_file):
    (with_model_file / "tokenizer.model").write_bytes(data)
    with pytest.raises((CheckpointError, UnsupportedFormatError)):
        read(with_model_file)


def test_a_folder_without_a_tokenizer_is_refused(with_model_file):
    (with_model_file / "tokenizer.model").unlink()
    with pytest.raises(UnsupportedFormatError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        read(with_model_file)
