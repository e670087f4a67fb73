"""A checkpoint's config.json: what has to stand there, which sublayers it tells of, and the one that is published.

stock          `model_type` of the family: every layer has both sublayers, all MLPs are equally wide
pruned         `pruned_<family>`: `dropped_attn_layers`, `dropped_mlp_layers`, `mlp_intermediate_sizes`
nemotron-nas   `block_configs`, one entry per layer with what its attention and its MLP are

What is published is the base's own JSON with a few keys changed.  It never goes through a transformers config: version
5 writes only `rope_parameters`, and a 4.x that reads it back runs silently with the default rope base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune.core import __version__
from hubprune.core.architectures import FULL, NEMOTRON_NAS, SLIDING, Architecture, architecture_of
from hubprune.core.artifacts import BaseCheckpoint, DropPlan, Layout, SublayerKind
from hubprune.core.errors import CheckpointError, UnsupportedArchitectureError, UnsupportedFormatError
from hubprune.core.strict import parse_json

CONFIG_NAME = "config.json"
READS_POSITIONS = ("llama3", "yarn", "longrope")
"""Kinds of rope scaling whose defaults depend on `max_position_embeddings`."""
DEFAULT_ROPE_BASE = 10_000.0
"""What LlamaConfig and MistralConfig take where config.json names none."""
NOT_CARRIED = {
    "_attn_implementation", "_attn_implementation_internal", "_name_or_path", "attn_implementation", "auto_map",
    "block_configs", "dropped_attn_layers", "dropped_mlp_layers", "hubprune", "mlp_intermediate_sizes", "model_file",
}  # fmt: skip
"""Keys of a base's config.json that say nothing about the result: its path, what was dropped before, its code.

A `model_file` is code that mlx-lm runs, an `attn_implementation` may name a repo whose kernels transformers runs.
"""
MAX_LAYERS = 4096
"""More than any model has: what is computed per layer should not fill the memory first."""
NEEDED_NUMBERS = ("num_hidden_layers", "hidden_size", "num_attention_heads")
OTHER_NUMBERS = (
    "head_dim", "intermediate_size", "max_position_embeddings", "no_rope_layer_interval", "num_key_value_heads",
    "sliding_window_pattern",
)  # fmt: skip
NEMOTRON_NAS_CLASS = "DeciLMForCausalLM"
"""The class that vLLM, SGLang and llama.cpp look for; transformers loads ours, by `auto_map`."""
OTHER_HEADS = ("Classification", "QuestionAnswering")
"""How the names of classes end that say nothing of the next token."""
LARGEST_FFN_MULT = 2**20
"""No MLP is so much wider than the residual stream; more would overflow."""


def read_config(folder: Path, *, quantized: bool = False) -> dict[str, Any]:
    """Read a folder's config.json; its weights may be quantized where that is said.

    Raises:
        CheckpointError: it is missing, no JSON object, or has no usable number of layers.
    """
    path = folder / CONFIG_NAME
    try:
        config = parse_json(path.read_bytes(), where=str(path))
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    check_config(config, where=str(path), quantized=quantized)
    return config


def check_config(config: Mapping[str, Any], *, where: str, quantized: bool = False) -> None:
    """Check the values that everything else relies on; the weights may be quantized where that is said.

    Raises:
        CheckpointError: one is missing or of another type.
        UnsupportedFormatError: the weights are quantized, or have another head than that of a language model.
    """
    given = {key: value for key, value in config.items() if value is not None}
    for key in (*NEEDED_NUMBERS, *(key for key in OTHER_NUMBERS if key in given)):
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{where} has {key}={value!r:.60}, which is no positive number.")
    if config["num_hidden_layers"] > MAX_LAYERS:
        raise CheckpointError(f"{where} has num_hidden_layers={config['num_hidden_layers']}, more than {MAX_LAYERS}.")
    kinds = given.get("layer_types", [])
    fits = {
        "layer_types": isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds),
        **{key: isinstance(given.get(key, {}), dict) for key in ("rope_parameters", "rope_scaling")},
        **{key: type(given.get(key, 0)) is int for key in ("max_window_layers", "sliding_window")},
    }
    if wrong := [key for key, fit in fits.items() if not fit]:
        raise CheckpointError(f"{where} has {wrong[0]}={given[wrong[0]]!r:.60}, which is of the wrong type.")
    pad, vocabulary = given.get("pad_token_id"), given.get("vocab_size")
    if type(pad) is int and type(vocabulary) is int and not -vocabulary <= pad < vocabulary:
        raise CheckpointError(
            f"{where} has pad_token_id={pad}, and vocab_size={vocabulary}: there is no such token.",
            hint="Set pad_token_id to null in config.json, where no token is for padding.",
        )
    named = given.get("architectures", [])
    other_head = [name for name in named if str(name).endswith(OTHER_HEADS)] if isinstance(named, list) else []
    if other_head:
        raise UnsupportedFormatError(
            f"{where} says that the model is a {other_head[0]:.60}, whose head is not that of a language model.",
            hint="Prune the language model, then train the head on it: AutoModelForSequenceClassification loads it.",
        )
    if (told := given.get("quantization_config")) is not None and not quantized:
        method = told.get("quant_method") if isinstance(told, Mapping) else told
        raise UnsupportedFormatError(
            f"{where} says that the weights are quantized ({method or 'unknown method'!s:.60}).",
            hint="Prune the unquantized base; then `hubprune quantize` the result.",
        )


# ---- which sublayers it tells of -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The sublayers of a checkpoint, in the layer numbers of its own config.json."""

    architecture: Architecture
    layout: Layout
    num_hidden_layers: int
    no_attn: frozenset[int] = frozenset()
    """Layers without attention."""
    no_mlp: frozenset[int] = frozenset()
    """Layers without MLP."""
    mlp_widths: tuple[int, ...]
    """Neurons of every layer's MLP, 0 where it has none."""

    @property
    def absences(self) -> tuple[tuple[SublayerKind, int], ...]:
        """Kind and layer of every sublayer that is not there, in a fixed order."""
        return (*(("attn", i) for i in sorted(self.no_attn)), *(("mlp", i) for i in sorted(self.no_mlp)))

    def without(self, plan: DropPlan) -> Structure:
        """The structure that a plan for this checkpoint leaves, in the layer numbers that it gives."""
        kept = sorted(plan.published_numbers)
        no_mlp = frozenset(plan.published_layers("mlp"))
        widths = plan.widths.kept if plan.widths else self.mlp_widths
        return Structure(
            architecture=self.architecture, layout=plan.layout, num_hidden_layers=len(kept),
            no_attn=frozenset(plan.published_layers("attn")), no_mlp=no_mlp,
            mlp_widths=tuple(0 if new in no_mlp else widths[old] for new, old in enumerate(kept)),
        )  # fmt: skip


def read_structure(config: Mapping[str, Any], *, name: str = "the checkpoint") -> Structure:
    """Read which sublayers a checkpoint has from its config.json; `name` stands in error messages.

    Raises:
        UnsupportedArchitectureError: hubprune does not know its family, or its layout has parts that hubprune never
            writes.
        CheckpointError: a key does not fit the others.
    """
    architecture, model_type = architecture_of(config, name=name), config.get("model_type")
    if model_type == NEMOTRON_NAS:
        return _of_block_configs(config, architecture, name)
    layers, width = config["num_hidden_layers"], config.get("intermediate_size")
    if width is None and (model_type == architecture.model_type or config.get("mlp_intermediate_sizes") is None):
        raise CheckpointError(f"config.json of {name} has no intermediate_size.")
    if model_type == architecture.model_type:
        return Structure(
            architecture=architecture, layout="stock", num_hidden_layers=layers, mlp_widths=(width,) * layers
        )
    no_attn, no_mlp = (_layers(config, f"dropped_{kind}_layers", layers, name) for kind in ("attn", "mlp"))
    widths = config.get("mlp_intermediate_sizes")
    if not isinstance(widths, list):
        widths = [0 if i in no_mlp else width for i in range(layers)] if widths is None else []
    fits = len(widths) == layers and all(type(width) is int and width >= 0 for width in widths)
    if not fits or {layer for layer, width in enumerate(widths) if not width} != no_mlp:
        raise CheckpointError(f"config.json of {name}: mlp_intermediate_sizes does not fit the layers and their drops.")
    return Structure(
        architecture=architecture, layout="pruned", num_hidden_layers=layers, no_attn=no_attn, no_mlp=no_mlp,
        mlp_widths=tuple(widths),
    )  # fmt: skip


def _layers(config: Mapping[str, Any], key: str, num_hidden_layers: int, name: str) -> frozenset[int]:
    listed = config.get(key)
    if listed is None and config.get("mlp_intermediate_sizes") is None:  # as the modeling file reads it
        return frozenset()
    if not isinstance(listed, list) or not all(type(i) is int and 0 <= i < num_hidden_layers for i in listed):
        raise CheckpointError(
            f"config.json of {name}: {key}={listed!r} does not fit num_hidden_layers={num_hidden_layers}."
        )
    return frozenset(listed)


def _of_block_configs(config: Mapping[str, Any], architecture: Architecture, name: str) -> Structure:
    blocks, layers, heads = config.get("block_configs"), config["num_hidden_layers"], config["num_attention_heads"]
    if not isinstance(blocks, list) or len(blocks) != layers:
        raise CheckpointError(f"config.json of {name}: block_configs does not hold {layers} entries.")
    foreign = UnsupportedArchitectureError(
        f"{name} has block_configs with parts that are neither Llama's nor absent.",
        hint="Only nemotron-nas repos that hubprune wrote can be read.",
    )
    group, no_attn, widths = heads // (config.get("num_key_value_heads") or heads), [], []
    for layer, block in enumerate(blocks):
        parts: list[Any] = [block.get(key) if isinstance(block, dict) else None for key in ("attention", "ffn")]
        for part in parts:
            if not isinstance(part, dict) or part.get("replace_with_linear") or part.get("sparsify") is not None:
                raise foreign
        attention, ffn = parts
        if attention.get("no_op"):
            no_attn.append(layer)
        elif attention.get("n_heads_in_group") != group or attention.get("window_length") is not None:
            raise foreign
        mult = 0 if ffn.get("no_op") else ffn.get("ffn_mult")  # 1.5 times width over hidden size
        is_number = isinstance(mult, (int, float)) and not isinstance(mult, bool)
        if not ffn.get("no_op") and not (is_number and 0 < mult <= LARGEST_FFN_MULT):
            raise foreign
        widths.append(round(2 * mult * config["hidden_size"] / 3))
    return Structure(
        architecture=architecture, layout="nemotron-nas", num_hidden_layers=layers, no_attn=frozenset(no_attn),
        no_mlp=frozenset(i for i, width in enumerate(widths) if not width), mlp_widths=tuple(widths),
    )  # fmt: skip


# ---- what is published -----------------------------------------------------------------------------------------------


def needs_modeling_file(plan: DropPlan) -> bool:
    """Tell whether transformers needs code of ours to load what a plan leaves."""
    return plan.layout != "stock"


def write_config(base: BaseCheckpoint, plan: DropPlan, folder: Path, *, tokenizer_class: str | None = None) -> None:
    """Write config.json; the tokenizer files must be in the folder already.

    Args:
        tokenizer_class: class that stands there whatever the base's config.json names.
    """
    path, named = folder / "tokenizer_config.json", None
    if path.is_file():
        named = parse_json(path.read_bytes(), where=str(path)).get("tokenizer_class")
    config = pruned_config(base, plan, tokenizer_class=named if isinstance(named, str) else None)
    write_json({**config, "tokenizer_class": tokenizer_class} if tokenizer_class else config, folder)


def pruned_config(base: BaseCheckpoint, plan: DropPlan, *, tokenizer_class: str | None = None) -> dict[str, Any]:
    """Return the published config.json of a plan.

    Args:
        tokenizer_class: class named by the tokenizer's own config; older `pipeline()`s look for it here.
    """
    structure = read_structure(base.config, name=base.name)
    config = stock_config(base.config, structure)
    config.update(_both_spellings(config, structure.architecture))
    if len(kept := sorted(plan.published_numbers)) < plan.num_hidden_layers:
        config.update({"num_hidden_layers": len(kept), **structure.architecture.cut_lists(config, kept)})
    if tokenizer_class:
        config.setdefault("tokenizer_class", tokenizer_class)
    config.update(layout_keys(plan.layout, config, structure.without(plan)))
    config["hubprune"] = {
        **{"version": __version__, "base_model": base.name, "base_commit": base.commit},
        "base_num_hidden_layers": plan.num_hidden_layers,
        "dropped_attn_layers_of_base": list(plan.layers("attn")),
        "dropped_mlp_layers_of_base": list(plan.layers("mlp")),
        **{f"absent_{kind}_layers_of_base": list(layers) for kind, layers in plan.absent_layers.items() if layers},
        **({"widths_of_base": plan.widths.model_dump(mode="json", exclude_none=True)} if plan.widths else {}),
    }
    return config if plan.layout == "stock" else _without_pair(config)


def stock_config(config: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """Return a base's config.json as that of its family, without what makes it a pruned one or names foreign code."""
    kept = {key: value for key, value in config.items() if key not in NOT_CARRIED}
    if structure.layout == "stock":
        return kept
    family, scaling = structure.architecture, kept.get("rope_scaling")
    return {
        **kept,
        # Where the pruned layouts have it, no stock class of transformers 4 would find it.
        **({"rope_theta": scaling["rope_theta"]} if isinstance(scaling, dict) and "rope_theta" in scaling else {}),
        "model_type": family.model_type,
        "architectures": [family.causal_lm_class],
        "intermediate_size": max(structure.mlp_widths),
    }


def _both_spellings(config: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Add the keys that transformers 4.x reads where the base has only those of 5.x."""
    added: dict[str, Any] = {}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and architecture.local_rope_base and isinstance(rope.get(FULL), dict):
        local = rope.get(SLIDING) or {}
        added |= {architecture.local_rope_base: local["rope_theta"]} if "rope_theta" in local else {}
        rope = rope[FULL]
    if isinstance(rope, dict) and rope:
        added |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
        scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if architecture.scaling_keys:
            added |= {k: v for k, v in scaling.items() if k not in ("rope_type", "type", *architecture.scaling_keys)}
            scaling = {"type": kind} | {k: scaling[k] for k in architecture.scaling_keys if k in scaling}
        added["rope_scaling"] = None if kind == "default" else scaling
    if "dtype" in config:
        added["torch_dtype"] = config["dtype"]
    return {key: value for key, value in added.items() if key not in config}


def _without_pair(config: dict[str, Any]) -> dict[str, Any]:
    """Move `rope_theta` into `rope_scaling` in a config.json that only code of ours understands.

    Where it may not run code, AutoTokenizer of transformers 5 makes a plain config of the file, and fails on the two
    side by side if the scaling is one of these.  Of the other runtimes, mlx-lm then takes its default, the rope base of
    Llama 3.
    """
    scaling = config.get("rope_scaling")
    if not isinstance(scaling, dict) or scaling.get("rope_type", scaling.get("type")) not in READS_POSITIONS:
        return config
    needed = {key: config[key] for key in ("original_max_position_embeddings",) if key in config}
    theta = (config.get("rope_parameters") or scaling).get("rope_theta", config.get("rope_theta"))
    moved = {**needed, **scaling, "rope_theta": theta}
    return {**{key: value for key, value in config.items() if key != "rope_theta"}, "rope_scaling": moved}


def layout_keys(layout: Layout, config: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """Return the keys of config.json that say, in a layout, which classes load it and which sublayers are there.

    Without a single `intermediate_size`, a stock class that is called by its name fails instead of loading the
    checkpoint with random numbers in its holes.
    """
    if layout == "stock":
        return {"intermediate_size": max(structure.mlp_widths)}
    if layout == "nemotron-nas":
        # The rope base that transformers takes by default, and the kind of scaling under the name that all look for:
        # without, mlx-lm takes the rope base of Llama 3 without a word, and of a `type` alone it loads none.
        scaling = config.get("rope_scaling") or {}
        keys = {
            "block_configs": block_configs(structure.mlp_widths, structure.no_attn, config),
            "rope_theta": config.get("rope_theta") or scaling.get("rope_theta", DEFAULT_ROPE_BASE),
            **({"rope_scaling": {**scaling, "rope_type": scaling["type"]}} if "type" in scaling else {}),
        }
    else:
        keys = {
            "dropped_attn_layers": sorted(structure.no_attn), "dropped_mlp_layers": sorted(structure.no_mlp),
            "mlp_intermediate_sizes": list(structure.mlp_widths),
        }  # fmt: skip
    return {**pruned_classes(structure.architecture, layout), **keys, "intermediate_size": None}


def pruned_classes(architecture: Architecture, layout: Layout) -> dict[str, Any]:
    """Return the keys of config.json that name the classes of the modeling file."""
    module = Path(architecture.modeling_file(layout)).stem
    served = layout == "nemotron-nas"
    return {
        "model_type": NEMOTRON_NAS if served else architecture.pruned_model_type,
        "architectures": [NEMOTRON_NAS_CLASS if served else architecture.pruned_class],
        "auto_map": {auto: f"{module}.{name}" for auto, name in architecture.pruned_classes.items()},
    }


def block_configs(widths: Sequence[int], no_attn: frozenset[int], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the `block_configs` of a nemotron-nas config.json.

    Args:
        widths: neurons of every layer's MLP, 0 where it has none.
        config: heads and hidden size are read here.
    """
    heads = config["num_attention_heads"]
    group = heads // (config.get("num_key_value_heads") or heads)
    return [
        {
            "attention": {
                "n_heads_in_group": None if layer in no_attn else group, "no_op": layer in no_attn,
                "num_sink_tokens": None, "replace_with_linear": False, "sparsify": None, "unshifted_sink": False,
                "use_prefill_window_in_sink_attention": False, "window_length": None,
            },
            "ffn": {
                "ffn_mult": 1.5 * width / config["hidden_size"] if width else None, "no_op": not width,
                "replace_with_linear": False, "sparsify": None,
            },
        }
        for layer, width in enumerate(widths)
    ]  # fmt: skip


def write_json(config: Mapping[str, Any], folder: Path) -> None:
    """Write a config.json as it is."""
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
