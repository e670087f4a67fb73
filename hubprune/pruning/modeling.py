"""Render the modeling file that a published repo ships.

Readers load it for years, with versions of transformers that do not exist yet.  So it copies no code of transformers
and overrides no forward; it replaces modules of a stock model right after that was built.

Choose how a pruned checkpoint is written, by what its layers look like and who could run it.

stock          whole layers are gone, or all MLPs are equally narrower: any runtime that knows the family loads it
nemotron-nas   transformers, vLLM, SGLang, MLX and llama.cpp: the latter four know it without code of ours
pruned         transformers only, with the modeling file; fits everything
"""

from __future__ import annotations

import hashlib
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from packaging.version import Version

from hubprune import __version__
from hubprune.core.architectures import MISTRAL_WINDOW, SLIDING, Architecture, architecture_of
from hubprune.core.artifacts import DropPlan, Layout, LayoutChoice, Method, WidthPlan
from hubprune.core.config import READS_POSITIONS
from hubprune.core.errors import PlanError
from hubprune.core.structure import Structure, read_structure
from hubprune.core.templates import environment, template_folder

# ---- layouts -------------------------------------------------------------------------------------------------------


LLAMA3_THETA = 500_000.0
WIDTH_MULTIPLE = 256
"""vLLM and llama.cpp compute an MLP's width from `ffn_mult` and round it up to a multiple of this."""


def check_choice(
    requested: LayoutChoice,
    config: Mapping[str, Any],
    *,
    methods: Sequence[Method] = ("attn-drop",),
    widths: WidthPlan | None = None,
) -> None:
    """Refuse a layout that cannot fit the base whatever is dropped; made before anything is downloaded.

    Args:
        requested: `auto` or a layout.
        config: the base's config.json.
        methods: what is asked for.
        widths: how wide the MLPs become, where that changes.

    Raises:
        PlanError: it cannot.
    """
    base = read_structure(config)
    if widths:
        base = replace(base, mlp_widths=widths.kept)
    if requested == "nemotron-nas" and (reason := _nemotron_nas_obstacle(base, config)):
        raise PlanError(f"--layout {requested} does not fit: {reason}.", hint="Pass --layout pruned.")
    if requested == "stock" and not base.no_mlp and "attn-drop" in methods and "mlp-drop" not in methods:
        raise PlanError(
            f"--layout {requested} does not fit: layers that stay have no attention.", hint="Pass --layout auto."
        )


def choose_layout(requested: LayoutChoice, plan: DropPlan, config: Mapping[str, Any]) -> Layout:
    """Choose the layout of a plan: the requested one, or for `auto` the first that fits.

    Args:
        requested: `auto` or a layout.
        plan: what goes.
        config: the base's config.json.

    Raises:
        PlanError: the requested layout does not fit, or no attention of some kind is left; the message says which.
    """
    require_every_kind(plan, config)
    left = read_structure(config).without(plan)
    kept = sorted(plan.published_numbers)
    reasons: dict[Layout, str | None] = {
        "stock": _stock_obstacle(left) or _old_versions_obstacle(left.architecture, config, kept),
        "nemotron-nas": _nemotron_nas_obstacle(left, config),
        "pruned": None,
    }
    fitting = [layout for layout, reason in reasons.items() if reason is None]
    if requested == "auto":
        return fitting[0]
    if reason := reasons[requested]:
        raise PlanError(f"--layout {requested} does not fit: {reason}.", hint=f"Pass --layout {' or '.join(fitting)}.")
    return requested


def require_every_kind(plan: DropPlan, config: Mapping[str, Any]) -> None:
    """Refuse a plan after which no layer has an attention of some kind: transformers asks one how long the text is.

    Raises:
        PlanError: the message names the layers of that kind.
    """
    kinds, gone = architecture_of(config).attention_kinds(config), set(plan.gone("attn"))
    for kind in sorted(set(kinds)):
        layers = [layer for layer in plan.published_numbers if kinds[layer] == kind]
        if layers and gone.issuperset(layers):
            last = layers[-1]
            by_hand = plan.selected_by == "hand"
            raise PlanError(
                f"No attention of the kind {kind} would be left: of the layers that stay, "
                f"{', '.join(map(str, layers))} have one.",
                hint=f"Leave {last} out of --drop-attn." if by_hand else f"Keep one of them: --protect {last}.",
            )


def _old_versions_obstacle(family: Architecture, config: Mapping[str, Any], kept: Sequence[int]) -> str | None:
    if family.lists_floor is None or not family.mixes_up_kinds(config, kept):
        return None
    floor = ".".join(map(str, family.lists_floor))
    return f"transformers before {floor} would mix up its full and sliding attentions without a word"


def _stock_obstacle(left: Structure) -> str | None:
    return _first(
        (bool(left.no_attn), "layers that stay have no attention"),
        (bool(left.no_mlp), "layers that stay have no MLP"),
        (len(set(left.mlp_widths)) > 1, "the MLPs differ in width"),
    )


def _nemotron_nas_obstacle(left: Structure, config: Mapping[str, Any]) -> str | None:
    size, heads, activation = config["hidden_size"], config["num_attention_heads"], config.get("hidden_act", "silu")
    odd = [width for width in left.mlp_widths if width % WIDTH_MULTIPLE]
    return _first(
        (not left.architecture.nemotron_nas, f"it describes Llama's layers, not {left.architecture.class_prefix}'s"),
        ((config.get("head_dim") or size // heads) * heads != size, "the heads' size is not hidden_size over heads"),
        (bool(odd), f"an MLP has {max(odd, default=0)} neurons, which is no multiple of {WIDTH_MULTIPLE}"),
        (0 in left.no_attn, "vLLM and llama.cpp need the attention of layer 0"),
        (bool(left.no_mlp), "llama.cpp's own converter goes wrong, without a word, where only an MLP is missing"),
        (bool(config.get("attention_bias") or config.get("mlp_bias")), "it has no place for biases"),
        (_lacks_rope_base(config), f"mlx-lm would take {LLAMA3_THETA:g} for its rope base"),
        (_slides(left.architecture, config), "it has no place for a sliding window"),
        (activation != "silu", f"vLLM and llama.cpp take silu for its hidden_act, which is {activation!r:.40}"),
    )


def _slides(family: Architecture, config: Mapping[str, Any]) -> bool:
    """Tell whether a token may lie too far back to be seen."""
    window, longest = config.get("sliding_window", MISTRAL_WINDOW), config.get("max_position_embeddings")
    return SLIDING in family.attention_kinds(config) and (longest is None or window < longest)


def _lacks_rope_base(config: Mapping[str, Any]) -> bool:
    """Tell whether config.json will not name its rope base, which is then another than mlx-lm's default."""
    rope = {
        "rope_theta": config.get("rope_theta"),
        **(config.get("rope_parameters") or config.get("rope_scaling") or {}),
    }
    return rope.get("rope_type", rope.get("type")) in READS_POSITIONS and rope["rope_theta"] != LLAMA3_THETA


def _first(*rows: tuple[bool, str]) -> str | None:
    return next((reason for applies, reason in rows if applies), None)


# ---- modeling ------------------------------------------------------------------------------------------------------


TEMPLATE = "modeling_pruned.py.jinja"
INCLUDED = "nemotron_nas_config.py.jinja"


def render(architecture: Architecture, *, layout: Layout = "pruned", version: str = __version__) -> str:
    """Render the modeling file of a family.

    The text depends on the family, the layout and the version of hubprune only, never on a repo or a user's words.

    Raises:
        ValueError: a value of the table or the version could not stand in Python source.
    """
    template = environment("modeling", filters={"ident": ident, "py": py}).get_template(TEMPLATE)
    return template.render(
        version=str(Version(version)),
        template_sha256=_template_sha256(),
        Base=architecture.class_prefix,
        Config=architecture.config_class,
        Model=architecture.model_class,
        CausalLM=architecture.causal_lm_class,
        module=architecture.module,
        model_type=architecture.model_type,
        floor=architecture.floor,
        lists_floor=architecture.lists_floor or architecture.floor,
        scaling_keys=architecture.scaling_keys,
        local_rope_base=architecture.local_rope_base,
        attn_module=architecture.attn_module,
        mlp_module=architecture.mlp_module,
        attn_norms=architecture.attn_norms,
        mlp_norms=architecture.mlp_norms,
        nemotron_nas=layout == "nemotron-nas",
    )


def _template_sha256() -> str:
    """Hash the template with what it includes."""
    folder = template_folder("modeling")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in (TEMPLATE, INCLUDED))).hexdigest()


def ident(value: Any) -> str:
    """Return a value that is an ASCII identifier and no keyword.

    Raises:
        ValueError: it is something else, and might be code.
    """
    if not isinstance(value, str) or not value.isascii() or not value.isidentifier() or keyword.iskeyword(value):
        raise ValueError(f"{value!r} is no identifier")
    return value


def py(value: Any) -> str:
    """Write a value as a Python literal with double quotes; tuples, ASCII strings and integers only.

    Raises:
        ValueError: the value is of another type or holds characters that a module name would not.
    """
    if type(value) is int:
        return str(value)
    if isinstance(value, str):
        return f'"{ident(value)}"'
    if isinstance(value, tuple):
        inner = ", ".join(py(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    raise ValueError(f"{value!r} has no place in a modeling file")
