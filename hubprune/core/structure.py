"""Which sublayers a checkpoint has, read from its config.json, whatever layout that is written in.

stock          `model_type` of the family: every layer has both sublayers, all MLPs are equally wide
pruned         `pruned_<family>`: `dropped_attn_layers`, `dropped_mlp_layers`, `mlp_intermediate_sizes`
nemotron-nas   `block_configs`, one entry per layer with what its attention and its MLP are
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubprune.core.architectures import NEMOTRON_NAS, Architecture, architecture_of
from hubprune.core.artifacts import DropPlan, Layout, SublayerKind
from hubprune.core.errors import CheckpointError, UnsupportedArchitectureError

NEMOTRON_NAS_CLASS = "DeciLMForCausalLM"
"""The class that vLLM, SGLang and llama.cpp look for; transformers loads ours, by `auto_map`."""
LARGEST_FFN_MULT = 2**20
"""No MLP is so much wider than the residual stream; more would overflow."""


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
    """Read which sublayers a checkpoint has.

    Args:
        config: its config.json.
        name: how error messages call it.

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


# ---- nemotron-nas ------------------------------------------------------------------------------------------------


def _of_block_configs(config: Mapping[str, Any], architecture: Architecture, name: str) -> Structure:
    blocks, layers = config.get("block_configs"), config["num_hidden_layers"]
    if not isinstance(blocks, list) or len(blocks) != layers:
        raise CheckpointError(f"config.json of {name}: block_configs does not hold {layers} entries.")
    group = config["num_attention_heads"] // (config.get("num_key_value_heads") or config["num_attention_heads"])
    attentions = [_has_attention(block, group, name) for block in blocks]
    widths = [_mlp_width(block, config["hidden_size"], name) for block in blocks]
    return Structure(
        architecture=architecture, layout="nemotron-nas", num_hidden_layers=layers,
        no_attn=frozenset(i for i, present in enumerate(attentions) if not present),
        no_mlp=frozenset(i for i, width in enumerate(widths) if not width),
        mlp_widths=tuple(widths),
    )  # fmt: skip


def _has_attention(block: Any, heads_in_group: int, name: str) -> bool:
    """Tell whether a block has attention, which has to be the one that Llama has."""
    attention = _part(block, "attention", name)
    if attention.get("no_op"):
        return False
    if attention.get("n_heads_in_group") != heads_in_group or attention.get("window_length") is not None:
        raise _foreign(name)
    return True


def _mlp_width(block: Any, hidden_size: int, name: str) -> int:
    """Return the width of a block's MLP, 0 where it has none; `ffn_mult` is 1.5 times width over hidden size."""
    ffn = _part(block, "ffn", name)
    if ffn.get("no_op"):
        return 0
    mult = ffn.get("ffn_mult")
    if not isinstance(mult, (int, float)) or isinstance(mult, bool) or not 0 < mult <= LARGEST_FFN_MULT:
        raise _foreign(name)
    return round(2 * mult * hidden_size / 3)


def _part(block: Any, key: str, name: str) -> Mapping[str, Any]:
    part = block.get(key) if isinstance(block, dict) else None
    if not isinstance(part, dict) or part.get("replace_with_linear") or part.get("sparsify") is not None:
        raise _foreign(name)
    return part


def _foreign(name: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"{name} has block_configs with parts that are neither Llama's nor absent.",
        hint="Only nemotron-nas repos that hubprune wrote can be read.",
    )


def block_configs(widths: Sequence[int], no_attn: frozenset[int], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the `block_configs` of a nemotron-nas config.json.

    Args:
        widths: neurons of every layer's MLP, 0 where it has none.
        no_attn: layers without attention.
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
