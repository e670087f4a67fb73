"""The published modeling file: the same for every repo of a family, free of surprises, and strict with its config."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bases import LLAMA, MISTRAL

from hubprune.core import templates
from hubprune.core.architectures import ARCHITECTURES
from hubprune.core.config import block_configs

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = sorted(ARCHITECTURES)
FILES = [(family, "pruned") for family in FAMILIES]
FILES += [(family, "nemotron-nas") for family in FAMILIES if ARCHITECTURES[family].nemotron_nas]
every_file = pytest.mark.parametrize(("family", "layout"), FILES)
SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 8}


@every_file
def test_the_modeling_file_is_the_golden_one(family, layout):
    text = templates.modeling_code(ARCHITECTURES[family], layout=layout, version="1.2.3")
    path = GOLDEN / f"{ARCHITECTURES[family].modeling_file(layout)}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), "UPDATE_GOLDEN=1 writes the golden files anew: read the difference"


@every_file
def test_the_modeling_file_imports_little_and_runs_nothing_at_large(tmp_path, family, layout):
    from transformers.dynamic_module_utils import get_imports

    text = templates.modeling_code(ARCHITECTURES[family], layout=layout)
    (tmp_path / "code.py").write_text(text)
    tree = ast.parse(text)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported == {"copy", "functools", "torch", "transformers", "vllm"}
    assert "vllm" not in get_imports(tmp_path / "code.py"), "transformers asks for it before it runs the file"
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"eval", "exec", "open", "compile", "__import__", "system", "load", "globals", "__builtins__"}


@every_file
def test_transformers_does_not_take_a_stand_in_for_an_attention(family, layout):
    code = templates.modeling_code(ARCHITECTURES[family], layout=layout)
    assert not re.search(r"class \w*Attention\w*\(nn\.Module\)", code)


@every_file
def test_the_modeling_file_overrides_no_forward_of_transformers(family, layout):
    tree = ast.parse(templates.modeling_code(ARCHITECTURES[family], layout=layout))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.startswith("Pruned")]
    assert {c.name for c in classes} == set(ARCHITECTURES[family].pruned_classes.values())
    assert {method.name for c in classes for method in c.body if isinstance(method, ast.FunctionDef)} <= {
        "__init__",
        "logit_scale",
        "to_dict",
    }


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_the_modeling_file_is_clean_for_ruff(tmp_path, command):
    for family, layout in FILES:
        path = tmp_path / ARCHITECTURES[family].modeling_file(layout)
        path.write_text(templates.modeling_code(ARCHITECTURES[family], layout=layout))
    ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "--line-length", "120", str(tmp_path)]
    done = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- what gets into the template ---------------------------------------------------------------------------------

NO_IDENTIFIERS = ["", "a b", "a.b", "a\nimport os", "a\n", "class", "é", "1a", "a;b", "a)", 5, None, True, b"a"]


@pytest.mark.parametrize("value", NO_IDENTIFIERS)
def test_only_identifiers_become_identifiers(value):
    with pytest.raises(ValueError, match="is no identifier"):
        templates.ident(value)


@pytest.mark.parametrize(
    "value", ['a"b', "a\\", "a b", "a\nb", True, None, 1.5, [1], {"a": 1}, ("a", 1.5), (("a b",),)]
)
def test_only_harmless_values_become_literals(value):
    with pytest.raises(ValueError):
        templates.py(value)


def test_literals_read_back_as_the_same_values():
    for value in (4, -1, "self_attn", (), ("a",), ("a", "b"), (4, 48), ("a", ("b",))):
        assert ast.literal_eval(templates.py(value)) == value


@pytest.mark.parametrize("version", ["1.0\nimport os", "1.0; x", "", "one", '1"""'])
def test_a_version_that_might_be_code_is_refused(version):
    with pytest.raises(ValueError):
        templates.modeling_code(ARCHITECTURES["llama"], version=version)


@pytest.mark.parametrize(
    "change",
    [
        {"class_prefix": "Llama):\n    pass\nimport os\nclass X("},
        {"model_type": "llama.x import y; import"},
        {"attn_module": 'self_attn"; import os; "'},
        {"mlp_module": "mlp\n"},
        {"attn_norms": ("a", 'b"')},
        {"mlp_norms": ("a b",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_table_entry_that_might_be_code_is_refused(change):
    with pytest.raises(ValueError):
        templates.modeling_code(replace(ARCHITECTURES["llama"], **change))


# ---- what its classes refuse -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The modeling files as modules, by family."""
    modules = {}
    for family in FAMILIES:
        path = tmp_path_factory.mktemp("code") / ARCHITECTURES[family].modeling_file("pruned")
        path.write_text(templates.modeling_code(ARCHITECTURES[family]))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        modules[family] = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = modules[family]
        spec.loader.exec_module(modules[family])
    yield modules
    for module in modules.values():
        del sys.modules[module.__name__]


def build(rendered, family="llama", **keys):
    """A pruned model with a few keys in its config."""
    prefix = ARCHITECTURES[family].class_prefix
    if "mlp_intermediate_sizes" in keys:  # it is never published without the other two
        keys = {"dropped_attn_layers": [], "dropped_mlp_layers": [], **keys}
    config = {**(LLAMA if family == "llama" else MISTRAL), **SMALL, **keys}
    made = getattr(rendered[family], f"Pruned{prefix}Config")(**{k: v for k, v in config.items() if k != "model_type"})
    return getattr(rendered[family], f"Pruned{prefix}ForCausalLM")(made)


BAD_KEYS = {
    "a key under another name": (
        {"dropped_attn_layer": [1], "dropped_attn_layers": None, "mlp_intermediate_sizes": [8] * 5},
        "dropped_attn_layers=None does not fit",
    ),
    "out of range": ({"dropped_attn_layers": [5]}, r"dropped_attn_layers=\[5\] does not fit num_hidden_layers=5"),
    "negative": ({"dropped_attn_layers": [-1]}, r"dropped_attn_layers=\[-1\] does not fit"),
    "bool": ({"dropped_mlp_layers": [True]}, r"dropped_mlp_layers=\[True\] does not fit"),
    "strings": ({"dropped_mlp_layers": ["1"]}, r"dropped_mlp_layers=\['1'\] does not fit"),
    "float": ({"dropped_attn_layers": [1.0]}, r"dropped_attn_layers=\[1.0\] does not fit"),
    "text": ({"dropped_attn_layers": "13"}, "dropped_attn_layers='13' does not fit"),
    "number": ({"dropped_attn_layers": 3}, "dropped_attn_layers=3 does not fit"),
    "zero": ({"dropped_attn_layers": 0}, "dropped_attn_layers=0 does not fit"),
    "mapping": ({"dropped_attn_layers": {"1": 2}}, "dropped_attn_layers=.* does not fit"),
    "all attentions": ({"dropped_attn_layers": [0, 1, 2, 3, 4]}, "leaves no attention of some kind"),
    "too few widths": ({"mlp_intermediate_sizes": [8, 8]}, r"mlp_intermediate_sizes=\[8, 8\] does not fit"),
    "widths and drops": (
        {"mlp_intermediate_sizes": [8] * 5, "dropped_mlp_layers": [1]},
        "mlp_intermediate_sizes=.* does not fit the layers and their drops",
    ),
    "width 0 of a kept MLP": ({"mlp_intermediate_sizes": [0, 8, 8, 8, 8]}, "mlp_intermediate_sizes=.* does not fit"),
    "negative width": ({"mlp_intermediate_sizes": [-8, 8, 8, 8, 8]}, "mlp_intermediate_sizes=.* does not fit"),
    "one width": ({"mlp_intermediate_sizes": 8}, "mlp_intermediate_sizes=8 does not fit"),
    "widths under another name": (
        {"mlp_sizes": [8] * 5, "mlp_intermediate_sizes": None, "intermediate_size": None},
        "mlp_intermediate_sizes=None is no list of MLP widths",
    ),
    "widths in words": (
        {"mlp_intermediate_sizes": ["8"] * 5, "intermediate_size": None},
        "mlp_intermediate_sizes=.* is no list of MLP widths",
    ),
}


@pytest.mark.parametrize(("keys", "message"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_keys_that_do_not_fit_are_refused_with_their_value(rendered, keys, message):
    with pytest.raises(ValueError, match=message):
        build(rendered, **keys)


@pytest.mark.parametrize(
    "keys", [{}, {"dropped_attn_layers": None}, {"dropped_attn_layers": [], "dropped_mlp_layers": []}]
)
def test_without_drops_it_is_the_stock_model(rendered, keys):
    from transformers import LlamaConfig, LlamaForCausalLM

    stock = LlamaForCausalLM(LlamaConfig(**{**LLAMA, **SMALL}))
    assert build(rendered, **keys).state_dict().keys() == stock.state_dict().keys()


def test_dropped_sublayers_have_no_parameters_and_widths_follow_the_config(rendered):
    model = build(rendered, dropped_attn_layers=[0], dropped_mlp_layers=[1], mlp_intermediate_sizes=[8, 0, 3, 8, 8])
    names = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert not [n for n in names if n.startswith(("model.layers.0.self_attn", "model.layers.0.input_layernorm"))]
    assert not [n for n in names if n.startswith(("model.layers.1.mlp", "model.layers.1.post_attention_layernorm"))]
    assert names["model.layers.2.mlp.down_proj.weight"] == (8, 3)
    assert names["model.layers.3.mlp.down_proj.weight"] == (8, 8)


def test_a_kind_of_attention_must_not_vanish(rendered):
    kinds = ["full_attention"] * 2 + ["sliding_attention"] * 3
    model = build(rendered, "mistral", dropped_attn_layers=[0])
    layers = model.model.layers
    for layer, kind in zip(layers, kinds, strict=True):
        layer.self_attn.sliding_window = 8 if kind == "sliding_attention" else None
    with pytest.raises(ValueError, match="leaves no attention of some kind"):
        rendered["mistral"].cache_slots(layers, {0, 1})
    # Each kind fills the first slots of its own kind.
    assert rendered["mistral"].cache_slots(layers, {0, 2}) == {1: 0, 3: 2, 4: 3}


def stock_layers(rendered, **keys):
    """A stock Mistral as the file finds it, before anything is replaced, and its config."""
    from transformers import MistralConfig, MistralModel

    config = MistralConfig(**{**MISTRAL, **SMALL})
    model = MistralModel(config)
    for name, values in keys.items():
        setattr(config, name, values)
    return model, config


def _plain_norm(layer):
    del layer.input_layernorm
    layer.input_layernorm = len


LATER = {
    "attentions are not numbered": (lambda layer: delattr(layer.self_attn, "layer_idx"), "no self_attn.layer_idx of 1"),
    "attentions are numbered otherwise": (lambda layer: setattr(layer.self_attn, "layer_idx", 2), "layer_idx of 1"),
    "the MLP has another name": (lambda layer: delattr(layer, "mlp"), "layer 1 has no mlp"),
    "a norm has another name": (lambda layer: delattr(layer, "input_layernorm"), "no input_layernorm"),
    "a norm is no module": (_plain_norm, "no input_layernorm"),
}


@pytest.mark.parametrize(("change", "message"), LATER.values(), ids=LATER)
def test_a_later_transformers_that_builds_its_layers_otherwise_gets_no_model(rendered, change, message):
    model, config = stock_layers(rendered)
    rendered["mistral"].check_layers(model, config)
    change(model.layers[1])
    with pytest.raises(ImportError, match=message) as caught:
        rendered["mistral"].check_layers(model, config)
    assert "newer revision of this repo" in str(caught.value)


def test_layers_that_do_not_tell_their_kind_get_no_model(rendered):
    kinds = ["full_attention"] * 2 + ["sliding_attention"] * 3
    model, config = stock_layers(rendered, layer_types=kinds)
    with pytest.raises(ImportError, match=r"layer 2 has no self_attn\.sliding_window as config.json has it"):
        rendered["mistral"].check_layers(model, config)


@pytest.mark.parametrize("name", ["past_key_values", "cache", "whatever_comes_next"])
def test_the_cache_is_trimmed_whatever_it_is_called(rendered, name):
    from transformers import DynamicCache, MistralConfig

    cache, config = DynamicCache(config=MistralConfig(**{**MISTRAL, **SMALL})), [DynamicCache]
    rendered["mistral"].trim_cache(None, (config,), {name: cache, "use_cache": True, "other": [1, 2, 3]}, {0, 2})
    assert len(cache.layers) == 3
    again = DynamicCache(config=MistralConfig(**{**MISTRAL, **SMALL}))
    rendered["mistral"].trim_cache(None, (None, again), {}, {0})
    assert len(again.layers) == 1


@every_file
def test_an_old_transformers_is_refused_with_the_version_it_takes(family, layout, monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "__version__", "4.45.2")
    # It does not know every family, which must not be what its user is told.
    monkeypatch.setitem(sys.modules, f"transformers.models.{ARCHITECTURES[family].module}", None)
    code = compile(templates.modeling_code(ARCHITECTURES[family], layout=layout), "modeling_pruned.py", "exec")
    floor = ".".join(map(str, ARCHITECTURES[family].floor))
    with pytest.raises(ImportError, match=rf"needs transformers>={floor}, found 4\.45\.2"):
        exec(code, {"__name__": "m"})


def test_the_file_does_not_depend_on_any_base():
    texts = {templates.modeling_code(ARCHITECTURES["llama"]) for _ in range(2)}
    assert len(texts) == 1
    assert json.dumps(LLAMA["vocab_size"]) not in texts.pop().split("FLOOR")[1]


# ---- the config class of the nemotron-nas layout -----------------------------------------------------------------

HEADS = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
GIVEN = {**HEADS, "num_hidden_layers": 3, "rope_theta": 5000.0, "vocab_size": 8}


@pytest.fixture(scope="module")
def nas_config(tmp_path_factory):
    """The config class of Llama in the nemotron-nas layout."""
    path = tmp_path_factory.mktemp("nas") / ARCHITECTURES["llama"].modeling_file("nemotron-nas")
    path.write_text(templates.modeling_code(ARCHITECTURES["llama"], layout="nemotron-nas"))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
        yield module.PrunedLlamaConfig


def blocks():
    """Three layers: without attention, with half as many neurons, without MLP."""
    return block_configs([48, 24, 0], frozenset({0}), HEADS)


def test_block_configs_are_read_as_attributes_and_written_as_json(nas_config):
    config = nas_config(**GIVEN, block_configs=blocks())
    first, second, third = config.block_configs
    assert (first.attention.no_op, first.ffn.no_op, second.attention.n_heads_in_group) == (True, False, 2)
    assert (third.ffn.no_op, third.ffn.ffn_mult) == (True, None)
    with pytest.raises(AttributeError, match="window"):
        _ = first.ffn.window
    assert json.loads(config.to_json_string())["block_configs"] == blocks()
    assert (config.dropped_attn_layers, config.dropped_mlp_layers) == ([0], [2])
    assert config.mlp_intermediate_sizes == [48, 24, 0]


def test_what_other_runtimes_look_for_is_written_again(nas_config):
    values = nas_config(**GIVEN, block_configs=blocks()).to_dict()
    assert (values["rope_theta"], values["rope_scaling"]) == (5000.0, None)
    assert values["architectures"] == ["DeciLMForCausalLM"]
    assert values["model_type"] == "nemotron-nas"
    assert not {"dropped_attn_layers", "dropped_mlp_layers", "mlp_intermediate_sizes"} & set(values)
    again = nas_config(**json.loads(json.dumps(values)))
    assert again.to_dict() == values


def test_block_configs_that_do_not_fit_the_layers_are_refused(nas_config):
    with pytest.raises(ValueError, match=r"2 block_configs for num_hidden_layers=3"):
        nas_config(**GIVEN, block_configs=blocks()[:2])


BAD_PARTS = {
    "a linear attention": ("attention", {"replace_with_linear": True}),
    "a linear MLP": ("ffn", {"replace_with_linear": True}),
    "heads in other groups": ("attention", {"n_heads_in_group": 4}),
    "a window": ("attention", {"window_length": 4}),
    "a key under another name": ("attention", {"no_op": None, "noop": False}),
    "text that would count as true": ("ffn", {"no_op": "false"}),
    "no width": ("ffn", {"ffn_mult": None}),
    "a width in words": ("ffn", {"ffn_mult": "3"}),
    "a width without end": ("ffn", {"ffn_mult": 1e308}),
}


@pytest.mark.parametrize(("part", "values"), BAD_PARTS.values(), ids=BAD_PARTS)
def test_a_part_that_is_not_llama_s_is_refused_with_its_place(nas_config, part, values):
    changed = blocks()
    changed[1][part].update(values)
    with pytest.raises(ValueError, match=rf"config.json: block_configs\[1\].{part}=.* is neither Llama's nor absent"):
        nas_config(**GIVEN, block_configs=changed)


@pytest.mark.parametrize("part", ["attention", "ffn"])
def test_a_part_that_is_missing_is_refused(nas_config, part):
    changed = blocks()
    changed[2]["other"] = changed[2].pop(part)
    with pytest.raises(ValueError, match=rf"block_configs\[2\].{part}=None is neither"):
        nas_config(**GIVEN, block_configs=changed)


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_hidden_layers"])
def test_a_number_without_which_blocks_say_nothing_is_asked_for(nas_config, key):
    given = {name: value for name, value in GIVEN.items() if name != key}
    with pytest.raises(ValueError, match=f"config.json has no {key}"):
        nas_config(**given, block_configs=blocks())


@pytest.mark.parametrize("given", [{"blocks": []}, {"block_configs": None}, {"block_configs": []}])
def test_a_published_config_without_its_blocks_is_refused(nas_config, given):
    with pytest.raises(ValueError, match=r"config.json: .*block_configs.* for num_hidden_layers=3"):
        nas_config(**GIVEN, intermediate_size=None, **given)


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_a_rope_base_beside_its_scaling_is_written_again_where_others_look(nas_config, kind):
    scaling = {"rope_type": kind, "factor": 2.0}
    values = nas_config(**GIVEN, rope_scaling=scaling, block_configs=blocks()).to_dict()
    assert values["rope_theta"] == 5000.0
    assert scaling.items() <= values["rope_scaling"].items()
    again = nas_config(**json.loads(json.dumps(values)))
    assert again.to_dict() == values
