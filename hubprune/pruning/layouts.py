"""Choose how a pruned checkpoint is written, by what its layers look like and who could run it.

stock          whole layers are gone, or all MLPs are equally narrower: any runtime that knows the family loads it
nemotron-nas   transformers and vLLM, with the modeling file; mlx-lm and, of Llama 3's vocabulary, llama.cpp without
pruned         transformers and vLLM, with the modeling file; fits everything

A base that was pruned before is in one of these itself.  What its repo ships is foreign code, whoever published it.  So
its weights are taken as they are, and config.json and modeling file are written anew beside links to them, as this
version of hubprune writes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hubprune.core.architectures import MISTRAL_WINDOW, SLIDING, architecture_of
from hubprune.core.artifacts import BaseCheckpoint, DropPlan, Layout, LayoutChoice, Method, WidthPlan
from hubprune.core.config import READS_POSITIONS, Structure, read_structure
from hubprune.core.errors import PlanError
from hubprune.core.files import staged_folder
from hubprune.core.templates import link_model
from hubprune.core.weights import Weights, open_weights
from hubprune.pruning.checkpoint import carry_files

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

    Raises:
        PlanError: it cannot, by the base's config.json and what is asked for.
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
    """Choose the layout of a plan, by the base's config.json: the requested one, or for `auto` the first that fits.

    Raises:
        PlanError: the requested layout does not fit, or no attention of some kind is left; the message says which.
    """
    require_every_kind(plan, config)
    left = read_structure(config).without(plan)
    reasons: dict[Layout, str | None] = {
        "stock": _stock_obstacle(left, config, sorted(plan.published_numbers)),
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
            last, by_hand = layers[-1], plan.selected_by == "hand"
            raise PlanError(
                f"No attention of the kind {kind} would be left: of the layers that stay, "
                f"{', '.join(map(str, layers))} have one.",
                hint=f"Leave {last} out of --attn-layers." if by_hand else f"Keep one of them: --protect {last}.",
            )


def _stock_obstacle(left: Structure, config: Mapping[str, Any], kept: Sequence[int]) -> str | None:
    family = left.architecture
    floor = ".".join(map(str, family.lists_floor or ()))
    mixed_up = bool(floor) and family.mixes_up_kinds(config, kept)
    return _first(
        (bool(left.no_attn), "layers that stay have no attention"),
        (bool(left.no_mlp), "layers that stay have no MLP"),
        (len(set(left.mlp_widths)) > 1, "the MLPs differ in width"),
        (mixed_up, f"transformers before {floor} would mix up its full and sliding attentions without a word"),
    )


def _nemotron_nas_obstacle(left: Structure, config: Mapping[str, Any]) -> str | None:
    family, odd = left.architecture, [width for width in left.mlp_widths if width % WIDTH_MULTIPLE]
    size, heads, activation = config["hidden_size"], config["num_attention_heads"], config.get("hidden_act", "silu")
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {"rope_theta": config.get("rope_theta"), **scaling}
    # Where config.json will not name its rope base, which is then another than mlx-lm's default.
    lacks_base = rope.get("rope_type", rope.get("type")) in READS_POSITIONS and rope["rope_theta"] != LLAMA3_THETA
    # Where a token may lie too far back to be seen.
    window, longest = config.get("sliding_window", MISTRAL_WINDOW), config.get("max_position_embeddings")
    slides = SLIDING in family.attention_kinds(config) and (longest is None or window < longest)
    return _first(
        (not family.nemotron_nas, f"it describes Llama's layers, not {family.class_prefix}'s"),
        ((config.get("head_dim") or size // heads) * heads != size, "the heads' size is not hidden_size over heads"),
        (bool(odd), f"an MLP has {max(odd, default=0)} neurons, which is no multiple of {WIDTH_MULTIPLE}"),
        (0 in left.no_attn, "vLLM and llama.cpp need the attention of layer 0"),
        (bool(left.no_mlp), "llama.cpp's own converter goes wrong, without a word, where only an MLP is missing"),
        (bool(config.get("attention_bias") or config.get("mlp_bias")), "it has no place for biases"),
        (lacks_base, f"mlx-lm would take {LLAMA3_THETA:g} for its rope base"),
        (slides, "it has no place for a sliding window"),
        (activation != "silu", f"vLLM and llama.cpp take silu for its hidden_act, which is {activation!r:.40}"),
    )


def _first(*rows: tuple[bool, str]) -> str | None:
    return next((reason for applies, reason in rows if applies), None)


@dataclass(frozen=True)
class Runnable:
    """A model folder, and whether the code in it may be run."""

    folder: Path
    own_code: bool = False
    """True where this version of hubprune wrote the folder's modeling file; False for folders without one."""
    tensor_names: Mapping[str, str | None] = field(default_factory=dict)
    """Name of a tensor in the files -> in the model, as in `BaseCheckpoint`."""

    def weights(self) -> Weights:
        """Open its weights as the model calls them, without what it does not use."""
        return open_weights(self.folder).used(self.tensor_names)

    def tokenizer(self) -> Any:
        """Load its tokenizer, which never runs code."""
        from transformers import AutoConfig, AutoTokenizer

        # With the config at hand, it does not look for one whose code it may not run, and complain.
        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=self.own_code)
        return AutoTokenizer.from_pretrained(self.folder, config=config, trust_remote_code=False)


def make_runnable(base: BaseCheckpoint, folder: Path) -> Runnable:
    """Return a folder that transformers can load a downloaded base from without running code that is not ours.

    What a base that was pruned before needs is written to `folder`, which is taken as it is where it exists.

    Raises:
        CheckpointError: its config.json does not say which sublayers it has, or its weights cannot be read.
    """
    source = Path(base.folder or "")
    structure = read_structure(base.config, name=base.name)
    if structure.layout == "stock":
        return Runnable(source, tensor_names=base.tensor_names)
    if not folder.is_dir() or not all(path.exists() for path in folder.rglob("*")):  # a link may have lost its target
        shutil.rmtree(folder, ignore_errors=True)
        with staged_folder(folder) as staged:
            carry_files(source, staged)
            link_model(base.config, structure, source, staged)
    return Runnable(folder, own_code=True, tensor_names=base.tensor_names)
