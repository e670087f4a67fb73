"""Whoever reads a result gets the base's token ids, and a verification sees where not; the matrix tries versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import plan_of, write_base
from kinds import GRANITE, LLAMA, MISTRAL, NO_BOS, PHI3, QWEN2, Drop, Kind
from tokenizers_of import Words

from hubprune.core.architectures import architecture_of
from hubprune.core.errors import CheckpointError
from hubprune.pruning import verify
from hubprune.pruning.checkpoint import write_checkpoint
from hubprune.pruning.layouts import Runnable
from hubprune.pruning.tokenizer_files import ids_depend_on_version, load_tokenizer, settle_tokenizer, token_ids

GENERIC = "PreTrainedTokenizerFast"
LLAMAS = Words("prepended", "LlamaTokenizer", {"add_bos_token": True})
FIRST = Drop(attn=(0,))


def published(config, words, folder, *, drop=FIRST, layout="pruned"):
    """Write a base with a tokenizer and what is published of it; return both folders."""
    kind = Kind("base", {**config, "vocab_size": 800}, layout=layout, words=words)
    base = write_base(kind, folder / "base")
    out = folder / "out"
    out.mkdir()
    write_checkpoint(base, plan_of(kind, drop), out, advance=lambda _: None)
    return kind, base, out


def named(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]


@pytest.mark.parametrize(
    ("config", "words", "expected"),
    [
        (MISTRAL, LLAMAS, GENERIC),
        (MISTRAL, Words("metaspace", None), GENERIC),
        (PHI3, Words("gpt4", "GPT2Tokenizer"), GENERIC),
        (GRANITE, Words("digits", "GPT2TokenizerFast"), GENERIC),
        (LLAMA, Words("llama3", GENERIC, saved_by_newest=True), GENERIC),
        (LLAMA, Words("prepended", None), GENERIC),
        (LLAMA, Words("llama3", "LlamaTokenizerFast"), GENERIC),
    ],
    ids=str,
)
def test_the_class_is_one_with_which_all_versions_keep_the_pipeline_of_the_base(config, words, expected, tmp_path):
    _, base, out = published(config, words, tmp_path)
    assert named(out) == json.loads((out / "config.json").read_text())["tokenizer_class"] == expected
    assert (out / "tokenizer.json").read_bytes() == (Path(base.folder) / "tokenizer.json").read_bytes()
    assert token_ids(load_tokenizer(out)) == token_ids(load_tokenizer(base.folder))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LLAMA, LLAMAS),
        (LLAMA, Words("digits", "GPT2Tokenizer")),
        (LLAMA, Words("llama3", GENERIC)),
        (MISTRAL, Words("llama3", GENERIC)),
    ],
    ids=str,
)
def test_no_byte_is_changed_where_base_and_result_are_read_alike(config, words, tmp_path):
    _, base, out = published(config, words, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (Path(base.folder) / name).read_bytes()


def test_what_the_base_says_of_padding_and_inputs_stays_and_else_its_class_decides(tmp_path):
    _, _, out = published(MISTRAL, LLAMAS, tmp_path)
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert (config["padding_side"], config["model_input_names"]) == ("left", ["input_ids", "attention_mask"])
    (tmp_path / "other").mkdir()
    said = Words("prepended", "LlamaTokenizer", {"padding_side": "right", "model_input_names": ["input_ids"]})
    _, _, out = published(MISTRAL, said, tmp_path / "other")
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert (config["padding_side"], config["model_input_names"]) == ("right", ["input_ids"])


def test_a_list_of_special_tokens_is_one_that_transformers_4_can_read(tmp_path):
    extra = {"additional_special_tokens": ["<|user|>"]}
    _, base, out = published(LLAMA, Words("llama3", GENERIC, extra, saved_by_newest=True), tmp_path)
    before = json.loads((Path(base.folder) / "tokenizer_config.json").read_text())
    assert (before["tokenizer_class"], before["extra_special_tokens"]) == ("TokenizersBackend", ["<|user|>"])
    after = json.loads((out / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in after
    assert after["additional_special_tokens"] == ["<|user|>"]


def test_a_class_that_config_json_names_alone_is_named_where_all_versions_look(tmp_path):
    _, _, out = published({**LLAMA, "tokenizer_class": "LlamaTokenizer"}, Words("metaspace", None), tmp_path)
    assert named(out) == "LlamaTokenizer"


def test_padding_follows_the_class_that_the_base_names_whatever_the_result_names(tmp_path):
    _, _, out = published(QWEN2, Words("qwen", "LlamaTokenizerFast", NO_BOS), tmp_path)
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert (config["tokenizer_class"], config["padding_side"]) == ("Qwen2Tokenizer", "left")


def test_a_verification_finds_a_tokenizer_that_gives_other_ids(tmp_path):
    kind, base, out = published(MISTRAL, LLAMAS, tmp_path)
    (out / "tokenizer_config.json").write_bytes((Path(base.folder) / "tokenizer_config.json").read_bytes())
    plan, family = plan_of(kind, FIRST), architecture_of(base.config)
    seen = verify.verify(Runnable(Path(base.folder)), out, plan=plan, config=base.config, architecture=family)
    assert [check.name for check in seen.checks if not check.passed] == ["token ids equal the base's"]


def test_a_stock_checkpoint_of_whole_layers_is_readable_by_4_too(tmp_path):
    words = Words("llama3", GENERIC, saved_by_newest=True)
    _, _, out = published(LLAMA, words, tmp_path, drop=Drop(attn=(1,), mlp=(1,)), layout="stock")
    assert named(out) == GENERIC


def test_a_base_that_ships_a_sentencepiece_model_alone_gets_the_pipeline_that_is_made_of_it(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")

    _, base, _ = published(MISTRAL, LLAMAS, tmp_path)
    folder, out = Path(base.folder), tmp_path / "of pieces"
    text = tmp_path / "text"
    text.write_text("the river was high and the bridge was old in 2024\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "m"), vocab_size=300, model_type="bpe", byte_fallback=True,
        minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes((tmp_path / "m.model").read_bytes())
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}')
    out.mkdir()
    kind = Kind("base", {**MISTRAL, "vocab_size": 800})
    write_checkpoint(base, plan_of(kind, FIRST), out, advance=lambda _: None)
    assert (out / "tokenizer.json").is_file()
    assert token_ids(load_tokenizer(out)) == token_ids(load_tokenizer(folder))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (LLAMAS, None),
        (Words("unopened", "LlamaTokenizer", NO_BOS), None),
        (Words("prepended", "LlamaTokenizer", NO_BOS), "transformers 4 adds no bos_token and adds no eos_token"),
        (Words("prepended", "LlamaTokenizer", {"add_eos_token": True}), "adds bos_token and adds eos_token"),
        (Words("digits", "GPT2Tokenizer", NO_BOS), None),
    ],
    ids=str,
)
def test_it_is_told_where_the_base_itself_reads_otherwise_in_4_and_5(words, said, tmp_path):
    kind, base, out = published(MISTRAL, words, tmp_path)
    family = architecture_of(MISTRAL)
    found = ids_depend_on_version(Path(base.folder), out, architecture=family)
    assert found is None if said is None else said in found
    if said:
        plan = plan_of(kind, FIRST)
        seen = verify.verify(Runnable(Path(base.folder)), out, plan=plan, config=base.config, architecture=family)
        assert {c.name: c.detail for c in seen.checks}["token ids equal the base's"].endswith(found)
    same = Path(base.folder)
    assert ids_depend_on_version(same, same, architecture=family) is None


def test_a_broken_tokenizer_is_named(tmp_path):
    _, base, out = published(MISTRAL, LLAMAS, tmp_path)
    (Path(base.folder) / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"The tokenizer of .* cannot be loaded"):
        settle_tokenizer(Path(base.folder), out, architecture=architecture_of(MISTRAL))


def test_without_a_tokenizer_nothing_is_written(tmp_path):
    assert settle_tokenizer(tmp_path, tmp_path, architecture=architecture_of(LLAMA)) is None
    assert not list(tmp_path.iterdir())
