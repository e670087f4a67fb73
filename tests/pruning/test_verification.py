"""A written checkpoint is the base without the dropped sublayers, however it runs, and verification sees where not."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from bases import LLAMA, MISTRAL, parts, plan, random_tensors, raw_file, write_base, written
from safetensors.torch import load_file, save_file

from hubprune.core.architectures import architecture_of
from hubprune.core.config import check_config, read_config, read_structure
from hubprune.core.devices import last_words
from hubprune.core.errors import (
    CheckpointError,
    UnsupportedArchitectureError,
    UnsupportedFormatError,
    UnverifiedError,
    VerificationError,
)
from hubprune.core.weights import SINGLE_NAME
from hubprune.pruning import loading, verify
from hubprune.pruning.layouts import Runnable

DROPS = {
    "first": plan(5, attn=[0]),
    "last": plan(5, attn=[4]),
    "first and last": plan(5, attn=[0, 4]),
    "all but one": plan(5, attn=[0, 1, 3, 4]),
    "attention and MLP": plan(5, attn=[0, 2], mlp=[1, 4]),
    "a whole layer too": plan(5, attn=[0, 2], mlp=[2, 3]),
    "whole layers only": plan(5, attn=[0, 3], mlp=[0, 3]),
}
CACHE = "KV cache as planned"
LOGITS = "logits equal the base without the dropped sublayers"
BYTES = "kept tensors are the base's, byte for byte"


def checked(base, folder, drop):
    """Verify a folder."""
    family = architecture_of(base.config)
    return verify.verify(Runnable(Path(base.folder)), folder, plan=drop, config=base.config, architecture=family)


def failed(seen):
    return {check.name for check in seen.checks if not check.passed}


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        (
            "Traceback\n  File x\nValueError: no\n  more of it\nLoading weights: 100%|####| 42/42 [00:00]",
            "ValueError: no",
        ),
        ("Loading: 10%|#   | 1/10\rLoading: 100%|####| 10/10\n", "it ended without a word."),
        ("a.b.SomeValidationError: x\ny\n", "a.b.SomeValidationError: x"),
        ("Killed\n\n", "Killed"),
        ("", "it ended without a word."),
    ],
)
def test_the_last_words_of_a_process_are_its_error_and_no_progress_bar(stderr, said):
    assert last_words(stderr) == said


# ---- what is written does what the plan says ---------------------------------------------------------------------


def test_a_fresh_process_finds_the_checkpoint_right(mistral, tmp_path):
    drop = plan(5, attn=[0, 4])
    # transformers makes more than 600 characters of such a name.
    seen = checked(mistral, written(mistral, drop, tmp_path / ("a-b." * 40)), drop)
    assert failed(seen) == set()
    assert "does not load without trust_remote_code" in {check.name for check in seen.checks}
    # Query and output are 32 x 32, keys and values 16 x 32, a norm 32; of five attentions three are left.
    attention, rest = 2 * 32 * 32 + 2 * 16 * 32 + 32, 3 * 48 * 32 + 32
    assert seen.parameters == 2 * 256 * 32 + 32 + 5 * rest + 3 * attention
    verify.require_passed(seen)


@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
def test_every_kind_of_drop_passes_every_check(in_process, llama, tmp_path, drop):
    seen = checked(llama, written(llama, drop, tmp_path / "out"), drop)
    assert failed(seen) == set()
    assert seen.max_logit_difference <= 1e-5
    assert seen.cache_tokens == len(verify.PROMPTS[0])
    # Keys and values of two heads of size 8, in float32, for every attention that stays.
    assert seen.cache_bytes == (5 - len(drop.layers("attn"))) * seen.cache_tokens * 2 * 2 * 8 * 4


@pytest.mark.parametrize("name", ["first", "all but one", "a whole layer too"])
def test_a_text_longer_than_the_sliding_window_passes_every_check(in_process, mistral, tmp_path, name):
    assert min(map(len, verify.PROMPTS)) + verify.NEW_TOKENS > 2 * MISTRAL["sliding_window"]
    seen = checked(mistral, written(mistral, DROPS[name], tmp_path / "out"), DROPS[name])
    assert failed(seen) == set()
    # A sliding cache forgets what no later token will look at.
    kept = MISTRAL["sliding_window"] - 1
    assert seen.cache_bytes == (5 - len(DROPS[name].layers("attn"))) * kept * 2 * 2 * 8 * 4


@pytest.mark.parametrize("held", ["embedding", "head", "both"])
def test_tied_weights_pass_every_check(in_process, tmp_path, held):
    config, tensors = {**LLAMA, "tie_word_embeddings": True}, random_tensors(LLAMA)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors.pop({"embedding": "lm_head.weight", "head": "model.embed_tokens.weight"}.get(held), None)
    base = write_base(tmp_path / "base", config, tensors)
    drop = plan(5, attn=[1])
    assert failed(checked(base, written(base, drop, tmp_path / "out"), drop)) == set()


def test_rotary_tables_that_old_checkpoints_store_count_as_no_parameters(in_process, tmp_path):
    tensors = random_tensors(LLAMA)
    for layer in range(5):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = 100.0 ** -(torch.arange(4) / 4)
    base = write_base(tmp_path / "base", LLAMA, tensors)
    drop = plan(5, attn=[1])
    assert failed(checked(base, written(base, drop, tmp_path / "out"), drop)) == set()


def test_a_bfloat16_checkpoint_in_shards_with_biases_passes_every_check(in_process, tmp_path):
    config = {**LLAMA, "torch_dtype": "bfloat16", "attention_bias": True, "mlp_bias": True}
    tensors = random_tensors(config, dtype=torch.bfloat16)
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        tensors[name.replace("weight", "bias")] = torch.randn(tensors[name].shape[0]).bfloat16()
    base = write_base(tmp_path / "base", config, tensors, shards=3)
    drop = plan(5, attn=[0, 2], mlp=[3])
    assert failed(checked(base, written(base, drop, tmp_path / "out"), drop)) == set()


# ---- what a reader does with it ----------------------------------------------------------------------------------


def load(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


@pytest.fixture
def folder(llama, tmp_path):
    """A written checkpoint with the first attention and an MLP gone."""
    return written(llama, plan(5, attn=[0, 2], mlp=[3]), tmp_path / "pruned-llama")


def test_saving_and_loading_it_again_keeps_the_code_and_the_logits(folder, tmp_path):
    ids = torch.arange(20)[None]
    model = load(folder)
    again = tmp_path / "again"
    model.save_pretrained(again)
    config = json.loads((again / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"].endswith("modeling_pruned_llama.PrunedLlamaForCausalLM")
    assert config["dropped_attn_layers"] == [0, 2]
    assert (again / "modeling_pruned_llama.py").read_text() == (folder / "modeling_pruned_llama.py").read_text()
    with torch.no_grad():
        assert torch.equal(load(again)(ids).logits, model(ids).logits)


def test_it_refuses_to_load_without_trust(folder):
    from transformers import AutoModelForCausalLM

    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)


def test_the_inner_model_loads_by_its_own(folder):
    from transformers import AutoModel

    inner = AutoModel.from_pretrained(folder, trust_remote_code=True)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        states = inner.eval()(ids).last_hidden_state
        assert torch.equal(load(folder).lm_head(states), load(folder)(ids).logits)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_implementation_can_be_chosen(folder, implementation):
    ids = torch.arange(20)[None]
    model = load(folder, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    with torch.no_grad():
        assert (model(ids).logits - load(folder)(ids).logits).abs().max() < 1e-4


def generated(model, **options):
    ids = torch.arange(30, 50)[None]
    plain = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **{**plain, **options}).tolist()


def test_every_way_to_decode_greedily_writes_the_same(folder, llama):
    from transformers import AutoModelForCausalLM

    model, stock = load(folder), AutoModelForCausalLM.from_pretrained(llama.folder)
    expected = generated(model, use_cache=False)
    assert generated(model) == expected
    assert generated(model, cache_implementation="static") == expected
    assert generated(model, assistant_model=stock) == expected
    assert generated(model, prompt_lookup_num_tokens=3) == expected
    assert generated(stock, assistant_model=model) == generated(stock)


def test_a_cache_has_a_slot_for_every_attention_that_is_left_and_no_other(folder):
    from transformers import DynamicCache, StaticCache

    model, ids = load(folder), torch.arange(30, 50)[None]
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=32)):
        assert len(cache.layers) == 5
        with torch.no_grad():
            model(ids, past_key_values=cache)
        assert [int(layer.get_seq_length()) for layer in cache.layers] == [20] * 3


def test_beams_and_a_cache_that_is_taken_up_again_agree_with_running_at_once(folder):
    model = load(folder)
    assert generated(model, num_beams=3) == generated(model, num_beams=3, use_cache=False)
    ids = torch.arange(30, 50)[None]
    with torch.no_grad():
        cache = model(ids[:, :12], use_cache=True).past_key_values
        later = model(ids[:, 12:], past_key_values=cache).logits
        assert (later - model(ids).logits[:, 12:]).abs().max() < 1e-4


def test_it_can_be_trained(folder):
    model = load(folder).train()
    model.gradient_checkpointing_enable()
    ids = torch.arange(30, 50)[None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model(ids, labels=ids).loss
    before.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    assert model(ids, labels=ids).loss < before


# ---- verification sees what is wrong -----------------------------------------------------------------------------


@pytest.fixture
def first_dropped(in_process, llama, tmp_path):
    """Base, plan, and a written checkpoint without the first attention."""
    drop = plan(5, attn=[0])
    return llama, drop, written(llama, drop, tmp_path / "out")


def test_one_changed_byte_in_a_kept_weight_is_seen(first_dropped):
    base, drop, folder = first_dropped
    header, data = parts(folder / SINGLE_NAME)
    begin = header["model.layers.2.mlp.down_proj.weight"]["data_offsets"][0]
    # The highest byte of a little-endian float32: sign and exponent.
    changed = data[: begin + 3] + bytes([data[begin + 3] ^ 0x80]) + data[begin + 4 :]
    (folder / SINGLE_NAME).write_bytes(raw_file(header, changed))
    seen = checked(base, folder, drop)
    assert {LOGITS, BYTES} <= failed(seen)
    with pytest.raises(VerificationError, match=r"is not what was planned: kept tensors are the base's, byte for byte"):
        verify.require_passed(seen)


def test_a_changed_byte_that_changes_no_logit_is_seen(first_dropped):
    base, drop, folder = first_dropped
    header, data = parts(folder / SINGLE_NAME)
    begin = header["model.layers.2.mlp.down_proj.weight"]["data_offsets"][0]
    # The lowest byte of a little-endian float32: the last bits of the fraction.
    changed = data[:begin] + bytes([data[begin] ^ 1]) + data[begin + 1 :]
    (folder / SINGLE_NAME).write_bytes(raw_file(header, changed))
    assert failed(checked(base, folder, drop)) == {BYTES}


def test_a_modeling_file_that_does_not_renumber_cache_slots_is_seen(first_dropped):
    base, drop, folder = first_dropped
    path = folder / "modeling_pruned_llama.py"
    text = path.read_text()
    renumbering, trimming = "getattr(layer, ATTN).layer_idx = slots[number]", "model.register_forward_pre_hook("
    assert renumbering in text
    assert trimming in text
    path.write_text(text.replace(renumbering, "pass").replace(trimming, "dict(module="))
    assert "greedy text in a left-padded batch equals alone" in failed(checked(base, folder, drop))


def test_a_config_that_names_another_layer_is_seen(first_dropped):
    base, drop, folder = first_dropped
    config = read_config(folder)
    (folder / "config.json").write_text(json.dumps({**config, "dropped_attn_layers": [1]}))
    assert failed(checked(base, folder, drop)) >= {"loads without missing or unexpected keys", LOGITS}


def test_a_tensor_that_should_have_gone_is_seen(first_dropped):
    base, drop, folder = first_dropped
    tensors = load_file(folder / SINGLE_NAME)
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(32, 32)
    save_file(tensors, folder / SINGLE_NAME, metadata={"format": "pt"})
    assert "dropped tensors are in no file" in failed(checked(base, folder, drop))


def test_another_plan_than_the_written_one_is_seen(first_dropped):
    base, _, folder = first_dropped
    assert failed(checked(base, folder, plan(5, attn=[0, 1]))) >= {"parameters as planned", CACHE, LOGITS}


def test_a_checkpoint_that_loads_without_trust_is_seen(first_dropped):
    base, drop, folder = first_dropped
    config = read_config(folder)
    del config["auto_map"]
    stock = {"model_type": "llama", "intermediate_size": 48}
    (folder / "config.json").write_text(json.dumps({**config, **stock}))
    assert "does not load without trust_remote_code" in failed(checked(base, folder, drop))


def test_a_fresh_process_that_dies_is_an_error_with_its_last_words(tmp_path):
    request = loading.LoadRequest(repo_id="a/b", commit="main", prompt="", new_tokens=1, custom_code=False)
    with pytest.raises(VerificationError, match="could not load the checkpoint: KeyError: 'no such action'"):
        verify._in_fresh_process("no such action", request, loading.Loaded)


@pytest.mark.parametrize(
    "words",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried",
        "OSError: [Errno 28] No space left on device",
        "MemoryError",
    ],
)
def test_a_process_without_room_has_found_nothing_out(monkeypatch, words):
    ended = subprocess.CompletedProcess((), 1, "", f"Traceback (most recent call last):\n  File ...\n{words}\n")
    monkeypatch.setattr(verify, "run_to_end", lambda *_args, **_options: ended)
    request = loading.LoadRequest(repo_id="a/b", commit="main", prompt="", new_tokens=1, custom_code=False)
    with pytest.raises(UnverifiedError, match=re.escape(words)) as caught:
        verify._in_fresh_process("compare", request, loading.Loaded)
    assert "is kept" in caught.value.hint


# ---- what a checkpoint says of itself ----------------------------------------------------------------------------


def test_the_plan_is_read_back_from_the_published_config(llama, tmp_path):
    drop = DROPS["a whole layer too"]
    config = read_config(written(llama, drop, tmp_path / "out"))
    found = verify.plan_of(config)
    assert found.sublayers == drop.sublayers
    assert found.num_hidden_layers == 5
    assert read_structure(config).architecture.model_type == "llama"


@pytest.mark.parametrize(
    "config", [{}, {"hubprune": {}}, {"hubprune": 3}, {"hubprune": {"dropped_attn_layers_of_base": "a"}}]
)
def test_a_config_that_hubprune_did_not_write_is_told(config):
    with pytest.raises(CheckpointError, match="does not say what was dropped"):
        verify.plan_of(config)


def test_an_unknown_family_is_told():
    with pytest.raises(UnsupportedArchitectureError, match=re.escape("the checkpoint has model_type 'pruned_bert'")):
        read_structure({"model_type": "pruned_bert"})


def is_ours(folder):
    config = json.loads((folder / "config.json").read_text())
    return verify.ships_only_our_code(folder, config, read_structure(config))


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "modeling_pruned_llama.py").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "modeling_pruned_llama.py").unlink(),
        lambda folder: (folder / "evil.py").write_text("print('here')"),
        lambda folder: change_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model"}),
        lambda folder: change_config(folder, auto_map={"AutoModelForCausalLM": "other/repo--evil.Model"}),
        lambda folder: change_config(folder, architectures=["LlamaForCausalLM"]),
        lambda folder: change_config(folder, model_file="evil.pyc"),
        lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "other/repo"}'),
        lambda folder: (folder / "tokenizer_config.json").write_text(
            '{"auto_map": {"AutoTokenizer": [null, "evil.T"]}}'
        ),
    ],
)
def test_only_code_that_this_version_writes_is_trusted(llama, tmp_path, spoil):
    folder = written(llama, plan(5, attn=[0]), tmp_path / "out")
    assert is_ours(folder)
    spoil(folder)
    assert not is_ours(folder)


def test_a_generation_script_of_a_repo_is_code_too(llama, tmp_path):
    folder = written(llama, plan(5, attn=[0]), tmp_path / "out")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("print('here')")
    assert not is_ours(folder)
    (folder / "custom_generate").rename(tmp_path / "elsewhere")
    (folder / "custom_generate").symlink_to(tmp_path / "elsewhere")
    assert not is_ours(folder)


def test_code_of_the_base_is_never_carried(llama, tmp_path):
    (Path(llama.folder) / "tokenizer_evil.py").write_text("print('here')")
    try:
        folder = written(llama, plan(5, attn=[0]), tmp_path / "out")
        assert [p.name for p in folder.rglob("*.py")] == ["modeling_pruned_llama.py"]
    finally:
        (Path(llama.folder) / "tokenizer_evil.py").unlink()


def test_a_quantized_base_is_refused():
    with pytest.raises(UnsupportedFormatError, match="quantized \\(gptq\\)"):
        check_config({**LLAMA, "quantization_config": {"quant_method": "gptq"}}, where="config.json")


@pytest.mark.parametrize("named", ["LlamaForSequenceClassification", "LlamaForTokenClassification"])
def test_a_classifier_is_no_base(named):
    with pytest.raises(UnsupportedFormatError, match=f"is a {named}, whose head"):
        check_config({**LLAMA, "architectures": [named]}, where="config.json")
