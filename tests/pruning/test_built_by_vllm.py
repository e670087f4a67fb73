"""What vLLM's backend for transformers finds when it builds a pruned model: an attention of every number, no others."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from bases import FAMILIES, LLAMA, MISTRAL

from hubprune.core import templates
from hubprune.core.architectures import ARCHITECTURES
from hubprune.core.config import block_configs

CONFIGS = {"llama": LLAMA, "mistral": MISTRAL, **FAMILIES}
WHOLE = {"dropped_attn_layers": [], "dropped_mlp_layers": []}


def code_of(family, folder, layout="pruned"):
    """The modeling file of a family as a module; transformers looks for it by its name."""
    path = folder / ARCHITECTURES[family].modeling_file(layout)
    path.write_text(templates.modeling_code(ARCHITECTURES[family], layout=layout))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config_of(tmp_path):
    """Make the config of a pruned model with random weights, and its decoder class."""
    codes = []

    def make(label, layout="pruned", **keys):
        config = {**CONFIGS[label], **keys}
        family = ARCHITECTURES[config["model_type"]]
        codes.append(code_of(family.model_type, tmp_path, layout))
        kept = {key: value for key, value in config.items() if key not in ("auto_map", "model_type")}
        made = getattr(codes[-1], f"Pruned{family.config_class}")(**kept)
        return made, getattr(codes[-1], f"Pruned{family.model_class}")

    yield make
    for code in codes:
        sys.modules.pop(code.__name__, None)


@pytest.fixture(autouse=True)
def attention_of_vllm():
    """An attention that transformers knows as vLLM's, and computes as its own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("vllm", sdpa_attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register("vllm", sdpa_mask)
    yield
    for known in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        type(known)._global_mapping.pop("vllm")


def running(monkeypatch, *, stages=1, method=None):
    """A vLLM that builds a model, with what it was started with."""
    speculative = SimpleNamespace(method=method) if method else None
    rooms = {
        "vllm": {},
        "vllm.config": {"get_current_vllm_config": lambda: SimpleNamespace(speculative_config=speculative)},
        "vllm.distributed": {"get_pp_group": lambda: SimpleNamespace(world_size=stages)},
    }
    for name, parts in rooms.items():
        module = ModuleType(name)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)


def as_vllm(config, model_class):
    """Build a decoder as vLLM does."""
    config._attn_implementation = "vllm"
    return model_class(config).eval()


def numbers(model):
    """Numbers of the attentions that call the interface."""
    return [layer.self_attn.layer_idx for layer in model.layers if list(layer.self_attn.parameters())]


DROPS = {
    "none": WHOLE,
    "no key": {},
    "middle": {**WHOLE, "dropped_attn_layers": [2]},
    "first": {**WHOLE, "dropped_attn_layers": [0]},
    "first and last": {**WHOLE, "dropped_attn_layers": [0, 4]},
    "MLPs": {"dropped_attn_layers": [], "dropped_mlp_layers": [1, 3]},
    "joint": {
        "dropped_attn_layers": [1, 4],
        "dropped_mlp_layers": [0, 4],
        "mlp_intermediate_sizes": [0, 48, 20, 48, 0],
    },
}


@pytest.mark.parametrize("keys", DROPS.values(), ids=DROPS)
@pytest.mark.parametrize("label", ["llama", "qwen2, sliding", "smollm3", "gemma3_text"])
def test_each_attention_that_is_left_has_a_number_of_those_that_vllm_is_told(monkeypatch, config_of, label, keys):
    running(monkeypatch)
    if label == "gemma3_text" and "mlp_intermediate_sizes" in keys:
        keys = {**keys, "mlp_intermediate_sizes": [*keys["mlp_intermediate_sizes"], 48]}
    config, model_class = config_of(label, **keys)
    kinds, layers = getattr(config, "layer_types", None), config.num_hidden_layers
    left = [layer for layer in range(layers) if layer not in keys.get("dropped_attn_layers", ())]
    for _ in range(3):  # vLLM builds twice, both times from what it has
        model = as_vllm(config, model_class)
        assert len(model.layers) == model.config.num_hidden_layers == layers
        assert numbers(model) == list(range(len(left))) == list(range(config.num_hidden_layers))
        if kinds:
            assert config.layer_types == [kinds[layer] for layer in left]
            slides = [model.layers[layer].self_attn.sliding_window is not None for layer in left]
            assert slides == [kind == "sliding_attention" for kind in config.layer_types]
    saved = config.to_dict()
    assert (saved["num_hidden_layers"], saved.get("layer_types")) == (layers, kinds), "what is saved is the whole"


@pytest.mark.parametrize("label", ["llama", "qwen3", "granite", "olmo2"])
def test_vllms_build_computes_what_transformers_computes(monkeypatch, config_of, label):
    running(monkeypatch)
    keys = {"dropped_attn_layers": [0, 4], "dropped_mlp_layers": [1], "mlp_intermediate_sizes": [48, 0, 48, 24, 48]}
    theirs, model_class = config_of(label, **keys)
    ours = type(theirs)(**config_of(label, **keys)[0].to_dict())
    torch.manual_seed(0)
    plain = model_class(ours).eval()
    built = as_vllm(theirs, model_class)
    built.load_state_dict(plain.state_dict())
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected, found = (model(tokens, use_cache=False).last_hidden_state for model in (plain, built))
    assert torch.equal(found, expected)


def test_the_layout_of_other_runtimes_is_built_in_the_same_way(monkeypatch, config_of):
    running(monkeypatch)
    heads = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    blocks = block_configs([48] * 5, frozenset({1, 3}), heads)
    config, model_class = config_of("llama", "nemotron-nas", block_configs=blocks)
    for _ in range(2):
        assert numbers(as_vllm(config, model_class)) == [0, 1, 2]
        assert config.num_hidden_layers == 3
    assert config.to_dict()["num_hidden_layers"] == 5


def test_pipeline_stages_are_refused_where_attentions_are_gone(monkeypatch, config_of):
    running(monkeypatch, stages=2)
    with pytest.raises(ValueError, match=r"pipeline stages.*tensor_parallel_size may be larger"):
        as_vllm(*config_of("llama", dropped_attn_layers=[1]))
    as_vllm(*config_of("llama", dropped_mlp_layers=[1]))


@pytest.mark.parametrize("method", ["eagle3", "dflash", "extract_hidden_states"])
def test_heads_that_read_between_the_layers_are_refused_where_attentions_are_gone(monkeypatch, config_of, method):
    running(monkeypatch, method=method)
    with pytest.raises(ValueError, match=f"method {method} .* ngram, a draft model or none"):
        as_vllm(*config_of("llama", dropped_attn_layers=[1]))
    as_vllm(*config_of("llama", dropped_mlp_layers=[1]))


@pytest.mark.parametrize("method", ["ngram", "draft_model", "eagle"])
def test_other_drafts_are_none_of_its_business(monkeypatch, config_of, method):
    running(monkeypatch, method=method)
    as_vllm(*config_of("llama", dropped_attn_layers=[1]))


def test_an_attention_that_is_only_called_like_vllms_needs_no_vllm(monkeypatch, config_of):
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert numbers(as_vllm(*config_of("llama", dropped_attn_layers=[1]))) == [0, 1, 2, 3]


def test_granite_says_its_scale_by_the_name_that_vllm_reads(config_of):
    config, _ = config_of("granite", dropped_attn_layers=[1])
    again = type(config)(**config.to_dict())
    assert config.logit_scale == again.logit_scale == 1 / FAMILIES["granite"]["logits_scaling"]
    assert "logit_scale" not in config.to_dict()
    assert not hasattr(config_of("llama")[0], "logit_scale")
