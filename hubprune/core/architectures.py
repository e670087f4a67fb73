"""Table of supported families: tensor names, norms, and the values of the modeling template.

A new family is one entry in `ARCHITECTURES`; beside it, only tokenizer files and the GGUF
export name families.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hubprune.core.errors import UnsupportedArchitectureError

if TYPE_CHECKING:
    from hubprune.core.artifacts import Layout, SublayerKind

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of attention, as `layer_types` in config.json spells them."""
LIST_OF_KINDS = "layer_types"
MISTRAL_WINDOW = 4096
"""Tokens; what MistralConfig takes where config.json has no `sliding_window`."""

Rule = Callable[[Mapping[str, Any]], list[Any]]
"""Computes from a config.json the per-layer list that transformers takes where it has none."""


def _list_in(config: Mapping[str, Any], key: str) -> list[Any] | None:
    """Return a per-layer list of a config.json, or None where it has none that fits its layers."""
    values = config.get(key)
    return values if isinstance(values, list) and len(values) == config["num_hidden_layers"] else None


# ---- per-layer lists that transformers computes ------------------------------------------------------------------


def _of_one_kind(config: Mapping[str, Any]) -> list[str]:
    """Return one kind for all layers: sliding where the config has a window."""
    return [SLIDING if config.get("sliding_window") else FULL] * int(config["num_hidden_layers"])


def _sliding_unless_null(config: Mapping[str, Any]) -> list[str]:
    """MistralConfig: sliding by default; only a window that is written as null is none."""
    return _of_one_kind({"sliding_window": MISTRAL_WINDOW, **config})


def _sliding_from_a_layer_on(config: Mapping[str, Any]) -> list[str]:
    """Qwen2Config and Qwen3Config: sliding from `max_window_layers` on, where sliding is in use at all."""
    first = config.get("max_window_layers", 28)
    used = config.get("use_sliding_window") and config.get("sliding_window", 4096) is not None
    return [SLIDING if used and layer >= first else FULL for layer in range(config["num_hidden_layers"])]


def _every_second_full(config: Mapping[str, Any]) -> list[str]:
    """Gemma2Config: sliding and full in turn."""
    return [FULL if layer % 2 else SLIDING for layer in range(config["num_hidden_layers"])]


def _last_of_a_pattern_full(config: Mapping[str, Any]) -> list[str]:
    """Gemma3TextConfig: one full attention behind every five sliding ones, or as many as the pattern says."""
    pattern = config.get("sliding_window_pattern", 6)
    return [SLIDING if (layer + 1) % pattern else FULL for layer in range(config["num_hidden_layers"])]


def _with_rope(config: Mapping[str, Any]) -> list[int]:
    """SmolLM3Config: 0 for every layer without rotary embedding, each fourth one by default."""
    interval = config.get("no_rope_layer_interval", 4)
    return [int((layer + 1) % interval != 0) for layer in range(config["num_hidden_layers"])]


def _sliding_without_rope(config: Mapping[str, Any]) -> list[str]:
    """SmolLM3Config: the layers without rotary embedding slide, where sliding is in use at all."""
    used = config.get("use_sliding_window") and config.get("sliding_window") is not None
    rope = _list_in(config, "no_rope_layers") or _with_rope(config)
    return [SLIDING if used and not rope[layer] else FULL for layer in range(config["num_hidden_layers"])]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What hubprune has to know about one family of decoder-only models."""

    model_type: str
    """`model_type` in the base's config.json."""
    class_prefix: str
    """Prefix of the classes in transformers: `Llama` for LlamaConfig, LlamaModel and LlamaForCausalLM."""
    causal_lm_prefix: str | None = None
    """Prefix of the ForCausalLM class, where it has another than the other two."""
    tasks: tuple[str, ...] = ("SequenceClassification", "TokenClassification")
    """Heads beside that of a language model that every transformers from `floor` on has for the family."""
    transformers_module: str | None = None
    """Module in `transformers.models`, where it is not named as the `model_type`."""
    floor: tuple[int, int] = (4, 48)
    """Oldest transformers that runs the modeling file: the first to know the family, or to number its layers as the
    file needs it.  Before 4.48 no attention accepts the stand-ins: 4.45 wants three values from it."""
    attn_module: str = "self_attn"
    """Name of the attention module inside a decoder layer."""
    mlp_module: str = "mlp"
    """Name of the MLP module inside a decoder layer."""
    attn_norms: tuple[str, ...] = ("input_layernorm",)
    """Norms that belong to the attention sublayer and go with it, before or after it."""
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    """Norms that belong to the MLP sublayer and go with it, before or after it."""
    mlp_entry: str = "post_attention_layernorm"
    """Module that is handed the residual stream between the sublayers: the norm before the MLP, or the MLP itself."""
    attn_output: str = "self_attn.o_proj.weight"
    """Projection that writes the attention's result into the residual stream; zero here bypasses the sublayer."""
    mlp_output: str = "mlp.down_proj.weight"
    """Projection that writes the MLP's result into the residual stream."""
    mlp_gate: str = "mlp.gate_proj.weight"
    """Projection of the MLP that is activated; a neuron is one of its rows."""
    mlp_up: str = "mlp.up_proj.weight"
    """Projection of the MLP that is multiplied with the activated one, row by row."""
    residual_multiplier: str | None = None
    """Attribute of a decoder layer that what its sublayers return is multiplied by, where the family has one."""
    logits_divisor: str | None = None
    """Key of config.json that logits are divided by, where the family has one."""
    layers_prefix: str = "model.layers."
    """Prefix of the tensor names of decoder layers."""
    embedding: str = "model.embed_tokens.weight"
    """Name of the input embedding tensor."""
    head: str = "lm_head.weight"
    """Name of the output head tensor; absent where it is tied to the embedding."""
    computed: tuple[str, ...] = ("self_attn.rotary_emb.inv_freq",)
    """Tensors inside a decoder layer that old checkpoints store and transformers computes: no parameters."""
    per_layer_lists: Mapping[str, Rule] = field(default_factory=lambda: {LIST_OF_KINDS: _of_one_kind})
    """Keys of config.json that hold one value per layer, each with what transformers takes where the key is absent."""
    lists_floor: tuple[int, int] | None = None
    """Oldest transformers that reads `layer_types`, where older ones know the family and go by the layer's number."""
    local_rope_base: str | None = None
    """Key of config.json that gives transformers 4 the rope base of sliding attentions, where that is their own."""
    scaling_keys: tuple[str, ...] = ()
    """Keys of `rope_scaling` beside `type`, where transformers 4 takes no others."""
    fused_gate_up: str | None = None
    """Tensor, inside a decoder layer, that holds the MLP's gate above its up projection, where they are one."""
    nemotron_nas: bool = False
    """Whether the layers are Llama's, so that the nemotron-nas layout can describe a pruned one."""

    @property
    def pruned_model_type(self) -> str:
        """`model_type` of a published repo that needs the modeling file."""
        return f"pruned_{self.model_type}"

    @property
    def module(self) -> str:
        """Name of the module in `transformers.models`."""
        return self.transformers_module or self.model_type

    @property
    def config_class(self) -> str:
        """Name of the config class in transformers."""
        return f"{self.class_prefix}Config"

    @property
    def model_class(self) -> str:
        """Name of the class of the decoder in transformers."""
        return f"{self.class_prefix}Model"

    @property
    def causal_lm_class(self) -> str:
        """Name of the class with a head in transformers."""
        return f"{self.causal_lm_prefix or self.class_prefix}ForCausalLM"

    @property
    def pruned_class(self) -> str:
        """Name of the class with a head that the modeling file defines."""
        return f"Pruned{self.causal_lm_class}"

    @property
    def pruned_classes(self) -> Mapping[str, str]:
        """Auto class of transformers -> the class of the modeling file that it loads."""
        heads = {f"AutoModelFor{task}": f"Pruned{self.class_prefix}For{task}" for task in self.tasks}
        return {
            "AutoConfig": f"Pruned{self.config_class}", "AutoModel": f"Pruned{self.model_class}",
            "AutoModelForCausalLM": self.pruned_class, **heads,
        }  # fmt: skip

    def modeling_file(self, layout: Layout) -> str:
        """File name of the published modeling file of a layout that needs one."""
        return f"modeling_pruned_{self.model_type}{'_nas' if layout == 'nemotron-nas' else ''}.py"

    def is_parameter(self, tensor: str) -> bool:
        """Tell whether a tensor of a checkpoint is a parameter of the model."""
        return not (tensor.startswith(self.layers_prefix) and tensor.endswith(self.computed))

    @property
    def parts(self) -> Mapping[SublayerKind, tuple[str, ...]]:
        """Kind of a sublayer -> names, inside a decoder layer, of everything that goes with it."""
        return {"attn": (self.attn_module, *self.attn_norms), "mlp": (self.mlp_module, *self.mlp_norms)}

    def lists_of(self, config: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return the per-layer lists of a config.json, written there or not: key -> one value per layer."""
        return {key: _list_in(config, key) or rule(config) for key, rule in self.per_layer_lists.items()}

    def cut_lists(self, config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, list[Any]]:
        """Return the per-layer lists that config.json needs when only some layers are kept.

        A list that is not written is left out where transformers comes to the same values by itself.
        """
        fewer = {**config, "num_hidden_layers": len(kept)}
        cut = {key: [values[layer] for layer in kept] for key, values in self.lists_of(config).items()}
        rules = self.per_layer_lists
        return {key: values for key, values in cut.items() if _list_in(config, key) or rules[key](fewer) != values}

    def attention_kinds(self, config: Mapping[str, Any]) -> list[str]:
        """Return the kind of every layer's attention: one of "full_attention" and "sliding_attention" per layer."""
        return self.lists_of(config)[LIST_OF_KINDS]

    def mixes_up_kinds(self, config: Mapping[str, Any], kept: Sequence[int]) -> bool:
        """Tell whether a transformers older than `lists_floor` would mix up the kinds of the layers that are kept."""
        kinds, fewer = self.attention_kinds(config), {**config, "num_hidden_layers": len(kept)}
        removed = len(kept) < len(kinds) and self.lists_floor is not None
        return removed and self.per_layer_lists[LIST_OF_KINDS](fewer) != [kinds[layer] for layer in kept]


ARCHITECTURES: Mapping[str, Architecture] = {
    entry.model_type: entry
    for entry in (
        Architecture(model_type="llama", class_prefix="Llama", nemotron_nas=True),
        Architecture(
            model_type="mistral", class_prefix="Mistral", nemotron_nas=True,
            per_layer_lists={LIST_OF_KINDS: _sliding_unless_null},
        ),
        Architecture(
            model_type="qwen2", class_prefix="Qwen2", lists_floor=(4, 53),
            per_layer_lists={LIST_OF_KINDS: _sliding_from_a_layer_on},
        ),
        Architecture(
            model_type="qwen3", class_prefix="Qwen3", floor=(4, 51), lists_floor=(4, 53),
            per_layer_lists={LIST_OF_KINDS: _sliding_from_a_layer_on},
        ),
        Architecture(
            model_type="smollm3", class_prefix="SmolLM3", floor=(4, 53),
            per_layer_lists={LIST_OF_KINDS: _sliding_without_rope, "no_rope_layers": _with_rope},
        ),
        Architecture(
            model_type="granite", class_prefix="Granite", tasks=(),
            residual_multiplier="residual_multiplier", logits_divisor="logits_scaling",
        ),
        Architecture(
            model_type="phi3", class_prefix="Phi3",
            scaling_keys=("long_factor", "short_factor"), fused_gate_up="mlp.gate_up_proj.weight",
        ),
        Architecture(
            model_type="olmo2", class_prefix="Olmo2", tasks=(),
            attn_norms=("post_attention_layernorm",), mlp_norms=("post_feedforward_layernorm",), mlp_entry="mlp",
        ),
        Architecture(
            model_type="gemma2", class_prefix="Gemma2", floor=(4, 53), lists_floor=(4, 53),
            attn_norms=("input_layernorm", "post_attention_layernorm"),
            mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
            mlp_entry="pre_feedforward_layernorm",
            per_layer_lists={LIST_OF_KINDS: _every_second_full},
        ),
        Architecture(
            model_type="gemma3_text", class_prefix="Gemma3Text", causal_lm_prefix="Gemma3", tasks=(),
            transformers_module="gemma3", floor=(4, 53), lists_floor=(4, 53),
            attn_norms=("input_layernorm", "post_attention_layernorm"),
            mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
            mlp_entry="pre_feedforward_layernorm",
            per_layer_lists={LIST_OF_KINDS: _last_of_a_pattern_full},
            local_rope_base="rope_local_base_freq",
        ),
    )
}  # fmt: skip
NEMOTRON_NAS = "nemotron-nas"
NEMOTRON_NAS_CODE = re.compile(r"modeling_pruned_(?P<family>\w+)_nas\.\w+", re.ASCII)


def architecture_of(config: Mapping[str, Any], *, name: str = "the base") -> Architecture:
    """Return the family of a checkpoint, pruned or not, from its config.json; `name` stands in error messages.

    Raises:
        UnsupportedArchitectureError: the `model_type` has no entry; the message lists those that have.
    """
    model_type, auto_map = config.get("model_type"), config.get("auto_map")
    family = str(model_type).removeprefix("pruned_")
    if model_type == NEMOTRON_NAS and isinstance(auto_map, Mapping):  # of which family, only the code's name says
        code = NEMOTRON_NAS_CODE.fullmatch(str(auto_map.get("AutoConfig")))
        family = code["family"] if code else family
    found = ARCHITECTURES.get(family)
    if found is None:
        text = "A model with a `text_config` has other inputs too: its text part needs a repo of its own. "
        raise UnsupportedArchitectureError(
            f"{name} has model_type {model_type!r}, which hubprune does not support.",
            hint=f"{text if 'text_config' in config else ''}Supported: {', '.join(sorted(ARCHITECTURES))}.",
        )
    return found
