"""Manifests read strictly, as the reports that they were written from, in so far as these were published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubprune.cards.manifest import AS_THEY_ARE, MANIFEST, SCHEMA_VERSION, content_digest
from hubprune.cards.markdown import refuse_unsafe
from hubprune.core.artifacts import PublishReport, RepoFile, SiblingReport
from hubprune.core.errors import CheckpointError
from hubprune.core.strict import parse_json


@dataclass(frozen=True, kw_only=True)
class SiblingRecord:
    """What a manifest says of the publish that wrote a sibling."""

    values: Mapping[str, Any]
    report: SiblingReport
    files: Mapping[str, RepoFile]
    """By path, all published files but the manifest, with their SHA-256."""


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

    Raises:
        CheckpointError: it is of another version, or it was changed after it was written.
    """
    values = _intact(data, where=where)
    if isinstance(sibling := values.get("sibling"), dict):
        raise CheckpointError(
            f"{where} is that of a sibling of {sibling.get('pruned')!s:.200}, made of it in the same publish.",
            hint="What may change there changes with that: hubprune publish BASE --recipe recipe.yaml",
        )
    with _explained(where):
        files = {path: RepoFile(path=path, **row) for path, row in values["files"].items()}
        report = PublishReport.model_validate(_report_values(values))
        refuse_unsafe(report.notes or "", name=f"The notes in {where}")
    return PublishRecord(values=values, report=report, files=files)


def parse_sibling(data: bytes, *, where: str) -> SiblingRecord:
    """Read the bytes of a sibling's manifest, all of it or nothing.

    Raises:
        CheckpointError: it is no sibling's, of another version, or was changed after it was written.
    """
    values = _intact(data, where=where)
    if not isinstance(values.get("sibling"), dict):
        raise CheckpointError(f"{where} is not that of a sibling.", hint="Publish under another name.")
    with _explained(where):
        files = {path: RepoFile(path=path, **row) for path, row in values["files"].items()}
        report = SiblingReport.model_validate(_sibling_values(values, files))
    return SiblingRecord(values=values, report=report, files=files)


def _intact(data: bytes, *, where: str) -> Mapping[str, Any]:
    """Read a manifest of this version that says what it said when it was written."""
    values: Mapping[str, Any] = parse_json(data, where=where)
    if (schema := values.get("schema_version")) != SCHEMA_VERSION:
        by = f" by hubprune {writer}" if isinstance(writer := values.get("hubprune"), str) else ""
        raise CheckpointError(
            f"{where} was written{by} with schema version {schema!r}; this hubprune reads version {SCHEMA_VERSION}.",
            hint="Use the version that wrote it, or publish again with this one.",
        )
    # A card says that everything in it was measured, so figures that no run has found are refused.
    if (digest := content_digest(values)) is None or digest != values.get("content_sha256"):
        raise CheckpointError(
            f"{where} was changed after it was written: its content has another SHA-256 than it names.",
            hint="Take it from the Hub again, or publish again.",
        )
    return values


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Say where a manifest is not as one is written."""
    try:
        yield
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "its root"
        raise CheckpointError(f"{where} is broken at {place}: {problem['msg']}.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} is broken: {error!r}.") from error


def _report_values(values: Mapping[str, Any]) -> dict[str, Any]:
    run, recipe, base, benchmarks = values["run"], values["recipe"], values["base"], values["benchmarks"]
    seconds = dict(run["seconds"])
    # Of the base's files those are known that were carried over, licences among them.
    files = [{"path": path, **values["files"][path]} for path in values["checkpoint"]["files"]]
    # The time of their stage is all that is known of the benchmarks'.
    timed = None if benchmarks is None else {**benchmarks, "seconds": seconds.get("benchmarks", 0.0)}
    return {
        **{name: values[name] for name in AS_THEY_ARE},
        "speed": values.get("speed"),
        "refreshed": values.get("refreshed", ()),
        "beside": values.get("beside", ()),
        "recipe": {**recipe, "target": {**recipe["target"], "create_pr": run["create_pr"]}},
        "repo_id": run["repo_id"],
        "endpoint": run["endpoint"],
        "base": {"name": base["repo_id"], "files": files, **{key: base[key] for key in ("commit", "card", "config")}},
        "checkpoint": {**values["checkpoint"], "files": files},
        "benchmarks": timed,
        "published": None,
        "environment": {**run["environment"], "hubprune": values["hubprune"], "versions": values["versions"]},
        "seconds": seconds,
        "fingerprint": values.get("fingerprint", {}),
        "stage_keys": run.get("stage_keys", {}),
    }


def _sibling_values(values: Mapping[str, Any], files: Mapping[str, RepoFile]) -> dict[str, Any]:
    """Return a sibling's report as its manifest keeps it."""
    run, base, told = values["run"], values["base"], dict(values["sibling"])
    own = [files[path].model_dump() for path in values["checkpoint"]["files"]]
    recipe, compared, written = values["recipe"], told.pop("benchmarks"), {**values["checkpoint"], "files": own}
    if told["quantized"]:
        told["quantized"] = {**told["quantized"], "written": written}
    if seen := told.pop("verification", None):
        told["healed"] = {"written": written, "verification": seen}
    if told.get("healing"):
        told["healing"] = {**told["healing"], "seconds": run.get("training_seconds", 0.0)}
    parts = {**compared, "both": values["benchmarks"]} if compared else {}
    timed = {k: {**part, "seconds": 0.0} if isinstance(part, dict) else part for k, part in parts.items()}
    of = "recovered" if told["kind"] == "healed" else "benchmarks"
    return {
        **{**told, "checkpoint": {**told["checkpoint"], "files": ()}, of: timed or None},
        **{name: values[name] for name in ("plan", "snippet", "fingerprint")},
        **{name: run[name] for name in ("repo_id", "endpoint", "stage_keys")},
        "recipe": {**recipe, "target": {**recipe["target"], "create_pr": run["create_pr"]}},
        "base": {"name": base["repo_id"], "files": own, **{key: base[key] for key in ("commit", "card", "config")}},
        "environment": {**run["environment"], "hubprune": values["hubprune"], "versions": values["versions"]},
        "seconds": dict(run["seconds"]),
    }
