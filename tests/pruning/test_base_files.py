"""What a base's own files say is held against each other first, and what is only a wish of theirs changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bases import FAMILIES, LLAMA, family_tensors, plan, random_tensors, write_base
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import RepoFile
from hubprune.core.config import check_config
from hubprune.core.console import Reporter
from hubprune.core.devices import resolve_dtype
from hubprune.core.errors import CheckpointError, UnsupportedFormatError, VerificationError
from hubprune.core.neutral import load_causal_lm, neutral_config
from hubprune.core.streaming import StreamedModel
from hubprune.pruning import comparing, verify
from hubprune.pruning.base_files import examine, settle, shapes_in
from hubprune.pruning.checkpoint import take_inventory, write_checkpoint
from hubprune.pruning.layouts import make_runnable

DROP = plan(5, attn=[1])
TIED = {**LLAMA, "tie_word_embeddings": True}


class Told(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def in_process(in_process, monkeypatch):
    """Compare in this process, and write a few tokens only."""
    monkeypatch.setattr(verify, "NEW_TOKENS", 6)


@pytest.fixture
def make(tmp_path):
    """Write a base with other tensors, without some, with another config.json, or with more files."""

    def write(*, config=LLAMA, more=(), without=(), files=(), **keys):
        config = {key: value for key, value in {**config, **keys}.items() if value is not ...}
        tensors = {name: t for name, t in {**random_tensors(LLAMA), **dict(more)}.items() if name not in without}
        base = write_base(tmp_path / "base", config, tensors)
        for name, content in dict(files).items():
            Path(base.folder, name).write_text(content if isinstance(content, str) else json.dumps(content))
        paths = tuple(RepoFile(path=path.name, size=1) for path in Path(base.folder).iterdir())
        return base.model_copy(update={"files": paths})

    return write


def examined(base, told=None):
    """Examine a base as a run does, and say what was told."""
    told, folder = told or Told(), Path(base.folder)
    check_config(base.config, where=f"config.json of {base.name}")
    examine(base, folder=folder, shapes=shapes_in(folder), reporter=told)
    return told.notes


def refused(base):
    """The one error that a base gets."""
    with pytest.raises((CheckpointError, UnsupportedFormatError)) as caught:
        examined(base)
    assert "bug" not in str(caught.value)
    assert "\n" not in caught.value.message
    return caught.value


def pruned(base, tmp_path, drop=DROP):
    """Settle, prune and verify a base as a run does; what comes back is what was checked, and where it is."""
    base = settle(base, reporter=Told())
    runnable, family = make_runnable(base, tmp_path / "runnable"), architecture_of(base.config)
    (tmp_path / "out").mkdir()
    write_checkpoint(base, drop, tmp_path / "out", advance=lambda _: None)
    seen = verify.verify(runnable, tmp_path / "out", plan=drop, config=base.config, architecture=family)
    verify.require_passed(seen)
    told = take_inventory(
        runnable.weights(), tmp_path / "out", plan=drop, config=base.config, architecture=family,
        advance=lambda _: None,
    )  # fmt: skip
    assert told.parameters == seen.parameters
    return told


# ---- what transformers does not use ------------------------------------------------------------------------------

ONE = torch.ones(1, 32)
HARMLESS = {
    "a value head": {"v_head.summary.weight": ONE, "v_head.summary.bias": torch.ones(1)},
    "a classifier": {"score.weight": ONE},
    "a scalar": {"model.scale": torch.tensor(1.0)},
    "a scalar in a layer": {"model.layers.1.self_attn.scale": torch.tensor(1.0)},
    "an empty tensor": {"nothing": torch.zeros(0, 3)},
    "layers beyond the last": {
        "model.layers.5.mlp.up_proj.weight": ONE,
        "model.layers.5.input_layernorm.weight": ONE[0] + 1,
    },
}


@pytest.mark.parametrize("more", HARMLESS.values(), ids=HARMLESS)
def test_what_transformers_does_not_use_is_left_out_and_said(in_process, make, tmp_path, more):
    base = make(more=more)
    (note,) = examined(base)
    assert all(name in note for name in more)
    told = pruned(base, tmp_path)
    assert not load_file(tmp_path / "out" / "model.safetensors").keys() & more.keys()
    assert told.base_parameters == AutoModelForCausalLM.from_pretrained(base.folder).num_parameters()


def test_the_scores_of_a_base_do_not_depend_on_what_it_does_not_use(make):
    base = settle(make(more=HARMLESS["a scalar in a layer"]), reporter=Told())
    model = StreamedModel(
        Path(base.folder), architecture=architecture_of(base.config), dtype="float32", device="cpu",
        tensor_names=base.tensor_names,
    )  # fmt: skip
    rooms = model.embed([torch.tensor([[1, 2, 3]])])
    assert all(layer is not None for layer in range(len(model)))
    assert rooms[0][0].shape == (1, 3, 32)


def test_names_without_the_prefix_of_the_model_are_those_that_transformers_makes_of_them(in_process, make, tmp_path):
    bare = {name.removeprefix("model."): tensor for name, tensor in random_tensors(LLAMA).items()}
    base = make(more=bare, without=[name for name in random_tensors(LLAMA) if name.startswith("model.")])
    assert examined(base) == []
    pruned(base, tmp_path)
    assert "model.layers.0.mlp.up_proj.weight" in load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_bases_of_every_family_fit(tmp_path, family):
    base = write_base(tmp_path / "base", FAMILIES[family], family_tensors(FAMILIES[family]))
    assert [note for note in examined(base) if "<|endoftext|>" not in note] == []  # which Qwen2Tokenizer adds
    assert settle(base, reporter=Told()).tensor_names == {}


@pytest.mark.parametrize("layout", ["pruned", "nemotron-nas"])
def test_a_base_that_was_pruned_before_fits(llama, tmp_path, layout):
    (tmp_path / "once").mkdir()
    write_checkpoint(llama, plan(5, attn=[1, 2], mlp=[3], layout=layout), tmp_path / "once", advance=lambda _: None)
    config = json.loads((tmp_path / "once" / "config.json").read_text())
    once = llama.model_copy(update={"folder": str(tmp_path / "once"), "config": config})
    assert examined(once) == []
    assert settle(once, reporter=Told()).config == config
    narrow = {**config, "hidden_act": "banana"}
    assert "hidden_act='banana'" in refused(once.model_copy(update={"config": narrow})).message


# ---- the head ----------------------------------------------------------------------------------------------------


def test_a_tied_head_with_other_values_is_carried_as_transformers_5_uses_it(in_process, make, tmp_path):
    base, told = make(config=TIED), Told()
    settled = settle(base, reporter=told)
    assert "transformers 5 uses both, transformers 4 the embedding alone" in told.notes[0]
    assert settled.config["tie_word_embeddings"] is False
    found = pruned(base, tmp_path)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    stock = AutoModelForCausalLM.from_pretrained(base.folder)
    assert found.base_parameters == stock.num_parameters()
    result = load_causal_lm(tmp_path / "out", dtype=torch.float32, own_code=True)
    assert torch.equal(result.lm_head.weight, stock.lm_head.weight)


@pytest.mark.parametrize("held", ["embedding", "head", "both"])
def test_a_tied_head_with_the_same_values_stays_tied(in_process, make, tmp_path, held):
    table = random_tensors(LLAMA)["model.embed_tokens.weight"]
    gone = {"embedding": ["lm_head.weight"], "head": ["model.embed_tokens.weight"]}.get(held, [])
    base = make(config=TIED, more={"lm_head.weight": table.clone()}, without=gone)
    assert examined(base) == []
    assert settle(base, reporter=Told()).config == base.config
    pruned(base, tmp_path)


# ---- contradictions ----------------------------------------------------------------------------------------------

UP = "model.layers.2.mlp.up_proj.weight"
CONTRADICTIONS = {
    "no head": ({"without": ["lm_head.weight"]}, ["tie_word_embeddings: false", "no lm_head.weight", '": true']),
    "no word of a head": (
        {"without": ["lm_head.weight"], "tie_word_embeddings": ...},
        ["has no tie_word_embeddings, which means false"],
    ),
    "a hole": ({"without": [UP]}, [f"do not hold what config.json describes: {UP}."]),
    "no norm": ({"without": ["model.norm.weight"]}, ["model.norm.weight"]),
    "another shape": ({"more": {UP: torch.ones(47, 32)}}, [UP, "[47, 32]", "[48, 32]"]),
    "more layers": ({"num_hidden_layers": 6}, ["num_hidden_layers=6", "no layer 5"]),
    "thousands of layers": ({"num_hidden_layers": 4096}, ["num_hidden_layers=4096", "no layer 5"]),
    "another width": ({"intermediate_size": 64}, ["[32, 48]", "[32, 64]", "and so for 14 more"]),
    "one tensor twice": ({"more": {"norm.weight": torch.ones(32)}}, ["norm.weight and model.norm.weight"]),
    "an adapter": ({"files": {"adapter_config.json": {}}}, ["adapter_config.json", "peft", "merge_and_unload()"]),
    "no pad token": ({"pad_token_id": 256}, ["pad_token_id=256", "vocab_size=256", "null"]),
    "a small vocabulary": (
        {"vocab_size": 64, "more": {n: torch.ones(64, 32) for n in ("model.embed_tokens.weight", "lm_head.weight")}},
        ["The tokenizer of tiny gives token", "the embedding has 64 rows", "vocab_size"],
    ),
}


@pytest.mark.parametrize(("changes", "said"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_files_that_contradict_each_other_get_one_error_with_cause_and_cure(make, changes, said):
    error = refused(make(**changes))
    assert all(words in str(error) for words in said), str(error)
    assert error.hint


def test_other_prefixes_are_told_by_what_is_there_instead(make):
    names = random_tensors(LLAMA)
    base = make(more={f"language_model.{name}": tensor for name, tensor in names.items()}, without=names)
    assert "What they hold instead is language_model." in refused(base).message


NO_MODEL = {
    "dtype": ["banana", "auto", "int8", ["float32"], 5],
    "hidden_act": [None, "os.system", 3],
    "rms_norm_eps": ["1e-5"],
    "tie_word_embeddings": ["false"],
    "attention_bias": ["no"],
    "rope_theta": ["x", None, []],
    "rope_scaling": [{"rope_type": "banana", "factor": 2.0}],
    "layer_types": [["full_attention"], ["banana"] * 5],
    "head_dim": [7],
    "pad_token_id": ["x"],
    "eos_token_id": ["x"],
    "use_return_dict": [False],
    "auto_map": [5],
    "id2label": [5],
    "text_config": [{"a": 1}],
    "vocab_size": ["256"],
    "to_dict": [5],
    "__class__": ["x"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in NO_MODEL.items() for value in values], ids=lambda v: str(v)[:30]
)
def test_a_config_that_makes_no_model_is_refused_by_key_and_value(make, key, value):
    config = {name: given for name, given in LLAMA.items() if (name, key) != ("torch_dtype", "dtype")}
    error = refused(make(config=config, **{key: value}))
    assert "config.json of tiny" in error.message
    assert f"{key}={value!r}"[:30] in error.message


def test_sizes_that_contradict_each_other_are_both_named(make):
    assert "hidden_size=32, num_attention_heads=64" in refused(make(num_attention_heads=64)).message


@pytest.mark.parametrize("value", [["gptq"], {"quant_method": "gptq"}, "gptq"])
def test_quantized_weights_are_refused_however_they_are_announced(make, value):
    assert "quantized" in refused(make(quantization_config=value)).message


BROKEN = {
    "tokenizer.json": ["{", "[]", "{}"],
    "tokenizer_config.json": ['{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": "x"}'],
    "generation_config.json": [
        '{"eos_token_id": "x"}',
        '{"eos_token_id": [2.5]}',
        "{",
        "[]",
        '"x"',
        '{"temperature": NaN}',
        '{"max_new_tokens": 0}',
    ],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_broken_files_beside_the_weights_are_named(make, name, text):
    assert name.split("_")[0].removesuffix(".json") in refused(make(files={name: text})).message


def test_tokens_that_have_no_row_are_told(make):
    base = make()
    tokenizer = json.loads(Path(base.folder, "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [
        {"id": 256, "content": "[PAD]", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
    ]  # fmt: skip
    Path(base.folder, "tokenizer.json").write_text(json.dumps(tokenizer))
    assert examined(base) == ["the embedding of tiny has no row for [PAD]: texts with them cannot be run"]


# ---- what is silent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.bfloat16, torch.bfloat16), "bfloat16"),
        ((torch.float16, torch.float32), "float16"),
        ((torch.float32, torch.bfloat16), "float32"),
    ],
)
def test_without_a_dtype_in_config_json_auto_is_that_of_the_first_tensor(in_process, tmp_path, dtypes, expected):
    config = {key: value for key, value in LLAMA.items() if key != "torch_dtype"}
    first, others = dtypes
    tensors = {n: t.to(first if n == "lm_head.weight" else others) for n, t in random_tensors(LLAMA).items()}
    base = settle(write_base(tmp_path / "base", config, tensors), reporter=Told())
    assert resolve_dtype("auto", base.config) == expected
    stock = AutoModelForCausalLM.from_pretrained(base.folder, dtype="auto")
    assert str(stock.dtype) == f"torch.{expected}"
    found = pruned(base, tmp_path)
    size = 4 if expected == "float32" else 2
    assert found.base_kv_bytes_per_token == 5 * 2 * 2 * 8 * size
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["dtype"], written["torch_dtype"]) == (expected, expected)


# ---- what is only a wish -----------------------------------------------------------------------------------------

ATTENTIONS = [
    {"_attn_implementation": "local/evil-kernel"},
    {"attn_implementation": "kernels-community/flash-attn"},
    {"_attn_implementation": {"": "local/evil-kernel"}},
    {"attn_implementation": {"": "local/evil-kernel"}},
    {"_attn_implementation": "eager"},
    {"_attn_implementation_internal": "eager"},
    {"output_attentions": True, "_attn_implementation": "eager"},
    {"output_hidden_states": True},
    {"return_dict": False},
]


@pytest.mark.parametrize("wish", ATTENTIONS, ids=str)
def test_no_base_chooses_the_attention_that_it_is_run_with(in_process, make, tmp_path, wish):
    base = make(**wish)
    assert examined(base) == []
    assert neutral_config(base.folder, own_code=False)._attn_implementation is None
    model = load_causal_lm(base.folder, dtype=torch.float32, own_code=False)
    assert model.config._attn_implementation == "sdpa"
    streamed = StreamedModel(
        Path(base.folder), architecture=architecture_of(base.config), dtype="float32", device="cpu"
    )
    assert streamed._model.config._attn_implementation == "sdpa"
    out = model(torch.tensor([[1, 2, 3]]))
    assert (out.attentions, out.hidden_states) == (None, None)
    pruned(base, tmp_path)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {key for key in written if "attn_implementation" in key}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_run_with_the_attention_that_transformers_takes_by_itself(tmp_path, family):
    base = write_base(tmp_path / "base", FAMILIES[family], family_tensors(FAMILIES[family]))
    stock = AutoModelForCausalLM.from_pretrained(base.folder)
    Path(base.folder, "config.json").write_text(json.dumps({**FAMILIES[family], "_attn_implementation": "local/evil"}))
    ours = load_causal_lm(base.folder, dtype=torch.float32, own_code=False)
    assert ours.config._attn_implementation == stock.config._attn_implementation
    assert stock.config._attn_implementation == ("eager" if family == "gemma2" else "sdpa")


WISHES = [
    {"stop_strings": ["a"]},
    {"num_return_sequences": 3, "do_sample": True},
    {"prompt_lookup_num_tokens": 3},
    {"num_assistant_tokens": 5, "assistant_early_exit": 2},
    {"dola_layers": "high"},
    {"return_dict_in_generate": True},
    {"output_scores": True, "output_attentions": True, "return_dict_in_generate": True},
    {"cache_implementation": "quantized"},
    {"cache_implementation": "static"},
    {"cache_implementation": "offloaded"},
    {"num_beams": 4},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    {"early_stopping": True, "num_beams": 2},
    {"constraints": ["x"]},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"repetition_penalty": 5.0},
    {"encoder_repetition_penalty": 2.0},
    {"no_repeat_ngram_size": 1},
    {"forced_bos_token_id": 5, "forced_eos_token_id": 7},
    {"watermarking_config": {"greenlist_ratio": 0.25, "bias": 20.0}},
    {"guidance_scale": 2.0},
    {"max_time": 1e-9},
    {"suppress_tokens": list(range(200)), "begin_suppress_tokens": [4]},
    {"bad_words_ids": [[5]]},
    {"sequence_bias": [[[5], 100.0]]},
    {"min_length": 100, "max_length": 120},
    {"min_new_tokens": 100},
    {"exponential_decay_length_penalty": [1, 2.0]},
    {"custom_generate": "local/evil"},
    {"do_sample": True, "temperature": 9.0},
    {"eos_token_id": [600]},
    {"pad_token_id": 600},
    {"use_cache": False},
]


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_no_base_chooses_how_texts_are_made(in_process, llama, make, tmp_path, wish):
    base = make(files={"generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, **wish}})
    examined(base)
    prompt = torch.tensor([[1, 20, 30]])
    plain = load_causal_lm(llama.folder, dtype=torch.float32, own_code=False)
    other = load_causal_lm(base.folder, dtype=torch.float32, own_code=False)
    other.load_state_dict(plain.state_dict())
    texts = [comparing.generate(model, prompt, new_tokens=6) for model in (plain, other)]
    assert texts[0] == texts[1]
    pruned(base, tmp_path)
    carried = (tmp_path / "out" / "generation_config.json").read_bytes()
    assert carried == Path(base.folder, "generation_config.json").read_bytes()


def test_the_words_of_config_json_about_texts_are_neutral_too(in_process, make, tmp_path):
    base = make(num_beams=4, repetition_penalty=3.0)
    assert load_causal_lm(base.folder, dtype=torch.float32, own_code=False).generation_config.num_beams == 1
    pruned(base, tmp_path)


# ---- what is no number -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_logits_that_are_no_numbers_are_called_so(make, tmp_path, value):
    base = make(more={"model.norm.weight": torch.full((32,), value)})
    with pytest.raises(VerificationError, match=r"^The logits of the base are not finite numbers") as caught:
        pruned(base, tmp_path)
    assert "the last norm or the head" in str(caught.value)
