"""The top of the card: the sentence with the numbers, the table at a glance, how to use the model.

What the card says of narrower MLPs: how many neurons went, and by which importance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import quote

from hubprune.cards.context import CustomCode, Link, Printed, Table, Usage
from hubprune.cards.free_text import loop_change, wrapped
from hubprune.cards.markdown import (
    INTERVAL,
    NONE,
    change_percent,
    count,
    interval,
    listing,
    plain,
    signed,
    size_change,
    with_interval,
)
from hubprune.cards.measured import speed_rows
from hubprune.cards.snippet import Snippet
from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import (
    BaseCheckpoint,
    BenchmarkComparison,
    DropPlan,
    Layout,
    Refreshed,
    RepetitionComparison,
    SnippetRun,
    SpeedReport,
    SublayerKind,
    TaskComparison,
    Verification,
    WidthMetric,
    WrittenCheckpoint,
)
from hubprune.core.console import size
from hubprune.core.devices import resolve_dtype
from hubprune.core.privacy import page

__all__ = ["base_link", "glance", "sentences", "share", "summary", "usage", "width_rows", "worst_task"]


# ---- widths --------------------------------------------------------------------------------------------------------


FORMULAS: Mapping[WidthMetric, str] = {
    "max_abs": "max|g| + max|u|",
    "ppm": "max g + |min g| + max u + |min u|",
    "vow": "var g + var u",
    "pon": "the L1 norm of g times the L1 norm of u",
    "l2": "the L2 norm of g plus the L2 norm of u",
}
"""Importance of a neuron, of whose rows g is the gate's and u the up projection's."""


def _widths(plan: DropPlan) -> list[tuple[int, int]]:
    """List the neurons before and after of every MLP that stays."""
    if plan.widths is None:
        return []
    pairs = enumerate(zip(plan.widths.before, plan.widths.kept, strict=True))
    return [pair for layer, pair in pairs if layer not in plan.gone("mlp")]


def share(plan: DropPlan) -> str | None:
    """Say which share of the neurons is removed, and the width before and after; None where none are."""
    if not (pairs := _widths(plan)):
        return None
    before, now = (sum(column) for column in zip(*pairs, strict=True))
    said = f"{plain(100 * (1 - now / before), digits=2)} % of the neurons of its MLPs removed"
    if len(set(pairs)) == 1:
        return f"{said} ({count(pairs[0][0])} → {count(pairs[0][1])} in each)"
    return f"{said} ({count(before)} → {count(now)} in all)"


def width_rows(plan: DropPlan) -> list[tuple[str, ...]]:
    """Compare the widths: one row where any changed."""
    if not (pairs := _widths(plan)):
        return []
    alike = len(set(pairs)) == 1
    before, now = pairs[0] if alike else (sum(column) for column in zip(*pairs, strict=True))
    label = "Neurons per MLP" if alike else "Neurons of the MLPs that stay"
    return [(label, count(before), count(now), change_percent(before, now))]


def sentences(plan: DropPlan) -> list[str]:
    """Say how many neurons of which MLP stay, and why these."""
    if plan.widths is None:
        return []
    changes = [
        (pair, layers) for pair, layers in plan.widths.changes.items() if not set(layers) & set(plan.gone("mlp"))
    ]
    if len(set(_widths(plan))) == 1:
        kept = [f"{count(pair[1])} of {count(pair[0])} in every MLP" for pair, _ in changes]
    else:
        kept = [
            f"{count(pair[1])} of {count(pair[0])} in layer{'s'[: len(layers) - 1]} {listing(layers)}"
            for pair, layers in changes
        ]
    said = [
        f"Neurons that stay: {'; '.join(kept)}.",
        f"They are those with the highest {plan.widths.metric}: {FORMULAS[plan.widths.metric]}, where g and u are a"
        " neuron's rows of the gate and the up projection.",
    ]
    if plan.widths.multiple > 1:
        said.append(
            f"Widths were rounded to a multiple of {plan.widths.multiple}: another share may have been asked for."
        )
    return said


# ---- overview ------------------------------------------------------------------------------------------------------


def base_link(base: BaseCheckpoint, *, endpoint: str) -> Link:
    """Name the base, with its page at the pinned commit where it is on a Hub."""
    # The Hub's names need no quoting; a name that broke the link would break the card.
    url = page(quote(base.name, errors="replace"), endpoint=endpoint) if base.commit else None
    return Link(name=base.name, url=f"{url}/tree/{base.commit}" if url else None)


def summary(plan: DropPlan, *, checkpoint: WrittenCheckpoint, benchmarks: BenchmarkComparison | None) -> str:
    """Say in one sentence what was done, with its numbers; it follows "This is <base> with"."""
    parts = [
        f"{count(checkpoint.parameters)} parameters instead of {count(checkpoint.base_parameters)}"
        f" ({change_percent(checkpoint.base_parameters, checkpoint.parameters)})",
        _told_cache(checkpoint),
    ]
    if benchmarks and (mean := benchmarks.mean_points):
        told = f" ({INTERVAL}{ends})" if (ends := interval(mean)) else ""
        parts.append(f"{signed(mean.value)} points on average over {_task_count(benchmarks)}{told}")
    return f"{_removed(plan)}: {', '.join(parts)}."


def _told_cache(checkpoint: WrittenCheckpoint) -> str:
    base, now = checkpoint.base_kv_bytes_per_token, checkpoint.kv_bytes_per_token
    if base == now:
        return f"an unchanged KV cache of {count(now)} bytes per token"
    return f"a KV cache of {count(now)} instead of {count(base)} bytes per token ({change_percent(base, now)})"


def _removed(plan: DropPlan) -> str:
    if whole := _whole_layers(plan):
        told = f"{len(whole)} of its {plan.num_hidden_layers} layers removed"
        named = f"{'layer' if len(whole) == 1 else 'layers'} {listing(whole)}, counted from 0"
        return " and ".join([f"{told} ({named})", *filter(None, [share(plan)])])
    kinds = [(kind, name, layers) for kind, name in NAMES if (layers := plan.layers(kind))]
    parts = [
        f"{len(layers)} of its {_present(plan, kind)} {name} sublayers removed"
        f" ({'layer' if len(layers) == 1 else 'layers'} {listing(layers)}, counted from 0)"
        for kind, name, layers in kinds
    ]
    return " and ".join([*parts, *filter(None, [share(plan)])])


def _whole_layers(plan: DropPlan) -> tuple[int, ...]:
    """Return the layers that went, where nothing but whole layers did and the base lacks nothing."""
    attn, mlp = plan.layers("attn"), plan.layers("mlp")
    return attn if attn == mlp and not any(plan.absent_layers.values()) else ()


NAMES: tuple[tuple[Literal["attn"], str], tuple[Literal["mlp"], str]] = (("attn", "attention"), ("mlp", "MLP"))
"""Kind of sublayer -> what the card calls it."""


def _task_count(benchmarks: BenchmarkComparison) -> str:
    tasks = [t for t in benchmarks.main_metrics() if t.is_share]
    return "1 benchmark" if len(tasks) == 1 else f"{len(tasks)} benchmarks"


def glance(
    plan: DropPlan,
    *,
    base: BaseCheckpoint,
    checkpoint: WrittenCheckpoint,
    benchmarks: BenchmarkComparison | None,
    repetition: RepetitionComparison | None = None,
    speed: SpeedReport | None = None,
) -> Table:
    """Compare base and result in the figures that a reader asks for first."""
    rows = [
        _count_row("Parameters", base=checkpoint.base_parameters, now=checkpoint.parameters),
        *_sublayer_rows(plan),
        *width_rows(plan),
        _size_row(checkpoint),
        _kv_row(checkpoint, dtype=resolve_dtype("auto", base.config)),
        *speed_rows(speed),
        *_benchmark_rows(benchmarks),
        *_loop_rows(repetition),
    ]
    return Table(columns=("", "Base", "This model", "Change (95 % interval)"), align="lrrr", rows=tuple(rows))


def _loop_rows(repetition: RepetitionComparison | None) -> list[tuple[str, ...]]:
    if repetition is None:
        return []
    loops = repetition.loops
    counts = (f"{number} of {loops.texts}" for number in (loops.base, loops.pruned))
    return [("Texts that end in a loop", *counts, loop_change(loops))]


def _count_row(label: str, *, base: int, now: int) -> tuple[str, ...]:
    return label, count(base), count(now), change_percent(base, now)


def _sublayer_rows(plan: DropPlan) -> list[tuple[str, ...]]:
    total, gone = plan.num_hidden_layers, len(plan.removed_layers)
    layers: list[tuple[str, ...]] = [("Layers", str(total), str(total - gone), signed(-gone, digits=0))] if gone else []
    dropped = [(kind, name, len(plan.layers(kind))) for kind, name in NAMES if kind == "attn" or plan.layers(kind)]
    return layers + [
        (f"{name[0].upper()}{name[1:]} sublayers", str(total), str(total - n), signed(-n, digits=0))
        for kind, name, n in dropped
        if (total := _present(plan, kind))
    ]


def _present(plan: DropPlan, kind: SublayerKind) -> int:
    """Count the sublayers of a kind that the base has."""
    return plan.num_hidden_layers - len(plan.absent_layers[kind])


def _size_row(checkpoint: WrittenCheckpoint) -> tuple[str, ...]:
    label = f"Weights on disk ({', '.join(checkpoint.dtypes)})"
    change = size_change(checkpoint.base_weight_bytes, checkpoint.weight_bytes)
    return label, size(checkpoint.base_weight_bytes), size(checkpoint.weight_bytes), change


def _kv_row(checkpoint: WrittenCheckpoint, *, dtype: str) -> tuple[str, ...]:
    base, now = checkpoint.base_kv_bytes_per_token, checkpoint.kv_bytes_per_token
    return _count_row(f"KV cache, bytes per token at {dtype}", base=base, now=now)


def _benchmark_rows(benchmarks: BenchmarkComparison | None) -> list[tuple[str, ...]]:
    if not benchmarks or not (mean := benchmarks.mean_points):
        return []
    label = f"Mean of {_task_count(benchmarks)}, %"
    tasks = [t for t in benchmarks.main_metrics() if t.is_share]
    means = [sum(values) / len(values) for values in zip(*((t.base.value, t.pruned.value) for t in tasks), strict=True)]
    rows: list[tuple[str, ...]] = [(label, *_percentages(means), with_interval(mean, unit=" points"))]
    if len(tasks) > 1 and (worst := worst_task(benchmarks)) and worst.points:
        values = _percentages([worst.base.value, worst.pruned.value])
        label = f"Largest loss: {worst.task}, {worst.metric}, %"
        rows.append((label, *values, with_interval(worst.points, unit=" points")))
    return rows


def _percentages(shares: list[float]) -> tuple[str, ...]:
    return tuple(plain(100 * share, digits=2) for share in shares)


def worst_task(benchmarks: BenchmarkComparison) -> TaskComparison | None:
    """Return the main metric that lost most points, or None where none lost any."""
    changes = [(t.points.value, i, t) for i, t in enumerate(benchmarks.main_metrics()) if t.points]
    change, _, task = min(changes, default=(0.0, 0, None))
    return task if change < 0 else None


def usage(
    repo_id: str,
    *,
    tag: str | None,
    base: BaseCheckpoint,
    plan: DropPlan,
    checkpoint: WrittenCheckpoint,
    verification: Verification,
    snippet: SnippetRun | None,
    refreshed: Sequence[Refreshed] = (),
) -> Usage:
    """Show the snippet that was run, with what it printed; one for another place than this says nothing here.

    Of a refreshed repo it is the same code with the tag of the files that are there now.
    """
    code = _custom_code(plan, checkpoint)
    versions = [_versions(base)] if code else []
    run = snippet if snippet and (snippet.repo_id, snippet.revision) == (repo_id, tag) else None
    before = _run_before(snippet, repo_id, tag) if refreshed and not run else None
    shown, printed = (run.code, _printed(run)) if run else before or (None, None)
    return Usage(
        snippet=shown or Snippet(repo_id=repo_id, revision=tag, custom_code=code is not None).code(),
        printed=printed,
        code=code,
        runtimes=(RUNTIMES[plan.layout], *versions, _really_run(verification)),
    )


def _run_before(snippet: SnippetRun | None, repo_id: str, tag: str | None) -> tuple[str, Printed] | None:
    """Return the code that was run before a refresh, with the tag of the files that are there now."""
    if snippet is None or snippet.repo_id != repo_id or not (snippet.revision and tag):
        return None
    label = (
        f"Before this repo was refreshed, this code was run on its files as they are at {snippet.revision}, with"
        f" transformers {snippet.transformers}. It printed:"
    )
    return snippet.code.replace(snippet.revision, tag), Printed(label=label, text=wrapped(snippet.output))


def _printed(snippet: SnippetRun) -> Printed:
    label = (
        "Before this repo was published, exactly this code was run on its files in a fresh process, with transformers"
        f" {snippet.transformers}. It printed:"
    )
    return Printed(label=label, text=wrapped(snippet.output))


RUNTIMES: Mapping[Layout, str] = {
    "stock": "The files are those of an ordinary model of the base's family: what runs the base runs them.",
    "nemotron-nas": "The layout is NVIDIA's nemotron-nas, which vLLM, SGLang, mlx-lm and llama.cpp know by themselves;"
    " transformers needs the modeling file of this repo.",
    "pruned": "Only transformers can load this layout, with the modeling file of this repo.",
}


def _versions(base: BaseCheckpoint) -> str:
    """Say which transformers runs the modeling file, and what of the snippet some of them call otherwise."""
    floor = architecture_of(base.config, name=base.name).floor
    needed = ".".join(map(str, floor))
    return f"That file needs transformers {needed} or newer; before 4.56, from_pretrained takes torch_dtype for dtype."


def _really_run(verification: Verification) -> str:
    run = [f"transformers {verification.transformers}", *verification.runtimes]
    return f"For this card the files were run in {' and '.join(run)}, and nowhere else."


def _custom_code(plan: DropPlan, checkpoint: WrittenCheckpoint) -> CustomCode | None:
    for file in checkpoint.files:
        if file.path.startswith("modeling_") and file.path.endswith(".py"):
            return CustomCode(
                file=file.path, sha256=file.sha256 or NONE, without=plan.parts, shrinks_cache=bool(plan.gone("attn"))
            )
    return None
