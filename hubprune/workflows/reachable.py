"""What may go of a base to reach a target, what it saves, and whether that is enough; nothing is computed for it.

Without losses all changes cost nothing, and the search tells the most that can go.

How long sublayers take is the one thing that no file tells.  Half of those of a kind are left out of the loaded base,
and both take turns, round by round, as `hubprune speed` times two models: what a round saves, over the number that was
left out, is what one of them takes.  The table is kept in the work folder, by device and shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import ceil
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from hubprune.cards.target import amount
from hubprune.core.amounts import size_of
from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import (
    BaseCheckpoint,
    DroppedSublayer,
    DropPlan,
    Environment,
    Goal,
    LatencyTable,
    LeftOut,
    Part,
    SublayerKind,
)
from hubprune.core.config import read_structure
from hubprune.core.console import Reporter, size
from hubprune.core.devices import COMPUTE_BITS, stored_dtype
from hubprune.core.errors import PlanError, RecipeError
from hubprune.core.files import StageStore, key_of
from hubprune.core.memory import available_bytes, device_bytes
from hubprune.core.recipe import Recipe
from hubprune.core.specs import DropSpec
from hubprune.pruning import frontier as frontiers
from hubprune.pruning.frontier import Choice, choices_of, most_saved, search, widths_of
from hubprune.pruning.layouts import WIDTH_MULTIPLE, Runnable
from hubprune.pruning.saving import SCALES, Costs, Stored, Tensors, costs_of, tensors_of
from hubprune.pruning.selection import PARTS, Shape, shape_of

if TYPE_CHECKING:
    from hubprune.evaluation.models import LoadedModel

NEW_TOKENS, ROUNDS = 16, 20
SHARE = 0.6
"""Of the free memory, what weights may take where they are timed."""
NOUNS: Mapping[Goal, str] = {
    "params": "parameters", "bytes": "bytes of the files", "flops": "operations per token", "kv": "KV cache",
    "memory": "memory", "latency": "time per token",
}  # fmt: skip
GOES_BY: Mapping[Part, str] = {"attn": "attentions", "mlp": "MLPs", "block": "whole layers", "width": "narrower MLPs"}


class Opened(Protocol):
    """What a search has to know of a run."""

    @property
    def recipe(self) -> Recipe:
        """What decides it."""

    @property
    def base(self) -> BaseCheckpoint:
        """The base, resolved to a commit."""

    @property
    def store(self) -> StageStore:
        """What earlier runs found."""

    @property
    def reporter(self) -> Reporter:
        """Who is told."""

    @property
    def runnable(self) -> Runnable:
        """The base as transformers can load it."""

    @property
    def architecture(self) -> Architecture:
        """Its family."""

    @property
    def device(self) -> str:
        """Where it computes."""

    @property
    def dtype(self) -> str:
        """In what."""

    @property
    def environment(self) -> Environment:
        """The machine."""


@dataclass(frozen=True, kw_only=True)
class Searched:
    """One search: what may go, what it saves and what of that is wanted."""

    drop: DropSpec
    shape: Shape
    costs: Costs
    goals: tuple[Goal, ...]
    widths: Mapping[int, Sequence[int]]

    @classmethod
    def of(cls, recipe: Recipe, base: BaseCheckpoint, costs: Costs, goals: Sequence[Goal]) -> Searched:
        """Say what may go of a base: what the layout that is asked for can hold."""
        structure, served = read_structure(base.config, name=base.name), recipe.layout == "nemotron-nas"
        drop = recipe.drop
        if served:  # layer 0 has to have its attention, and no layer may lack its MLP alone
            parts = tuple(part for part in drop.parts if part != "mlp")
            if not parts:
                raise PlanError(
                    "--layout nemotron-nas has no place for layers that lack an MLP alone.",
                    hint="Add another to --target-over, or pass --layout pruned.",
                )
            protect = (0, *(layer for layer in drop.protect if layer))
            drop = drop.model_copy(update={"protect": protect, "target_over": parts})
        step = WIDTH_MULTIPLE if served else frontiers.MULTIPLE
        widths = {layer: widths_of(width, multiple=step) for layer, width in enumerate(structure.mlp_widths) if width}
        if served:
            widths = {layer: tuple(w for w in found if w % step == 0) for layer, found in widths.items()}
        return cls(drop=drop, shape=shape_of(base), costs=costs, goals=tuple(goals), widths=widths)

    def choices(self, left_out: LeftOut | None) -> list[list[Choice]]:
        """List what may happen to every layer, with its loss; without losses all cost nothing."""

        def saved(part: Part, layer: int, width: int) -> tuple[int, ...]:
            if part == "width":
                return tuple(self.costs.narrower(goal, layer, width) for goal in self.goals)
            kinds: tuple[SublayerKind, ...] = ("attn", "mlp") if part == "block" else (part,)
            return tuple(sum(self.costs.saved(goal, kind, layer) for kind in kinds) for goal in self.goals)

        parts = self.drop.parts
        return choices_of(parts, self.shape, self.drop, saved=saved, left_out=left_out, widths=self.widths)

    @property
    def needs(self) -> tuple[int, ...]:
        """What has to be saved of every target."""
        wanted = self.drop.target or {}
        return tuple(_needed(wanted[goal], self.costs.before(goal)) for goal in self.goals)


def _needed(wanted: str, before: int) -> int:
    if wanted.endswith("%"):
        return ceil(Fraction(wanted.removeprefix("-").removesuffix("%")) / 100 * before)
    return before - size_of(wanted)


# ---- before anything is computed -----------------------------------------------------------------------------------


def check_reachable(run: Opened, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a target that no plan reaches; names and shapes of the tensors are enough.  Latency is not known yet.

    Raises:
        PlanError: the message says how much can go at most, the hint what would help.
    """
    structure, config = read_structure(run.base.config, name=run.base.name), run.base.config
    bits = COMPUTE_BITS[stored_dtype(config)]
    tensors = {name: Stored(tuple(shape), bits) for name, shape in shapes.items()}
    if structure.architecture.embedding in tensors:  # as it is called, unless the files have names of their own
        refuse(run, _costs(run, tensors), [goal for goal in run.recipe.drop.target or {} if goal != "latency"])


def refuse(run: Opened, costs: Costs, goals: Sequence[Goal]) -> None:
    """Raise what stands against a target."""
    if not goals:
        return
    searched = Searched.of(run.recipe, run.base, costs, goals)
    wanted, choices, name = run.recipe.drop.target or {}, searched.choices(None), run.base.name
    for place, (goal, need) in enumerate(zip(goals, searched.needs, strict=True)):
        before, asked = costs.before(goal), f"--target {goal}={wanted[goal]}"
        if need <= 0:
            raise PlanError(
                f"{asked} asks for nothing: {name} takes {size(before)}{_where(goal, costs)} already.",
                hint="Ask for less than that, or publish the base as it is.",
            )
        most = most_saved(choices, searched.shape, place)
        if most >= need:
            continue
        by = " and ".join(GOES_BY[part] for part in searched.drop.parts)
        others: list[Part] = [part for part in GOES_BY if part not in searched.drop.parts]
        useful = [part for part in others if goal not in ("kv", "latency") or part in ("attn", "block")]
        share = 1000 * most // before / 10
        add = f" or add {','.join(useful)} to --target-over" if useful and run.recipe.drop.target_over else ""
        raise PlanError(
            f"{asked} cannot be reached: of {amount(goal, before)} {NOUNS[goal]}"
            f"{_where(goal, costs)} of {name}, at most {share:g} % can go with {by}."
            if share
            else f"{asked} cannot be reached: of {by} of {name}, none may go or none saves any of it.",
            hint=f"Pass --target {goal}=-{share:g}%{add}." if share else f"Pass another target{add}.",
        )
    if len(goals) > 1 and search(choices, searched.shape, searched.needs) is None:
        both = ",".join(f"{goal}={wanted[goal]}" for goal in goals)
        raise PlanError(f"--target {both}: no plan for {name} reaches all of them.", hint="Ask for less of one.")


def _where(goal: Goal, costs: Costs) -> str:
    if goal not in ("kv", "memory", "flops", "latency"):
        return ""
    sequences = f"{costs.batch} sequence{'s' if costs.batch > 1 else ''} of {costs.context:,} tokens"
    return f" ({'files and KV cache of ' if goal == 'memory' else ''}{sequences})"


def _costs(run: Opened, tensors: Tensors, latency: LatencyTable | None = None) -> Costs:
    structure = read_structure(run.base.config, name=run.base.name)
    return costs_of(tensors, run.base.config, structure, at=run.recipe.drop.at, latency=latency)


def measured_costs(run: Opened) -> tuple[Costs, LatencyTable | None]:
    """Return the exact costs of a base that is here; latency is measured where it is asked for."""
    drop = run.recipe.drop
    tensors, table = tensors_of(run.runnable.weights()), None
    if drop.per == "latency" or "latency" in (drop.target or {}):
        costs = _costs(run, tensors)
        table = latency_table(
            run.runnable, run.base.config, architecture=run.architecture, shape=shape_of(run.base),
            context=costs.context, batch=costs.batch, device=run.device, dtype=run.dtype,
            environment=run.environment, store=run.store, reporter=run.reporter,
        )  # fmt: skip
    return _costs(run, tensors, table), table


def saved_per(run: Opened) -> dict[tuple[SublayerKind, int], float]:
    """Return what every sublayer saves, in the unit that scores are divided by.

    Raises:
        PlanError: nothing that is ranked saves any of it.
    """
    unit = run.recipe.drop.per
    assert unit is not None
    costs, _ = measured_costs(run)
    saved = {place: values.get(unit, 0) / SCALES[unit] for place, values in costs.of.items()}
    kinds = {kind for ranking in run.recipe.drop.amounts for kind in PARTS[ranking]}
    if not any(value for (kind, _), value in saved.items() if kind in kinds):
        raise PlanError(f"--per {unit}: nothing that is ranked saves any of it.", hint="Leave --per out.")
    return saved


# ---- how long sublayers take ----------------------------------------------------------------------------------------


def latency_table(
    runnable: Runnable, config: Mapping[str, Any], *, architecture: Architecture, shape: Shape, context: int,
    batch: int, device: str, dtype: str, environment: Environment, store: StageStore, reporter: Reporter,
) -> LatencyTable:  # fmt: skip
    """Return the table of a base's shape on this device, measured where the work folder has none.

    Raises:
        RecipeError: there is none, and the base does not fit into memory to be timed.
    """
    sizes = {name: config.get(name) for name in _SHAPES}
    kinds = architecture.attention_kinds(config)
    key = key_of(
        architecture.model_type, sizes, kinds, shape.absent, context, batch, device, dtype, environment.machine,
        environment.threads, environment.versions,
    )  # fmt: skip

    def measure() -> LatencyTable:
        there = Counter([*(kinds[layer] for layer in shape.layers("attn")), *("mlp" for _ in shape.layers("mlp"))])
        if max(there.values()) < 2:
            raise PlanError(f"{shape.name} has one of each sublayer, and none of them can go.")
        free = min(available_bytes(), device_bytes(device))
        if (weights := runnable.weights().size()) > SHARE * free:
            raise RecipeError(
                f"There is no table of latencies of {shape.name} on this device ({device}), and its {weights:,} bytes "
                "do not fit into memory to be timed.",
                hint="Pass kv=, flops= or params= instead, or run the same command where it fits.",
            )
        return _measure(
            runnable, kinds, architecture=architecture, shape=shape, context=context, batch=batch, device=device,
            dtype=dtype, reporter=reporter,
        )  # fmt: skip

    return store.run("latency", key, LatencyTable, measure)


_SHAPES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers",
    "sliding_window", "vocab_size", "mlp_intermediate_sizes", "block_configs",
)  # fmt: skip


def _measure(
    runnable: Runnable, kinds: list[str], *, architecture: Architecture, shape: Shape, context: int, batch: int,
    device: str, dtype: str, reporter: Reporter,
) -> LatencyTable:  # fmt: skip
    from hubprune.core.console import quiet
    from hubprune.evaluation import speed
    from hubprune.evaluation.models import load_model

    with quiet():
        model = load_model(runnable.folder, device=device, dtype=dtype, trust_remote_code=runnable.own_code)
    (depth,) = speed.fit_depths((context,), new_tokens=NEW_TOKENS, max_positions=model.max_positions)
    spec = speed.SpeedSpec(depth=depth, new_tokens=NEW_TOKENS, rounds=ROUNDS, batch_size=batch)
    groups: dict[str, list[int]] = {kind: [n for n in shape.layers("attn") if kinds[n] == kind] for kind in kinds}
    rows: list[tuple[str, SublayerKind, list[int]]] = [(kind, "attn", layers) for kind, layers in groups.items()]
    found, totals = dict[str, float](), list[float]()
    for name, kind, layers in [*rows, ("mlp", "mlp", shape.layers("mlp"))]:
        gone = layers[1 : 1 + max(1, len(layers) // 2)] if len(layers) > 1 else []
        if not gone:  # the only one of its kind stays in any plan
            found[name] = 0.0
            continue
        plan = DropPlan(
            selected_by="hand", num_hidden_layers=shape.num_hidden_layers, absent=shape.absent,
            dropped=tuple(DroppedSublayer(kind=kind, layer=layer) for layer in gone),
        )  # fmt: skip

        with reporter.progress(f"time {name}", total=ROUNDS + speed.WARM_UPS, unit="rounds") as advance:
            without = partial(_bypassing, model, plan, architecture)
            measured = speed.measure(lambda: nullcontext(model), without, spec, advance=advance)
        decode = next(row for row in measured if row.measure == "decode")
        each = [(base + again) / 2 - other for base, again, other in decode.round_seconds]
        found[name] = max(0.0, median(each) / len(gone) / NEW_TOKENS)
        totals.append(decode.base_seconds / NEW_TOKENS)
    told = ", ".join(f"{1000 * seconds:.3f} ms one {name}" for name, seconds in found.items())
    reporter.note(f"one token behind {depth:,}: {1000 * median(totals):.3f} ms in all, {told}")
    return LatencyTable(
        attn={name: seconds for name, seconds in found.items() if name != "mlp"}, mlp=found["mlp"],
        total=median(totals), device=device, dtype=dtype, context=depth, batch=batch, rounds=ROUNDS,
    )  # fmt: skip


@contextmanager
def _bypassing(model: LoadedModel, plan: DropPlan, architecture: Architecture) -> Iterator[LoadedModel]:
    from hubprune.core.bypass import bypassed

    with bypassed(model.model, plan, architecture):
        yield model
