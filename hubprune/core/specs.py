"""What can be asked of the weights: sublayers go by rank or by number, MLPs get narrower, matrices get fewer bits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hubprune.core.artifacts import (
    AdoptedForm,
    HealingLoss,
    HealingMethod,
    Method,
    QuantizationMethod,
    QuantizationScheme,
    Ranking,
    SublayerKind,
    WidthMetric,
)

PERCENT = re.compile(r"(?P<percent>\d+(\.\d+)?)\s*%", re.ASCII)


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


MOST = 2**31 - 1
"""Most documents, tokens, layers and whatever else is counted; the libraries below count in C."""
DEFAULT_GROUP = 128
"""Columns that share a scale, as vLLM's kernels like it."""
AUTO = "auto"
"""Stands for a number of drops that is to be found."""
MOST_SHOWN = 60
"""Characters of a value that an error repeats."""


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number, and YAML reads yes, no, on and off as none")
    return value


Number = BeforeValidator(_no_boolean)
"""Keeps pydantic from taking true for 1."""
Count = Annotated[int, Number, Field(ge=1, le=MOST)]
"""How many there are of something, 1 at least."""


def shown(value: Any) -> str:
    """Write a value as an error repeats it, in one line."""
    try:
        text = repr(value)
    except ValueError:  # of a whole number with more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _percent(value: Any) -> str:
    """Return a share in one spelling, as in 12.5%."""
    found = PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        raise ValueError(f"{shown(value)} is no share; it looks like 60%")
    if not 0 < float(found["percent"]) <= 100:
        raise ValueError(f"{value[:MOST_SHOWN]} is no share between 0 % and 100 %")
    return f"{Decimal(found['percent']).normalize():f}%"


def _amount(value: Any) -> int | str:
    if isinstance(value, str) and "%" in value:
        return _percent(value)
    digits = isinstance(value, str) and value.strip().isdecimal() and len(value.strip()) <= len(str(MOST))
    number = int(value) if digits else value
    if number == AUTO:
        raise ValueError("auto is a number that hubprune publish looks for; elsewhere pass it, or run hubprune sweep")
    if type(number) is not int or not 1 <= number <= MOST:
        raise ValueError(f"{shown(value)} is neither a number of 1 or more nor a share like 10%")
    return number


def _widths(value: Any) -> int | tuple[int, ...] | None:
    if value is None:
        return None
    several = tuple(value) if isinstance(value, (list, tuple)) else None
    asked = (value,) if several is None else several
    if not asked or not all(type(width) is int and 1 <= width <= MOST for width in asked):
        raise ValueError(f"{shown(value)} is no width: pass a number of 1 or more, or one for every layer")
    return int(value) if several is None else several


Share = Annotated[str, BeforeValidator(_percent)]
"""A share as in 60%."""
Amount = Annotated[int | str, BeforeValidator(_amount)]
"""A number, or a share of what there is."""
Layers = tuple[Annotated[int, Number, Field(ge=0, le=MOST)], ...]

HAND: Mapping[SublayerKind, str] = {"attn": "--attn-layers", "mlp": "--mlp-layers"}
METHODS: Mapping[Ranking, Method] = {
    "attn": "attn-drop", "mlp": "mlp-drop", "block": "block-drop", "joint": "joint-drop",
}  # fmt: skip
OPTIONS: Mapping[Ranking, str] = {ranking: f"--{method}" for ranking, method in METHODS.items()}


def count_of(amount: int | str, *, of: int) -> int:
    """Return how many of `of` things an amount stands for; a share is rounded to the nearest number, 1 at least."""
    if isinstance(amount, int):
        return amount
    return max(1, int(float(amount.removesuffix("%")) / 100 * of + 0.5))


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
        return self

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
        asked = {*self.amounts, *self.by_hand}
        return tuple(method for ranking, method in METHODS.items() if ranking in asked)

    @property
    def name_parts(self) -> list[str]:
        """What the result's name says of the request, as in attn-drop-3."""
        numbers: dict[Ranking, int | str] = dict(self.amounts)
        numbers.update({kind: len(layers) for kind, layers in self.by_hand.items()})
        return [f"{METHODS[r]}-{str(numbers[r]).replace('%', 'pct')}" for r in METHODS if r in numbers]


class WidthSpec(Settings):
    """How many neurons go from every MLP; one of the first three is given."""

    neuron_drop: Share | None = None
    """Share of the neurons that go."""
    width: Annotated[int | tuple[int, ...] | None, BeforeValidator(_widths)] = None
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
