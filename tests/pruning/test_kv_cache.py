"""KV bytes by arithmetic: the paper's table, and what real caches hold."""

import pytest
import torch
from bases import FAMILIES, LLAMA, MISTRAL, family_tensors, plan, random_tensors, write_base
from transformers import AutoModelForCausalLM

from hubprune.core.config import read_config, read_structure
from hubprune.core.memory import held_bytes, kv_cache_bytes
from hubprune.pruning.checkpoint import write_checkpoint


def shape(*, layers, heads, kv_heads, model_type="llama", **more):
    return {
        "model_type": model_type, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "hidden_size": 128 * heads, "torch_dtype": "float16", **more,
    }  # fmt: skip


MISTRAL_7B = shape(layers=32, heads=32, kv_heads=8, model_type="mistral", sliding_window=4096)
LLAMA_2_13B = shape(layers=40, heads=40, kv_heads=40)
LLAMA_70B = shape(layers=80, heads=64, kv_heads=8)
LLAMA_3_8B = shape(layers=32, heads=32, kv_heads=8, torch_dtype="bfloat16")
# He et al. 2024, table 4: sequences of 2048 tokens in 16 bits.  Its GB are GiB (2**30 bytes), rounded to whole ones;
# four of its five rows are whole numbers by themselves.  The batch size of Llama-2-13B is not legible in the copy at
# hand.  At 32, as for the other large ones, there are 50 and 25 GiB; the table prints 52 and 26, as for a batch of 33.
TABLE_4 = {
    "Mistral-7B": (MISTRAL_7B, 64, 12, 16, 10),
    "Llama-2-13B": (LLAMA_2_13B, 32, 20, 50, 25),
    "Llama-2-70B": (LLAMA_70B, 32, 40, 20, 10),
    "Llama-3-8B": (LLAMA_3_8B, 64, 12, 16, 10),
    "Llama-3-70B": (LLAMA_70B, 32, 40, 20, 10),
}


@pytest.mark.parametrize(("config", "batch", "drops", "before", "after"), TABLE_4.values(), ids=TABLE_4)
def test_the_kv_table_of_the_paper(config, batch, drops, before, after):
    dropped = plan(config["num_hidden_layers"], attn=range(config["num_hidden_layers"] - drops, 80)[:drops])
    assert len(dropped.gone("attn")) == drops
    whole = kv_cache_bytes(config, gone=(), tokens=2048, sequences=batch)
    left = kv_cache_bytes(config, gone=dropped.gone("attn"), tokens=2048, sequences=batch)
    assert (whole / 2**30, left / 2**30) == (before, after)


def test_the_row_that_is_not_exact_is_within_four_percent_of_the_paper():
    for layers, printed in ((0, 52), (20, 26)):
        found = kv_cache_bytes(LLAMA_2_13B, gone=range(layers), tokens=2048, sequences=32) / 2**30
        assert found == pytest.approx(printed, rel=0.04)


CONFIGS = {"llama": LLAMA, "mistral": MISTRAL, **FAMILIES}
PLANS = {"the base": {}, "attention": {"attn": (0, 3)}, "a whole layer and a sublayer": {"attn": (1, 2), "mlp": (1, 0)}}


@pytest.mark.parametrize("drops", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text"])
def test_a_real_cache_holds_what_the_formula_says_before_and_behind_the_window(family, drops, tmp_path):
    """Full attention, sliding alone, and both in turn; by the base's config with a plan, and by the pruned config."""
    config = CONFIGS[family]
    tensors = random_tensors(config) if family in ("llama", "mistral") else family_tensors(config)
    base, made = write_base(tmp_path / "base", config, tensors), plan(config["num_hidden_layers"], **drops)
    folder = tmp_path / "pruned" if drops else tmp_path / "base"
    if drops:
        folder.mkdir()
        write_checkpoint(base, made, folder, advance=lambda _: None)
    own = read_config(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=True).eval()
    for tokens in (3, 7, 8, 30):  # the windows are of eight tokens
        with torch.inference_mode():
            cache = model(torch.full((2, tokens), 7), use_cache=True).past_key_values
        asked = {"tokens": tokens, "sequences": 2, "dtype": "bfloat16"}
        expected = kv_cache_bytes(config, gone=made.gone("attn"), **asked)
        assert held_bytes(cache) == expected > 0
        assert kv_cache_bytes(own, gone=read_structure(own).no_attn, **asked) == expected
