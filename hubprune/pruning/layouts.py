"""Choose how a pruned checkpoint is written, by what its layers look like and who could run it.

stock          nothing but whole layers are gone: any runtime that knows the family loads it, without code of ours
nemotron-nas   transformers, vLLM, SGLang, MLX and llama.cpp: the latter four know it without code of ours
pruned         transformers only, with the modeling file; fits everything
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from hubprune.architectures import Architecture
from hubprune.artifacts import DropPlan, Layout
from hubprune.errors import PlanError

WIDTH_MULTIPLE = 256
"""vLLM and llama.cpp compute an MLP's width from `ffn_mult` and round it up to a multiple of this."""


def choose_layout(requested: str, plan: DropPlan, config: Mapping[str, Any], architecture: Architecture) -> Layout:
    """Choose the layout of a plan: the requested one, or for `auto` the first that fits.

    Args:
        requested: `auto` or a layout.
        plan: what goes.
        config: the base's config.json.
        architecture: the base's family.

    Raises:
        PlanError: the requested layout does not fit; the message gives the reason.
    """
    reasons = {layout: obstacle(layout, plan, config, architecture) for layout in get_args(Layout)}
    if requested == "auto":
        return next(layout for layout in get_args(Layout) if reasons[layout] is None)
    chosen: Layout = next(layout for layout in get_args(Layout) if layout == requested)
    if reason := reasons[chosen]:
        fitting = [layout for layout in get_args(Layout) if reasons[layout] is None]
        raise PlanError(f"--layout {chosen} does not fit: {reason}.", hint=f"Fitting: {', '.join(['auto', *fitting])}.")
    return chosen


def obstacle(layout: Layout, plan: DropPlan, config: Mapping[str, Any], architecture: Architecture) -> str | None:
    """Say why a plan cannot be written in a layout, or None where it can."""
    if layout == "stock":
        return _first(
            (bool(plan.published_layers("attn")), "layers that stay lose their attention"),
            (bool(plan.published_layers("mlp")), "layers that stay lose their MLP"),
        )
    if layout == "nemotron-nas":
        return _nemotron_nas_obstacle(plan, config, architecture)
    return None


def _nemotron_nas_obstacle(plan: DropPlan, config: Mapping[str, Any], architecture: Architecture) -> str | None:
    if not architecture.nemotron_nas:
        return f"it describes layers like Llama's, not those of {architecture.class_prefix}"
    width, heads, head_dim = config["intermediate_size"], config["num_attention_heads"], config.get("head_dim")
    return _first(
        (head_dim is not None and head_dim * heads != config["hidden_size"], "head_dim is not hidden_size over heads"),
        (width % WIDTH_MULTIPLE != 0, f"intermediate_size {width} is no multiple of {WIDTH_MULTIPLE}"),
        (0 in plan.published_layers("attn"), "vLLM and llama.cpp need the attention of layer 0"),
        (bool(config.get("attention_bias") or config.get("mlp_bias")), "its projections have biases"),
    )


def _first(*rows: tuple[bool, str]) -> str | None:
    return next((reason for applies, reason in rows if applies), None)


def runtimes(layout: Layout) -> Sequence[str]:
    """Name the runtimes that know a layout, whether or not they were run."""
    return ("transformers",) if layout == "pruned" else ("transformers", "vLLM", "SGLang", "mlx-lm", "llama.cpp")
