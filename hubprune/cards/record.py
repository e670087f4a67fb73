"""Read a published hubprune.json back as the report that it was written from, in so far as it was published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubprune.cards.manifest import MANIFEST, SCHEMA_VERSION, content_digest
from hubprune.cards.notes import refuse_unsafe
from hubprune.core.artifacts import PublishReport, RepoFile
from hubprune.core.errors import CheckpointError
from hubprune.core.strict_json import parse_json

__all__ = ["PublishRecord", "parse_record", "read_record"]

AS_THEY_ARE = ("scores", "plan", "verification", "generation", "snippet", "notes")
"""Parts of the report that the manifest holds unchanged."""


@dataclass(frozen=True, kw_only=True)
class PublishRecord:
    """What a manifest says of the publish that wrote it."""

    values: Mapping[str, Any]
    """The manifest itself."""
    report: PublishReport
    """Without scores of single documents, local folders, and how long the benchmarks alone took."""
    files: Mapping[str, RepoFile]
    """By path, all published files but the manifest, with their SHA-256."""


def read_record(folder: Path) -> PublishRecord:
    """Read the manifest of a published folder, all of it or nothing.

    Raises:
        CheckpointError: there is none, it is of another version, or it was changed after it was written.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder.", hint="Name one that hubprune publish --out wrote.")
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no {MANIFEST}, so hubprune publish did not write it.",
            hint="Name a folder that hubprune publish --out wrote, or a download of a published repo.",
        )
    return parse_record(path.read_bytes(), where=str(path))


def parse_record(data: bytes, *, where: str) -> PublishRecord:
    """Read the bytes of a manifest, all of it or nothing.

    Args:
        data: of a hubprune.json.
        where: what an error calls it.

    Raises:
        CheckpointError: it is of another version, or it was changed after it was written.
    """
    values = parse_json(data, where=where)
    _check_version(values, where=where)
    _check_digest(values, where=where)
    try:
        files = {path: RepoFile(path=path, **row) for path, row in values["files"].items()}
        report = PublishReport.model_validate(_report_values(values))
        refuse_unsafe(report.notes or "", name=f"The notes in {where}")
    except ValidationError as error:
        problem = error.errors()[0]
        raise CheckpointError(f"{where} is broken at {_place(problem['loc'])}: {problem['msg']}.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} is broken: {error!r}.") from error
    return PublishRecord(values=values, report=report, files=files)


def _check_version(values: Mapping[str, Any], *, where: str) -> None:
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        writer = values.get("hubprune")
        by = f" by hubprune {writer}" if isinstance(writer, str) else ""
        raise CheckpointError(
            f"{where} was written{by} with schema version {version!r}; this hubprune reads version {SCHEMA_VERSION}.",
            hint="Use the version that wrote it, or publish again with this one.",
        )


def _check_digest(values: Mapping[str, Any], *, where: str) -> None:
    """Refuse figures that no run has found: a card says that everything in it was measured."""
    digest = content_digest(values)
    if digest is None or digest != values.get("content_sha256"):
        raise CheckpointError(
            f"{where} was changed after it was written: its content has another SHA-256 than it names.",
            hint="Take it from the Hub again, or publish again.",
        )


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "its root"


def _report_values(values: Mapping[str, Any]) -> dict[str, Any]:
    run, seconds = values["run"], dict(values["run"]["seconds"])
    recipe, checkpoint = values["recipe"], _checkpoint(values["checkpoint"], files=values["files"])
    versions = {"hubprune": values["hubprune"], "versions": values["versions"]}
    return {
        **{name: values[name] for name in AS_THEY_ARE},
        "speed": values.get("speed"),
        "refreshed": values.get("refreshed", ()),
        "recipe": {**recipe, "target": {**recipe["target"], "create_pr": run["create_pr"]}},
        "repo_id": run["repo_id"],
        "endpoint": run["endpoint"],
        "base": _base(values["base"], files=checkpoint["files"]),
        "checkpoint": checkpoint,
        "benchmarks": _benchmarks(values["benchmarks"], seconds=seconds.get("benchmarks", 0.0)),
        "published": None,
        "environment": {**run["environment"], **versions},
        "seconds": seconds,
        "fingerprint": values.get("fingerprint", {}),
        "stage_keys": run.get("stage_keys", {}),
    }


def _base(base: Mapping[str, Any], *, files: Any) -> dict[str, Any]:
    """Of the base's files those are known that were carried over, licences among them."""
    return {"name": base["repo_id"], "files": files, **{key: base[key] for key in ("commit", "card", "config")}}


def _checkpoint(checkpoint: Mapping[str, Any], *, files: Mapping[str, Any]) -> dict[str, Any]:
    return {**checkpoint, "files": [{"path": path, **files[path]} for path in checkpoint["files"]]}


def _benchmarks(benchmarks: Mapping[str, Any] | None, *, seconds: float) -> dict[str, Any] | None:
    """Give the benchmarks the time of their stage, which is all that is known of it."""
    return None if benchmarks is None else {**benchmarks, "seconds": seconds}
