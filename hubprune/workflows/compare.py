"""Compare two pruned checkpoints or plans: what went, what is left, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hubprune.cards.manifest import MANIFEST, files_digest

# fmt: off
# isort: off
from hubprune.core.artifacts import (
    Agreement, CheckpointComparison, ComparedMetric, ComparedSide, DroppedSets, DropPlan, HealingRecord, LayerScores,
    RepoFile, SameBase,
    QuantizationRecord, SublayerKind, TaskComparison,
)
# isort: on
# fmt: on
from hubprune.core.config import read_config, read_structure
from hubprune.core.devices import with_dtype
from hubprune.core.errors import BaseNotFoundError, CheckpointError
from hubprune.core.memory import kv_bytes_per_layer
from hubprune.core.recipe import REPO_ID, BaseModelSpec
from hubprune.core.requests import CompareRequest
from hubprune.core.strict import parse_json
from hubprune.core.weights import open_weights
from hubprune.hub import repos as hub
from hubprune.hub.session import HubSession
from hubprune.pruning.aggregation import agreements
from hubprune.pruning.checkpoint import count_parameters
from hubprune.pruning.verify import base_of, plan_of
from hubprune.quantizing.packing import is_part
from hubprune.quantizing.schemes import record_of
from hubprune.workflows.healed import RECORD as HEALING
from hubprune.workflows.healed import healed_by
from hubprune.workflows.run import open_session

Kind = TypeVar("Kind", bound=BaseModel)


@dataclass(frozen=True)
class Source:
    """All that could be read of one of the two."""

    side: ComparedSide
    scores: LayerScores | None = None
    tasks: tuple[TaskComparison, ...] = ()
    circumstances: tuple[tuple[str, object], ...] = ()
    """What else decides the values of benchmarks: dtype, device, version of lm-eval, chat template."""


def compare(request: CompareRequest, *, session: HubSession | None = None) -> CheckpointComparison:
    """Compare two pruned folders, repos, reports or plans.

    Repos may be named with `@` and a revision where it is not main.

    Raises:
        BaseNotFoundError: one of them is not there.
        CheckpointError: one was not written by hubprune, or is broken.
    """
    session = session or open_session(request.endpoint)
    return compared(read(request.first, session=session), read(request.second, session=session))


def read(name: str, *, session: HubSession) -> Source:
    """Read what one of the two says of itself; weights are counted only where nothing else tells their number."""
    path = Path(name)
    if (path / MANIFEST).is_file():
        path /= MANIFEST
    if path.is_file():
        return _of_json(name, path.read_bytes())
    if path.is_dir():
        config = read_config(path, quantized=True)
        structure, record = read_structure(config, name=name), record_of(config)
        layers = structure.num_hidden_layers - len(structure.no_attn)
        weights = open_weights(path)
        if record:
            weights = weights.used({t.name: None for _, t in weights if is_part(t.name, t.dtype)})
        counted: dict[str, object] = {
            "parameters": count_parameters(weights, config, structure.architecture)
            + (record.quantized_parameters if record else 0),
            "kv_bytes_per_token": kv_bytes_per_layer(with_dtype(config, path)) * layers,
        }
        if (path / HEALING).is_file():
            healing = _understood(HealingRecord, parse_json((path / HEALING).read_bytes(), where=HEALING))
            counted |= {"training": _trained(healing)} if healing else {}
        return Source(_side_of_config(name, config).model_copy(update=counted))
    repo_id, _, revision = name.partition("@")
    if not REPO_ID.fullmatch(repo_id):
        raise BaseNotFoundError(
            f"{name} is neither a folder, nor a file, nor a repo id.", hint="A repo id looks like owner/name."
        )
    repo = hub.resolve_repo(
        BaseModelSpec.of(repo_id, revision=revision or "main"), session=session, needs_config=False
    )  # fmt: skip
    if not any(file.path == MANIFEST for file in repo.files):
        return Source(_side_of_config(name, repo.config))
    manifest = session.ask(
        lambda api: api.hf_hub_download(repo_id, MANIFEST, revision=repo.commit), doing=f"read {MANIFEST} of {repo_id}"
    )
    return _of_json(name, Path(manifest).read_bytes())


def _side_of_config(name: str, config: Mapping[str, Any]) -> ComparedSide:
    base, commit = base_of(config)
    # A config.json says what went, not by which method.
    told: dict[str, object] = {"methods": ()}
    if record := record_of(config):
        told["quantization"] = _in_fewer_bits(record)
    if method := healed_by(config):
        told["training"] = {"lora": "healed: lora", "full": "healed: full"}.get(method, "elsewhere")
    return _side(name, plan_of(config), base=base, commit=commit).model_copy(update=told)


def _in_fewer_bits(record: QuantizationRecord) -> str:
    bits = f"{record.bits_per_weight:g} bits per weight of {record.quantized_parameters:,}"
    kl = f", KL {record.divergence.kl:.4f} nats per token" if record.divergence else ""
    return f"{record.scheme} by {record.method}, {bits}{kl}"


def _trained(record: HealingRecord) -> str:
    return f"healed: {record.method}, {record.steps:,} steps, loss {record.loss}"


def _weight_files(values: Mapping[str, Any]) -> list[RepoFile]:
    """List the weight files that a manifest or a report names, with their SHA-256."""
    rows = values.get("files")
    if isinstance(rows, dict):
        listed = [{"path": path, **row} for path, row in rows.items() if isinstance(row, dict)]
    else:
        checkpoint = values.get("checkpoint")
        listed = checkpoint.get("files") if isinstance(checkpoint, dict) else None  # type: ignore[assignment]
    found = (_understood(RepoFile, row) for row in (listed if isinstance(listed, list) else []))
    return [file for file in found if file and file.sha256 and file.path.endswith(".safetensors")]


def _of_json(name: str, data: bytes) -> Source:
    """Read a manifest, a report or a plan; what else than the plan cannot be understood counts as absent."""
    values = parse_json(data, where=name)
    if "plan" not in values:
        return Source(_side(name, _plan(values, name), base=None, commit=None))
    told = {key: part for key, part in values.items() if isinstance(part, dict)}
    base, checkpoint, benchmarks = (told.get(key, {}) for key in ("base", "checkpoint", "benchmarks"))
    repo_id, commit = base.get("repo_id") or base.get("name"), base.get("commit")
    side = _side(
        name,
        _plan(values["plan"], name),
        base=repo_id if isinstance(repo_id, str) else None,
        commit=commit if isinstance(commit, str) else None,
    )
    numbers = ((key, checkpoint.get(key)) for key in ("parameters", "kv_bytes_per_token"))
    found: dict[str, object] = {key: number for key, number in numbers if isinstance(number, int)}
    sibling = told.get("sibling", {})
    if healing := _understood(HealingRecord, {**(sibling.get("healing") or {}), "seconds": 0.0}):
        found["training"] = _trained(healing)
    elif sibling.get("elsewhere"):
        found["training"] = "elsewhere"
    if weights := _weight_files(values):
        found["weights_sha256"] = files_digest(weights)
    quantized = sibling.get("quantized")
    record_here = quantized.get("record") if isinstance(quantized, dict) else None
    if quantization := _understood(QuantizationRecord, record_here):
        found["quantization"] = _in_fewer_bits(quantization)
    if scores := _understood(LayerScores, values.get("scores")):
        record = scores.calibration
        size = f"{record.documents:,} {record.unit}, {record.tokens:,} tokens"
        found["calibration"] = f"{record.mix}: {size}, seed {record.seed}"
        found["calibration_sha256"] = record.token_sha256
    rows = benchmarks.get("tasks")
    tasks = [_understood(TaskComparison, row) for row in (rows if isinstance(rows, list) else [])]
    return Source(
        side.model_copy(update=found),
        scores=scores,
        tasks=tuple(task for task in tasks if task),
        circumstances=(
            *((key, benchmarks.get(key)) for key in ("dtype", "device", "lm_eval")),
            ("prompts", "through the chat template" if benchmarks.get("chat") else "as the tasks write them"),
        ),
    )


def _plan(values: Any, name: str) -> DropPlan:
    try:
        return DropPlan.model_validate(values)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise CheckpointError(
            f"{name} holds no plan that this version of hubprune can read: {place}: {error.errors()[0]['msg']}.",
            hint="Name a folder or repo that hubprune wrote, its hubprune.json, a report, or a plan.",
        ) from error


def _understood(kind: type[Kind], values: Any) -> Kind | None:
    try:
        return kind.model_validate(values)
    except ValidationError:
        return None


def _side(name: str, plan: DropPlan, *, base: str | None, commit: str | None) -> ComparedSide:
    return ComparedSide(
        name=name, base=base, base_commit=commit, num_hidden_layers=plan.num_hidden_layers, methods=plan.methods,
        layout=plan.layout, dropped_attn=plan.layers("attn"), dropped_mlp=plan.layers("mlp"),
        widths=plan.widths.kept if plan.widths else None,
    )  # fmt: skip


def compared(first: Source, second: Source) -> CheckpointComparison:
    """Compare what was read of two; layers and scores of different bases have nothing to do with each other."""
    one, other = first.side, second.side
    base = same_base(one, other)
    rows: tuple[tuple[SublayerKind, tuple[int, ...], tuple[int, ...]], ...] = (
        ("attn", one.dropped_attn, other.dropped_attn), ("mlp", one.dropped_mlp, other.dropped_mlp),
    )  # fmt: skip
    dropped = (
        DroppedSets(
            kind=kind,
            both=tuple(sorted({*a} & {*b})),
            only_first=tuple(sorted({*a} - {*b})),
            only_second=tuple(sorted({*b} - {*a})),
        )
        for kind, a, b in rows
    )
    return CheckpointComparison(
        first=one, second=other, base=base, dropped=tuple(dropped) if base != "different" else (),
        agreements=_agreements(first, second) if base != "different" else (), benchmarks=tuple(_pairs(first, second)),
        notes=tuple(_notes(first, second, base)),
    )  # fmt: skip


def same_base(first: ComparedSide, second: ComparedSide) -> SameBase:
    """Tell whether two were made of the same base, at the same commit."""
    if first.num_hidden_layers != second.num_hidden_layers:
        return "different"
    for one, other in ((first.base, second.base), (first.base_commit, second.base_commit)):
        if one is None or other is None:
            return "unknown"
        if one != other:
            return "different"
    return "same"


def _agreements(first: Source, second: Source) -> tuple[Agreement, ...]:
    if first.scores is None or second.scores is None:
        return ()
    one, other = first.scores.mean, second.scores.mean
    shared = set(one.kinds) & set(other.kinds)
    if any(len(getattr(one, kind)) != len(getattr(other, kind)) for kind in shared):
        return ()
    return agreements(one, other, lowest=max(1, *(len(source.side.dropped_attn) for source in (first, second))))


def _pairs(first: Source, second: Source) -> Iterator[ComparedMetric]:
    def documents_of(task: TaskComparison) -> tuple[object, ...]:
        """Return what has to be equal for two values to come from the same questions."""
        return (
            task.task, task.metric, task.version, task.num_fewshot, task.documents, task.dataset, task.dataset_config,
            task.dataset_commit, task.split,
        )  # fmt: skip

    others = {documents_of(task): task for task in second.tasks}
    for task in first.tasks:
        if other := others.get(documents_of(task)):
            factor = 100 if task.is_share else 1
            yield ComparedMetric(
                task=task.task,
                metric=task.metric,
                documents=task.documents,
                first=task.pruned.value,
                second=other.pruned.value,
                first_base=task.base.value,
                second_base=other.base.value,
                change=factor * (other.pruned.value - task.pruned.value),
                unit="points" if task.is_share else "own",
            )


def _notes(first: Source, second: Source, base: SameBase) -> Iterator[str]:
    if base == "different":
        yield (
            "The bases differ: layer numbers and scores of one say nothing about the other, and a difference in "
            "benchmarks is not what pruning did."
        )
    elif base == "unknown":
        yield "Whether the bases are the same is not known: at least one of the two names no commit."
    if (first.scores is None) != (second.scores is None):
        yield f"Only {(first if first.scores else second).side.name} has scores."
    if not first.tasks or not second.tasks:
        if first.tasks or second.tasks:
            yield f"Only {(first if first.tasks else second).side.name} has benchmarks."
        return
    shared = {(pair.task, pair.metric) for pair in _pairs(first, second)}
    named = ({(task.task, task.metric) for task in source.tasks} for source in (first, second))
    if other := sorted({task for task, metric in set.intersection(*named) - shared}):
        yield f"Measured on other documents, with other shots or by another version, not compared: {', '.join(other)}."
    if changed := [
        f"{key} {one} and {other}"
        for (key, one), (_, other) in zip(first.circumstances, second.circumstances, strict=True)
        if one != other
    ]:
        yield f"The benchmarks ran under different circumstances: {', '.join(changed)}."
