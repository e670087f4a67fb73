"""`hubprune.json`, the record of a published repo that a program can read, and `recipe.yaml` beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import BaseCheckpoint, PublishReport, RepoFile, WrittenCheckpoint
from hubprune.core.errors import VerificationError
from hubprune.core.files import list_files, write_atomically
from hubprune.core.privacy import public_address, public_name, public_recipe, scrub, scrub_all
from hubprune.core.recipe import Recipe, parse

__all__ = [
    "CARD",
    "MANIFEST",
    "NOT_LISTED",
    "RECIPE",
    "SCHEMA_VERSION",
    "RemoteManifest",
    "checkpoint_tag",
    "content_digest",
    "files_digest",
    "read_manifest",
    "replace_card",
    "write_manifest",
    "write_recipe",
]

CARD = "README.md"
MANIFEST = "hubprune.json"
RECIPE = "recipe.yaml"
NOT_LISTED = (MANIFEST, ".gitattributes", ".cache/huggingface/")
"""Files that no manifest lists: itself, what the Hub puts into every repo, and what a download leaves beside it."""
SCHEMA_VERSION = 2
NOT_CONTENT = ("schema_version", "content_sha256", "files", "run")
READ_OF_THE_BASE = ("model_type", "auto_map", "num_hidden_layers", "max_position_embeddings", "dtype", "torch_dtype")
"""Keys of the base's config.json that a card may need."""


# ---- files and digests -------------------------------------------------------------------------------------------


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
    files = values.get("files")
    content = {key: value for key, value in values.items() if key not in NOT_CONTENT}
    listed = {path: row for path, row in (files.items() if isinstance(files, dict) else ()) if path != CARD}
    try:
        return hashlib.sha256(_json({"content": content, "files": listed}).encode()).hexdigest()
    except (ValueError, RecursionError):  # NaN, half of a surrogate pair, or too deep
        return None


# ---- writing -----------------------------------------------------------------------------------------------------


def write_recipe(folder: Path, *, recipe: Recipe, report: PublishReport) -> Path:
    """Write recipe.yaml: the base pinned to its commit, no local path."""
    path = folder / RECIPE
    write_atomically(path, scrub(public_recipe(recipe, base=report.base).to_yaml()))
    return path


def write_manifest(folder: Path, *, report: PublishReport, template_hash: str) -> tuple[RepoFile, ...]:
    """Write hubprune.json over everything else in the folder, and return all files; it has to be the last one written.

    Args:
        folder: the checkpoint with README.md and recipe.yaml.
        report: what the run did and saw; what may differ in another run of the same is apart from the content.
        template_hash: of the card templates, so that a card by other templates is another card.

    Raises:
        VerificationError: a file is not the one that was verified.
    """
    listed = tuple(f for f in list_files(folder) if f.path != MANIFEST)
    _check_unchanged(report.checkpoint, files=listed, folder=folder)
    files = {f.path: _row(f) for f in listed}
    content = scrub_all(_content(report)) | {"card_templates": template_hash}
    text = _finished({**content, "run": scrub_all(_run(report)), "files": files})
    write_atomically(folder / MANIFEST, text)
    return tuple(sorted((*listed, _described(MANIFEST, text.encode())), key=lambda f: f.path))


def replace_card(folder: Path, values: Mapping[str, Any], *, card: str) -> bool:
    """Write another card of the same run, and the manifest that lists it; files that stay as they are are not touched.

    Args:
        folder: of the checkpoint.
        values: of the manifest, but for what it says of the card's bytes.
        card: the new README.md.

    Returns:
        Whether something was written.
    """
    data = card.encode()
    files = {**values["files"], CARD: _row(_described(CARD, data))}
    text = _finished(scrub_all(values) | {"files": files})
    written = [_put(folder / name, content) for name, content in ((CARD, data), (MANIFEST, text.encode()))]
    return any(written)


def _put(path: Path, data: bytes) -> bool:
    if path.is_file() and path.read_bytes() == data:
        return False
    write_atomically(path, data)
    return True


def _finished(values: Mapping[str, Any]) -> str:
    """Write a manifest as text, with its version and digest."""
    return _json({**values, "schema_version": SCHEMA_VERSION, "content_sha256": content_digest(values)})


def _check_unchanged(checkpoint: WrittenCheckpoint, *, files: tuple[RepoFile, ...], folder: Path) -> None:
    found = {f.path: f.sha256 for f in files}
    for file in checkpoint.files:
        if found.get(file.path) != file.sha256:
            what = "was changed" if file.path in found else "has gone"
            raise VerificationError(
                f"{file.path} {what} since it was verified.", hint=f"Remove {folder} and run the command again."
            )


def _described(path: str, data: bytes) -> RepoFile:
    git_oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
    return RepoFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), git_oid=git_oid)


def _row(file: RepoFile) -> dict[str, Any]:
    """Describe a file; of small ones a Hub tells the git blob id alone."""
    return file.model_dump(exclude={"path"})


def _content(report: PublishReport) -> dict[str, Any]:
    dump = report.model_dump(mode="json", exclude={"scores": {"per_document"}})
    recipe = public_recipe(parse(Recipe, report.recipe), base=report.base)
    return {
        "hubprune": report.environment.hubprune,
        "versions": report.environment.versions,
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "base": _base(report.base),
        "scores": _scores(dump["scores"]),
        "plan": dump["plan"],
        "checkpoint": {**dump["checkpoint"], "files": [f.path for f in report.checkpoint.files]},
        "verification": dump["verification"],
        "benchmarks": _without(dump["benchmarks"], names=("seconds",)),
        "generation": dump["generation"],
        "speed": dump["speed"],
        "notes": dump["notes"],
        "snippet": dump["snippet"],
        "fingerprint": dump["fingerprint"],
    }


def _base(base: BaseCheckpoint) -> dict[str, Any]:
    """Say what the base is; a local folder and what else lies there is nobody's business."""
    config = {key: base.config[key] for key in READ_OF_THE_BASE if key in base.config}
    return {"repo_id": base.name, "commit": base.commit, "card": base.card.model_dump(mode="json"), "config": config}


def _run(report: PublishReport) -> dict[str, Any]:
    """Say where, when and for whom it was made, which the same result may have otherwise.

    Stages and their seconds are pairs, since their order counts.
    """
    return {
        "repo_id": report.repo_id,
        "create_pr": parse(Recipe, report.recipe).target.create_pr,
        "endpoint": public_address(report.endpoint),
        "environment": report.environment.model_dump(mode="json", exclude={"hubprune", "versions"}),
        "seconds": [[stage, seconds] for stage, seconds in report.seconds.items()],
        "stage_keys": report.stage_keys,
    }


def _scores(scores: dict[str, Any] | None) -> dict[str, Any] | None:
    for source in scores["calibration"]["sources"] if scores else ():
        source["dataset"] = public_name(source["dataset"])
    return scores


def _without(values: dict[str, Any] | None, *, names: tuple[str, ...]) -> dict[str, Any] | None:
    return {k: v for k, v in values.items() if k not in names} if values is not None else None


def _json(values: Any) -> str:
    return json.dumps(values, sort_keys=True, indent=2, allow_nan=False) + "\n"


# ---- reading -----------------------------------------------------------------------------------------------------


class RemoteManifest:
    """What an earlier publish says it left in a repo.  Anybody may have edited it: all of it is read tolerantly."""

    def __init__(self, values: Mapping[str, Any], *, data: bytes = b"") -> None:
        self.data = data
        """The file itself."""
        files = values.get("files")
        self.files: dict[str, str] = {
            str(path): str(row["sha256"])
            for path, row in (files.items() if isinstance(files, dict) else ())
            if isinstance(row, dict) and isinstance(row.get("sha256"), str)
        }
        """Path -> SHA-256."""
        self.listed = _listed(files)
        """Path -> what a Hub tells of the file."""
        digest = values.get("content_sha256")
        self.content_sha256 = digest if isinstance(digest, str) else None
        """Digest of everything that the publish decided, without the card and without what a clock measured."""
        self.is_intact = self.content_sha256 is not None and self.content_sha256 == content_digest(values)
        """Whether it says what it said when it was written, by the rules of this version."""


def _listed(files: Any) -> dict[str, RepoFile]:
    found = {}
    for path, row in files.items() if isinstance(files, dict) else ():
        try:
            found[str(path)] = RepoFile(path=str(path), **row)
        except (TypeError, ValueError):  # not as a manifest is written: nothing can be compared with it
            continue
    return found


def read_manifest(data: bytes) -> RemoteManifest:
    """Read the bytes of a hubprune.json; what cannot be understood counts as absent."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = {}
    return RemoteManifest(values if isinstance(values, dict) else {}, data=data)
