"""A comparison takes few passes and any memory, and what it lets go is read again as it was."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from bases import LLAMA, plan, random_tensors, write_base, written
from safetensors.torch import load_file

from hubprune.core import devices, memory
from hubprune.core.architectures import ARCHITECTURES
from hubprune.core.console import Reporter
from hubprune.core.neutral import load_causal_lm
from hubprune.pruning import comparing, placing, verify
from hubprune.pruning.layouts import Runnable

PROMPTS = ((5, 6, 7, 8), (9, 10))
COARSE = {**LLAMA, "torch_dtype": "bfloat16"}


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """A random Llama in bfloat16, whose layers take several pages each."""
    tensors = random_tensors(COARSE, dtype=torch.bfloat16)
    return write_base(tmp_path_factory.mktemp("coarse") / "base", COARSE, tensors, shards=2)


def request(base, folder, **values):
    """What a verification asks for."""
    given = {
        "base_folder": base.folder, "base_custom_code": False, "folder": str(folder), "layers": "model.layers",
        "zeroed": ("model.layers.1.self_attn.o_proj.weight",), "prompts": verify.PROMPTS, "new_tokens": 3,
        "custom_code": True, "device": "cpu", **values,
    }  # fmt: skip
    return comparing.CompareRequest(**given)


# ---- passes ------------------------------------------------------------------------------------------------------


def test_as_many_passes_are_made_as_were_announced_and_no_more_than_tokens_need(llama, tmp_path):
    said = []
    folder = written(llama, plan(5, attn=[1]), tmp_path / "out")
    seen = comparing.compare(request(llama, folder), said.append)
    [first] = [word for word in said if word.passes]
    # The base, the logits, two texts of three tokens, and what was written at once.
    assert first.passes == 1 + 1 + 2 * 3 + 1 == sum(word.done for word in said)
    assert re.fullmatch(r"verifying on cpu in float32, .* kB of .* GB free", first.note)
    assert (seen.cached_equal, seen.padded_equal, seen.max_logit_difference) == (True, True, 0.0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel alone decides what stays in memory")
@pytest.mark.parametrize(("attn", "mlp"), [([1], []), ([0, 3], [2])])
def test_a_model_of_which_nothing_fits_into_memory_is_compared_all_the_same(monkeypatch, coarse, tmp_path, attn, mlp):
    monkeypatch.setattr(placing, "SMALL_BYTES", 0)
    monkeypatch.setattr(memory, "available_bytes", lambda: placing.WORK_BYTES)
    zeroed = tuple(f"model.layers.{layer}.self_attn.o_proj.weight" for layer in attn)
    zeroed += tuple(f"model.layers.{layer}.mlp.down_proj.weight" for layer in mlp)
    folder = written(coarse, plan(5, attn=attn, mlp=mlp), tmp_path / "out")
    seen = comparing.compare(request(coarse, folder, zeroed=zeroed, new_tokens=24))
    assert (seen.dtype, seen.new_tokens, seen.max_logit_difference) == ("bfloat16", 3, 0.0)
    assert seen.read_bytes == 2 * sum(tensor.numel() for tensor in random_tensors(COARSE).values())
    assert (seen.cached_equal, seen.padded_equal, seen.argmax_equal) == (True, True, True)


def test_a_text_that_no_pass_without_cache_would_write_is_seen(llama):
    model = load_causal_lm(llama.folder, dtype=torch.float32, own_code=False)
    rows = [list(row) for row in PROMPTS]
    with torch.inference_mode():
        texts = [comparing.generate(model, torch.tensor([row]), new_tokens=5)[0] for row in rows]
        assert comparing._likely(model, rows, texts) == [True, True]
        for place in range(5):
            wrong = [*texts[0]]
            wrong[place] += 1
            assert comparing._likely(model, rows, [wrong, texts[1]]) == [False, True]
        # Of two tokens that are equally likely, either is right.
        first, other = texts[0][0], (texts[0][0] + 1) % 256
        model.lm_head.weight[other] = model.lm_head.weight[first]
        assert comparing._likely(model, rows[:1], [[other]]) == [True]
        model.lm_head.weight[:] = torch.nan
        assert comparing._likely(model, rows[:1], [[first]]) == [False]


def test_a_cache_that_forgets_is_seen(in_process, monkeypatch, llama, tmp_path):
    from transformers.cache_utils import DynamicLayer

    update = DynamicLayer.update

    def forget(layer, keys, values, *args, **kwargs):
        found = update(layer, keys, values, *args, **kwargs)
        return (found[0], found[1].clone().index_fill_(2, torch.tensor([0]), 0)) if keys.shape[2] == 1 else found

    monkeypatch.setattr(DynamicLayer, "update", forget)
    drop = plan(5, attn=[0])
    seen = verify.verify(
        Runnable(Path(llama.folder)), written(llama, drop, tmp_path / "out"), plan=drop, config=llama.config,
        architecture=ARCHITECTURES["llama"],
    )  # fmt: skip
    assert "greedy text with KV cache equals without" in {check.name for check in seen.checks if not check.passed}


# ---- memory ------------------------------------------------------------------------------------------------------


def resident_bytes(folder):
    """Bytes of a folder's weights that this process has in memory."""
    found, own, weights = 0, False, [str(path.resolve()) for path in Path(folder).glob("*.safetensors")]
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            own = line.endswith(tuple(weights))
        elif own and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel alone decides what stays in memory")
@pytest.mark.parametrize(("room", "linked"), [(0, False), (10**9, True)])
def test_weights_that_were_used_leave_the_memory_and_come_back_as_they_were(tmp_path, room, linked):
    config = {**COARSE, "intermediate_size": 4096}
    base = write_base(tmp_path / "base", config, random_tensors(config, dtype=torch.bfloat16))
    if linked:  # as the client of the Hub keeps them
        weights = tmp_path / "base" / "model.safetensors"
        weights.symlink_to(weights.rename(tmp_path / "5e1f"))
    ids, whole = torch.tensor([PROMPTS[0]]), load_causal_lm(base.folder, dtype=torch.bfloat16, own_code=False)
    model = load_causal_lm(base.folder, dtype=torch.bfloat16, own_code=False)
    copied = model.model.layers[2].mlp.up_proj
    copied.weight = torch.nn.Parameter(copied.weight.clone())  # one that is in no file
    with torch.inference_mode():
        expected = whole(ids).logits
        held = resident_bytes(base.folder)
        del whole
        placing.let_go_after_use([*model.model.layers, model.lm_head], Path(base.folder), room_bytes=room)
        for _ in range(2):
            assert torch.equal(model(ids).logits, expected)
    assert held > 3 * 10**6
    assert resident_bytes(base.folder) < held / 4  # pages around those of the embedding
    for name, tensor in load_file(Path(base.folder) / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor)


def place(base, monkeypatch, *, free=10**12, on_device=0, small=0, units=frozenset({"bfloat16"}), **values):
    """Where two models are compared on a machine with so much memory."""
    monkeypatch.setattr(placing, "SMALL_BYTES", small)
    monkeypatch.setattr(memory, "available_bytes", lambda: free)
    monkeypatch.setattr(memory, "device_bytes", lambda _: on_device)
    monkeypatch.setattr(devices, "resolve_device", lambda _: "cuda" if on_device else "cpu")
    monkeypatch.setattr(devices, "computes", lambda dtype, _: dtype == "float32" or dtype in units)
    return placing.find_place(Path(base.folder), **{"device": "auto", "dtype": "auto", **values})


def test_small_models_are_compared_in_float32_and_others_in_what_the_device_computes(coarse, monkeypatch):
    assert place(coarse, monkeypatch, small=2**28).dtype == "float32"
    assert place(coarse, monkeypatch).dtype == "bfloat16"
    assert place(coarse, monkeypatch, dtype="float32").dtype == "float32"
    # Without units for it, in float32 where copies have room, else as the files are.
    assert place(coarse, monkeypatch, units=()).dtype == "float32"
    assert place(coarse, monkeypatch, units=(), free=1000).dtype == "bfloat16"
    assert place(coarse, monkeypatch, small=2**28, free=1000).dtype == "bfloat16"


def test_a_device_computes_what_it_has_room_for(coarse, monkeypatch):
    large = place(coarse, monkeypatch, on_device=10**9)
    assert (large.device, large.dtype, large.read_bytes) == ("cuda", "bfloat16", 0)
    assert place(coarse, monkeypatch, on_device=10**9, units=()).dtype == "float16"
    small = place(coarse, monkeypatch, on_device=10**8)
    assert (small.device, small.dtype) == ("cpu", "bfloat16")
    assert ", since cuda has 100.00 MB free" in small.told


def test_what_the_memory_cannot_keep_is_told_and_costs_tokens(coarse, monkeypatch):
    weights = 2 * sum(tensor.numel() for tensor in random_tensors(COARSE).values())
    tight = place(coarse, monkeypatch, free=placing.WORK_BYTES + weights // 4)
    assert (tight.read_bytes, tight.most_tokens) == (weights - weights // 4, placing.FEWEST_TOKENS)
    assert "are read from disk in every pass" in tight.told
    wide = place(coarse, monkeypatch)
    assert (wide.read_bytes, wide.most_tokens) == (0, placing.FEW_TOKENS)
    assert place(coarse, monkeypatch, small=2**28).most_tokens > 1000


# ---- what is said ------------------------------------------------------------------------------------------------


def test_what_a_fresh_process_says_is_told_and_what_else_it_prints_is_not(capsys):
    with verify._told(Reporter()) as listen:
        for line in ('{"note":"verifying on cpu","passes":2}', '{"done":1}', "Loading weights", "{}", '{"a":1}', "7"):
            listen(f"{line}\n")
        listen('{"done":1}\n')
    said = capsys.readouterr().err
    assert said.count("verifying on cpu") == 1
    assert "verifying: 2 passes in" in said
    assert len(said.splitlines()) == 2


def test_a_verification_says_where_it_ran_and_what_it_read_again(in_process, coarse, tmp_path, monkeypatch):
    monkeypatch.setattr(placing, "SMALL_BYTES", 0)
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    drop = plan(5, attn=[1])
    folder = written(coarse, drop, tmp_path / "out")
    seen = verify.verify(
        Runnable(Path(coarse.folder)), folder, plan=drop, config=COARSE, architecture=ARCHITECTURES["llama"]
    )
    assert seen.passed
    assert (seen.device, seen.dtype, seen.new_tokens) == ("cpu", "bfloat16", 3)
    told = {check.name: check.detail for check in seen.checks}["greedy text with KV cache equals without"]
    assert re.fullmatch(r"12 tokens, 3 a text, since each reads .* from disk", told)
    # Manifests of earlier versions say none of it.
    old = seen.model_dump(mode="json", exclude={"device", "read_bytes", "new_tokens"})
    assert type(seen).model_validate(old).new_tokens == 24
