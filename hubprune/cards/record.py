"""Read a published hubprune.json back as the report that it was written from, in so far as it was published.

What a publish depends on, in named parts, so that the next one knows what changed without computing anything.

A fingerprint maps parts to named values: a commit, a version, a setting as the recipe has it, or a SHA-256.  It is part
of hubprune.json.  What may differ between two machines that are asked for the same is no part of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubprune.cards.card import template_hash
from hubprune.cards.manifest import MANIFEST, SCHEMA_VERSION, content_digest
from hubprune.cards.markdown import refuse_unsafe
from hubprune.cards.snippet import SNIPPET_TEMPLATE
from hubprune.core.artifacts import PublishReport, RepoFile
from hubprune.core.errors import CheckpointError
from hubprune.core.strict import parse_json
from hubprune.core.templates import template_folder

__all__ = [
    "CARD_PART", "Change", "Fingerprint", "PublishRecord", "card_part", "changes", "parse_record", "read_record",
    "sha256", "snippet_part", "told",
]  # fmt: skip


# ---- fingerprint ---------------------------------------------------------------------------------------------------


Fingerprint = Mapping[str, Mapping[str, str]]
CARD_PART = "card"
"""The part that nothing depends on but the card: another of it needs no computing."""
DIGEST = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
LONGEST = 40
"""Characters of a value that is shown whole."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value of a fingerprint that is another now."""

    part: str
    name: str
    before: str | None
    """None where there was none."""
    now: str | None


def sha256(text: str) -> str:
    """Compute the SHA-256 of a text, in 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def card_part(*, notes: str | None, templates: Path | None) -> dict[str, str]:
    """Say what a card depends on besides what was found.

    Args:
        notes: the author's own words, as the card takes them.
        templates: folder of the user whose templates win over the shipped ones.
    """
    return {"templates": template_hash(templates), **({"notes": sha256(notes)} if notes else {})}


def snippet_part(templates: Path | None) -> dict[str, str]:
    """Say what the code of a card depends on, which is run before it is shown.

    Args:
        templates: folder of the user whose templates win over the shipped ones.
    """
    own = templates / SNIPPET_TEMPLATE if templates else None
    path = own if own and own.is_file() else template_folder("card") / SNIPPET_TEMPLATE
    return {"template": hashlib.sha256(path.read_bytes()).hexdigest()}


def changes(before: Fingerprint, now: Fingerprint) -> tuple[Change, ...]:
    """List what differs between two fingerprints, part by part."""
    return tuple(
        Change(part=part, name=name, before=old.get(name), now=new.get(name))
        for part in dict.fromkeys((*now, *before))
        for old, new in [(before.get(part, {}), now.get(part, {}))]
        for name in dict.fromkeys((*new, *old))
        if old.get(name) != new.get(name)
    )


def told(found: tuple[Change, ...]) -> str:
    """Say in one line what changed, as in `base: commit 1a2b3c4d -> 5e6f7a8b; benchmarks: limit 100 -> 200`."""
    return "; ".join(f"{part}: {', '.join(map(_words, rows))}" for part, rows in groupby(found, lambda c: c.part))


def _words(change: Change) -> str:
    values = [_short(value) for value in (change.before, change.now)]
    if change.before is None:
        return " ".join(filter(None, ("new", change.name, values[1])))
    if change.now is None:
        return f"no {change.name} any more"
    return f"{change.name} changed" if None in values else f"{change.name} {values[0]} -> {values[1]}"


def _short(value: str | None) -> str | None:
    """Shorten a commit; None for what tells nobody anything."""
    if value is None or DIGEST.fullmatch(value) or len(value) > LONGEST:
        return None
    return value[:8] if COMMIT.fullmatch(value) else value


# ---- record --------------------------------------------------------------------------------------------------------


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
