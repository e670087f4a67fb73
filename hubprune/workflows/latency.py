"""How long one sublayer of each kind takes on this device: a table, measured once and kept in the work folder.

Half of the sublayers of a kind are left out of the loaded base, and both take turns, round by round, as `hubprune
speed` times two models: what a round saves, over the number that was left out, is what one of them takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import DroppedSublayer, DropPlan, Environment, LatencyTable, SublayerKind
from hubprune.core.console import Reporter
from hubprune.core.errors import RecipeError
from hubprune.core.files import StageStore, key_of
from hubprune.core.memory import available_bytes, device_bytes
from hubprune.pruning.layouts import Runnable
from hubprune.pruning.selection import Shape

if TYPE_CHECKING:
    from hubprune.evaluation.models import LoadedModel

NEW_TOKENS, ROUNDS = 16, 20
SHARE = 0.6
"""Of the free memory, what weights may take where they are timed."""


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
