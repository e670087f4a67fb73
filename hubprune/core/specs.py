"""What can be asked of the weights: sublayers go by rank or by number, MLPs get narrower, matrices get fewer bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from hubprune.core.amounts import (
    GOALS,
    Amount,
    Count,
    Layers,
    Number,
    Share,
    read_at,
    read_parts,
    read_targets,
    read_widths,
)
from hubprune.core.artifacts import (
    AdoptedForm,
    Goal,
    HealingLoss,
    HealingMethod,
    LayoutChoice,
    Method,
    Metric,
    Part,
    QuantizationMethod,
    QuantizationScheme,
    Ranking,
    Schedule,
    SublayerKind,
    Unit,
    WidthMetric,
)

FORMERLY: Mapping[str, str] = {
    "drop_attn": "attn_layers", "drop_mlp": "mlp_layers", "drop_neurons": "neuron_drop", "max_drop_pp": "max_loss",
}  # fmt: skip
"""What settings were once called -> their names, which say first what goes; recipes that are out have the old ones."""


class Settings(BaseModel):
    """A frozen part of the recipe that refuses unknown keys; one that had another name is known by both."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _names_of_today(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not (old := [name for name in FORMERLY if name in values]):
            return values
        if twice := [name for name in old if FORMERLY[name] in values]:
            raise ValueError(f"the key {twice[0]} is the old name of {FORMERLY[twice[0]]}: keep one of them")
        known = [name for name in old if FORMERLY[name] in cls.model_fields]
        return {FORMERLY[name] if name in known else name: value for name, value in values.items()}


DEFAULT_GROUP = 128
"""Columns that share a scale, as vLLM's kernels like it."""
USUAL_GROUPS = (DEFAULT_GROUP, 64, 32)
"""What vLLM has kernels for."""
HAND: Mapping[SublayerKind, str] = {"attn": "--attn-layers", "mlp": "--mlp-layers"}
METHODS: Mapping[Ranking, Method] = {
    "attn": "attn-drop", "mlp": "mlp-drop", "block": "block-drop", "joint": "joint-drop",
}  # fmt: skip
OPTIONS: Mapping[Ranking, str] = {ranking: f"--{method}" for ranking, method in METHODS.items()}


class DropSpec(Settings):
    """Which sublayers go: so many by score, or exactly the given ones."""

    attn_drop: Amount | None = None
    """Attention sublayers to drop, lowest score first."""
    mlp_drop: Amount | None = None
    """MLP sublayers to drop."""
    block_drop: Amount | None = None
    """Whole layers to drop."""
    joint_drop: Amount | None = None
    """Sublayers to drop, attentions and MLPs ranked in one list."""
    attn_layers: Layers | None = None
    """Layers whose attention is dropped, whatever the scores say."""
    mlp_layers: Layers | None = None
    """Layers whose MLP is dropped, whatever the scores say."""
    target: Annotated[dict[Goal, str] | None, BeforeValidator(read_targets)] = None
    """What is to be saved instead: params, bytes, flops, kv, memory or latency -> -10%, or a size such as 8GB."""
    target_over: Annotated[tuple[Part, ...] | None, BeforeValidator(read_parts)] = None
    """What a target may be reached by; None for what fits it."""
    at: Annotated[str | None, BeforeValidator(read_at)] = None
    """Tokens of context and sequences at which KV cache, operations and latency count, as in 4096x1; None for 2048, or
    what the base has positions for, and one."""
    per: Unit | None = None
    """What a score is divided by before it is ranked; None for no such thing."""
    protect: Layers = ()
    """Layers that are never dropped."""

    @field_validator("attn_layers", "mlp_layers", "protect")
    @classmethod
    def _sorted_and_unique(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if value is None else tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _one_request(self) -> DropSpec:
        given = list(self.amounts)
        for whole in ("joint", "block"):
            if whole in given and len(given) > 1:
                other = next(OPTIONS[ranking] for ranking in given if ranking != whole)
                raise ValueError(f"{OPTIONS[whole]} and {other} exclude each other: pass one of them")
        for kind, layers in self.by_hand.items():
            if clash := [ranking for ranking in given if ranking in (kind, "block", "joint")]:
                raise ValueError(f"{OPTIONS[clash[0]]} and {HAND[kind]} exclude each other: pass one of them")
            if not layers:
                raise ValueError(f"{HAND[kind]} names no layer")
            if both := set(layers) & set(self.protect):
                raise ValueError(f"layers {sorted(both)} are both in {HAND[kind]} and in --protect")
        self._target_stands_alone([OPTIONS[ranking] for ranking in given] + [HAND[kind] for kind in self.by_hand])
        return self

    def _target_stands_alone(self, others: Sequence[str]) -> None:
        if self.target is None:
            if self.target_over is not None:
                raise ValueError("--target-over says what a target is reached by: pass --target kv=-30% with it")
            if self.per is None and self.at is not None:
                raise ValueError("--at is where savings count: pass --target or --per with it")
            if self.per is not None and not self.amounts:
                raise ValueError("--per ranks what is dropped by number: pass --joint-drop N with it")
            if self.per == "kv" and (mlps := [OPTIONS[r] for r in self.amounts if r == "mlp"]):
                raise ValueError(f"--per kv and {mlps[0]} exclude each other: an MLP has no part of the KV cache")
            return
        if not self.target:
            raise ValueError("--target names no target; it looks like kv=-30%")
        if others:
            raise ValueError(f"--target finds what goes, and {others[0]} names it: pass one of them")
        if self.per is not None:
            raise ValueError("--target weighs losses against savings itself: leave --per out")
        if not self.parts:
            raise ValueError("--target-over leaves nothing to reach it by: pass some of attn,mlp,block,width")
        if "latency" in self.target and "width" in self.parts:
            raise ValueError("the time of narrower MLPs is in no table: leave width out of --target-over")
        without_kv = [part for part in self.parts if part in ("mlp", "width")]
        if "kv" in self.target and len(without_kv) == len(self.parts):
            raise ValueError(
                f"--target kv={self.target['kv']} cannot be reached by {' and '.join(self.parts)}: an MLP has no part"
                " of the KV cache; add attn to --target-over"
            )

    def refuse_beside(self, *, metric: Metric, schedule: Schedule, layout: LayoutChoice, width: bool) -> None:
        """Refuse what a target, or a ranking by what is saved, does not go together with.

        Raises:
            ValueError: the message names both.
        """
        if self.per and metric in ("angular", "reverse-order", "random"):
            raise ValueError(f"--per divides scores, and --metric {metric} has none of single sublayers")
        if self.target is None:
            return
        if metric != "loss":
            raise ValueError(f"--target adds up what the model loses: leave --metric {metric} out, or pass loss")
        if width:
            raise ValueError("--target finds how narrow MLPs become: leave the other width out")
        if schedule != "one-shot":
            raise ValueError(
                f"--target looks at all plans at once, and --schedule {schedule} at one drop: pass one of them"
            )
        if layout == "stock" and self.parts != ("block",):
            raise ValueError("--layout stock leaves whole layers alone: pass --target-over block with it")

    @property
    def parts(self) -> tuple[Part, ...]:
        """What a target may be reached by: what was asked for, or what saves something of it and can be measured."""
        if self.target_over is not None or not self.target:
            return self.target_over or ()
        if set(self.target) == {"kv"}:
            return ("attn",)
        return ("attn", "mlp", "block") if "latency" in self.target else ("attn", "mlp", "block", "width")

    @property
    def amounts(self) -> dict[Ranking, int | str]:
        """What is chosen by rank: ranking -> how much of it."""
        return {ranking: amount for ranking in METHODS if (amount := getattr(self, f"{ranking}_drop")) is not None}

    @property
    def by_hand(self) -> dict[SublayerKind, tuple[int, ...]]:
        """What is named: kind of sublayer -> layers."""
        return {kind: layers for kind in HAND if (layers := getattr(self, f"{kind}_layers")) is not None}

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that are asked for, in a fixed order."""
        asked = {*self.amounts, *self.by_hand, *self.parts}
        narrower: tuple[Method, ...] = ("mlp-width",) if "width" in self.parts else ()
        return (*(method for ranking, method in METHODS.items() if ranking in asked), *narrower)

    @property
    def name_parts(self) -> list[str]:
        """What the result's name says of the request, as in attn-drop-3."""
        numbers: dict[Ranking, int | str] = dict(self.amounts)
        numbers.update({kind: len(layers) for kind, layers in self.by_hand.items()})
        found = [f"{METHODS[r]}-{str(numbers[r]).replace('%', 'pct')}" for r in METHODS if r in numbers]
        wanted = self.target or {}
        found += [f"{goal}-{wanted[goal].removeprefix('-').replace('%', 'pct')}" for goal in GOALS if goal in wanted]
        return found + ([f"per-{self.per}"] if self.per else [])


class WidthSpec(Settings):
    """How many neurons go from every MLP; one of the first three is given."""

    neuron_drop: Share | None = None
    """Share of the neurons that go."""
    width: Annotated[int | tuple[int, ...] | None, BeforeValidator(read_widths)] = None
    """Neurons that stay: in every MLP, or one number per layer."""
    expansion_ratio: Annotated[float, Number, Field(gt=0, le=1000)] | None = None
    """Neurons that stay over hidden size."""
    metric: WidthMetric = "max_abs"
    """Importance of a neuron, from its weights."""
    multiple: Count = 64
    """The width is rounded to the nearest multiple of this; a width that is given as a number is taken as it is."""
    neurons: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]+$")], ...] | None = None
    """Which neurons stay, one mask of bits in hex per layer, where no metric chooses them; with one width per layer."""

    @model_validator(mode="after")
    def _one_request(self) -> WidthSpec:
        rows = {
            "--neuron-drop": self.neuron_drop, "--mlp-width": self.width, "--expansion-ratio": self.expansion_ratio,
        }  # fmt: skip
        given = [option for option, value in rows.items() if value is not None]
        if not given:
            raise ValueError("how narrow? pass --neuron-drop 60%, --mlp-width 3277 or --expansion-ratio 1.07")
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} exclude each other: pass one of them")
        fits = isinstance(self.width, tuple) and [int(mask, 16).bit_count() for mask in self.neurons or ()]
        if self.neurons is not None and fits != list(self.width if isinstance(self.width, tuple) else ()):
            raise ValueError("the key neurons does not name as many neurons of every layer as its width says")
        return self

    @property
    def name_part(self) -> str:
        """What the result's name says of the request, as in drop-neurons-60pct."""
        if self.neuron_drop:
            return f"drop-neurons-{self.neuron_drop.replace('%', 'pct')}"
        if self.expansion_ratio:
            return f"expansion-{self.expansion_ratio:g}"
        return f"mlp-width-{self.width if isinstance(self.width, int) else 'mixed'}"


class Adopted(Settings):
    """Whose published choice a result follows: what goes is named in the recipe, and was chosen there."""

    repo_id: str
    """Repo on the Hub, or the name of a folder."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """Its commit; None for a folder."""
    form: AdoptedForm
    license: str | None = None
    """As its card names it, where it does."""


class QuantizationSpec(Settings):
    """In how few bits the matrices of a result are written beside it, in a repo of its own."""

    scheme: QuantizationScheme = "w4a16"
    group_size: Count | None = None
    """Columns that share a scale; None for 128, and for one scale per row where the scheme is fp8."""
    method: QuantizationMethod = "gptq"

    @model_validator(mode="after")
    def _fits_together(self) -> QuantizationSpec:
        if self.scheme == "fp8" and self.group_size is not None:
            raise ValueError("--group-size is for w4a16 and w8a16: fp8 has one scale per row")
        return self

    @property
    def columns(self) -> int | None:
        """Columns that share a scale; None for whole rows."""
        return None if self.scheme == "fp8" else self.group_size or DEFAULT_GROUP

    @property
    def suffix(self) -> str:
        """What the name of the sibling repo ends with."""
        return f"-{self.scheme.upper()}"


HEALED_SUFFIX = "-healed"
"""What the name of a healed sibling ends with, wherever it was trained."""


class HealSpec(Settings):
    """How a result is trained on what its base says, and published healed beside it."""

    steps: Count = 200
    method: HealingMethod = "lora"
    rank: Annotated[int, Number, Field(ge=1, le=1024)] = 16
    """Of the adapters."""
    loss: HealingLoss = "kl"
    learning_rate: Annotated[float, Number, Field(gt=0, le=1)] | None = None
    """Highest one; None for what the width of the model asks for."""
    batch_size: Count = 8
    """Documents per step."""
    held_out: Annotated[Count, Field(ge=2)] = 64
    """Documents of the calibration mix that are neither scored nor trained on."""
