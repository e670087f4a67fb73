"""`hubprune.json`, the record of a published repo that a program can read, and `recipe.yaml` beside it.

It is read in two ways: tolerantly, to compare a repo with what a publish is about to send, and strictly, as the report
that it was written from, in so far as that was published.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubprune.cards.markdown import refuse_unsafe
from hubprune.core.artifacts import PublishReport, RepoFile, WrittenCheckpoint
from hubprune.core.errors import CheckpointError, VerificationError
from hubprune.core.files import list_files, write_atomically
from hubprune.core.privacy import public_address, public_name, public_recipe, scrub, scrub_all
from hubprune.core.recipe import Recipe, parse
from hubprune.core.strict import parse_json

CARD = "README.md"
MANIFEST = "hubprune.json"
RECIPE = "recipe.yaml"
NOT_LISTED = (MANIFEST, ".gitattributes", ".cache/huggingface/")
"""Files that no manifest lists: itself, what the Hub puts into every repo, and what a download leaves beside it."""
SCHEMA_VERSION = 2
NOT_CONTENT = ("schema_version", "content_sha256", "files", "run")
READ_OF_THE_BASE = ("model_type", "auto_map", "num_hidden_layers", "max_position_embeddings", "dtype", "torch_dtype")
"""Keys of the base's config.json that a card may need."""
AS_THEY_ARE = ("scores", "plan", "verification", "generation", "snippet", "notes")
"""Parts of the report that the manifest holds unchanged."""


# ---- digests -----------------------------------------------------------------------------------------------------


def files_digest(files: Iterable[RepoFile]) -> str:
    """Compute the SHA-256 over (path, sha256) of all files in the order of their paths, in 64 hex digits."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.path):
        digest.update(f"{file.path}\0{file.sha256}\n".encode())
    return digest.hexdigest()


def checkpoint_tag(checkpoint: WrittenCheckpoint) -> str:
    """Return the tag that names exactly this checkpoint: `hubprune-` and 8 hex digits of its files' digest.

    The card names the tag, so the card's own bytes cannot be part of it.
    """
    return f"hubprune-{files_digest(checkpoint.files)[:8]}"


def content_digest(values: Mapping[str, Any]) -> str | None:
    """Compute the SHA-256 of what a publish decided and found, in 64 hex digits.

    The card's own hash is no part of it, nor is where, when and for whom the run took place.

    None for one that no publish can have written.
    """
    content = {key: value for key, value in values.items() if key not in NOT_CONTENT}
    listed = {path: row for path, row in _rows(values).items() if path != CARD}
    try:
        return hashlib.sha256(_json({"content": content, "files": listed}).encode()).hexdigest()
    except (ValueError, RecursionError):  # NaN, half of a surrogate pair, or too deep
        return None


def _rows(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return path -> what a manifest says of the file, where it is written as it has to be."""
    return files if isinstance(files := values.get("files"), dict) else {}


def _json(values: Any) -> str:
    return json.dumps(values, sort_keys=True, indent=2, allow_nan=False) + "\n"


# ---- writing -----------------------------------------------------------------------------------------------------


def write_recipe(folder: Path, *, recipe: Recipe, report: PublishReport) -> Path:
    """Write recipe.yaml: the base pinned to its commit, no local path."""
    path = folder / RECIPE
    write_atomically(path, scrub(public_recipe(recipe, base=report.base).to_yaml()))
    return path


def write_manifest(folder: Path, *, report: PublishReport, template_hash: str) -> tuple[RepoFile, ...]:
    """Write hubprune.json over everything else in the folder, and return all files; it has to be the last one written.

    Args:
        report: what the run did and saw; what may differ in another run of the same is apart from the content.
        template_hash: of the card templates, so that a card by other templates is another card.

    Raises:
        VerificationError: a file is not the one that was verified.
    """
    listed = tuple(f for f in list_files(folder) if f.path != MANIFEST)
    found = {f.path: f.sha256 for f in listed}
    for file in report.checkpoint.files:
        if found.get(file.path) != file.sha256:
            what = "was changed" if file.path in found else "has gone"
            raise VerificationError(
                f"{file.path} {what} since it was verified.", hint=f"Remove {folder} and run the command again."
            )
    content = scrub_all(_content(report)) | {"card_templates": template_hash}
    # Where, when and for whom it was made, which the same result may have otherwise.
    run = {
        "repo_id": report.repo_id,
        "create_pr": parse(Recipe, report.recipe).target.create_pr,
        "endpoint": public_address(report.endpoint),
        "environment": report.environment.model_dump(mode="json", exclude={"hubprune", "versions"}),
        "seconds": [[stage, seconds] for stage, seconds in report.seconds.items()],  # pairs, since their order counts
        "stage_keys": report.stage_keys,
    }
    text = _finished({**content, "run": scrub_all(run), "files": {f.path: _row(f) for f in listed}})
    write_atomically(folder / MANIFEST, text)
    return tuple(sorted((*listed, _described(MANIFEST, text.encode())), key=lambda f: f.path))


def replace_card(folder: Path, values: Mapping[str, Any], *, card: str) -> bool:
    """Write another card of the same run, and the manifest that lists it; files that stay as they are are not touched.

    Returns:
        Whether something was written.
    """
    files = {**values["files"], CARD: _row(_described(CARD, card.encode()))}
    text = _finished(scrub_all(values) | {"files": files})
    changed = False
    for path, data in ((folder / CARD, card.encode()), (folder / MANIFEST, text.encode())):
        if not (path.is_file() and path.read_bytes() == data):
            write_atomically(path, data)
            changed = True
    return changed


def _finished(values: Mapping[str, Any]) -> str:
    """Write a manifest as text, with its version and digest."""
    return _json({**values, "schema_version": SCHEMA_VERSION, "content_sha256": content_digest(values)})


def _described(path: str, data: bytes) -> RepoFile:
    git_oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
    return RepoFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), git_oid=git_oid)


def _row(file: RepoFile) -> dict[str, Any]:
    """Describe a file; of small ones a Hub tells the git blob id alone."""
    return file.model_dump(exclude={"path"})


def _content(report: PublishReport) -> dict[str, Any]:
    """Say what was decided and found; a local folder and what else lies there is nobody's business."""
    dump = report.model_dump(mode="json", exclude={"scores": {"per_document"}, "benchmarks": {"seconds"}})
    for source in dump["scores"]["calibration"]["sources"] if dump["scores"] else ():
        source["dataset"] = public_name(source["dataset"])
    base, recipe = report.base, public_recipe(parse(Recipe, report.recipe), base=report.base)
    config = {key: base.config[key] for key in READ_OF_THE_BASE if key in base.config}
    card = base.card.model_dump(mode="json")
    return {
        **{name: dump[name] for name in (*AS_THEY_ARE, "benchmarks", "speed", "fingerprint")},
        "hubprune": report.environment.hubprune,
        "versions": report.environment.versions,
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "base": {"repo_id": base.name, "commit": base.commit, "card": card, "config": config},
        "checkpoint": {**dump["checkpoint"], "files": [f.path for f in report.checkpoint.files]},
    }


# ---- reading, tolerantly -----------------------------------------------------------------------------------------


class RemoteManifest:
    """What an earlier publish says it left in a repo.  Anybody may have edited it: all of it is read tolerantly."""

    def __init__(self, values: Mapping[str, Any], *, data: bytes = b"") -> None:
        self.data = data
        """The file itself."""
        self.files: dict[str, str] = {
            str(path): str(row["sha256"])
            for path, row in _rows(values).items()
            if isinstance(row, dict) and isinstance(row.get("sha256"), str)
        }
        """Path -> SHA-256."""
        self.listed: dict[str, RepoFile] = {}
        """Path -> what a Hub tells of the file."""
        for path, row in _rows(values).items():
            with suppress(TypeError, ValueError):  # not as a manifest is written: nothing can be compared with it
                self.listed[str(path)] = RepoFile(path=str(path), **row)
        digest = values.get("content_sha256")
        self.content_sha256 = digest if isinstance(digest, str) else None
        """Digest of everything that the publish decided, without the card and without what a clock measured."""
        self.is_intact = self.content_sha256 is not None and self.content_sha256 == content_digest(values)
        """Whether it says what it said when it was written, by the rules of this version."""


def read_manifest(data: bytes) -> RemoteManifest:
    """Read the bytes of a hubprune.json; what cannot be understood counts as absent."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = {}
    return RemoteManifest(values if isinstance(values, dict) else {}, data=data)


# ---- reading, strictly -------------------------------------------------------------------------------------------


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
    values = parse_json(data, where=where)
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
    try:
        files = {path: RepoFile(path=path, **row) for path, row in values["files"].items()}
        report = PublishReport.model_validate(_report_values(values))
        refuse_unsafe(report.notes or "", name=f"The notes in {where}")
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "its root"
        raise CheckpointError(f"{where} is broken at {place}: {problem['msg']}.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} is broken: {error!r}.") from error
    return PublishRecord(values=values, report=report, files=files)


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
