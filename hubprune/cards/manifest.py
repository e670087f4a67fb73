"""`hubprune.json`, the record of a published repo that a program can read, and `recipe.yaml` beside it.

What is in a repo is read tolerantly here, to compare it with what a publish is about to send; `records` reads it
strictly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import PublishReport, RepoFile, SiblingReport, WrittenCheckpoint
from hubprune.core.errors import VerificationError
from hubprune.core.files import list_files, write_atomically
from hubprune.core.privacy import public_address, public_name, public_recipe, scrub, scrub_all
from hubprune.core.recipe import Recipe, parse

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
OF_SIBLINGS = (
    "kind", "pruned", "pruned_tag", "beside", "quantized", "control", "exports", "carried", "healing", "elsewhere",
    "generation", "pruned_repetition",
)  # fmt: skip
"""The same of a sibling's."""


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
    return files_tag(checkpoint.files)


def files_tag(files: Iterable[RepoFile]) -> str:
    """Return the tag that names exactly these files of a checkpoint."""
    return f"hubprune-{files_digest(files)[:8]}"


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


def write_recipe(folder: Path, *, recipe: Recipe, report: PublishReport | SiblingReport) -> Path:
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
    listed = _listed(folder, report.checkpoint.files)
    return _write(folder, scrub_all(_content(report)) | {"card_templates": template_hash}, _run(report), listed)


def write_sibling(folder: Path, *, report: SiblingReport, template_hash: str) -> tuple[RepoFile, ...]:
    """Write the hubprune.json of a sibling, as `write_manifest` does that of a pruned repo.

    Raises:
        VerificationError: a file is not the one that was verified.
    """
    listed = _listed(folder, report.files)
    dump = report.model_dump(mode="json")
    parts, written = dump["benchmarks"] or dump["recovered"] or {}, report.checkpoint
    for part in parts.values():
        if isinstance(part, dict):
            del part["seconds"]
    if report.quantized:
        written = report.quantized.written
        del dump["quantized"]["written"]
    if report.healed:
        written = report.healed.written
    if report.healing:
        del dump["healing"]["seconds"]  # another run of the same may take longer
    figures = written.model_dump(mode="json", exclude={"files"})
    content = {
        **_origin(report, parse(Recipe, report.recipe)),
        **{name: dump[name] for name in ("plan", "snippet", "fingerprint")},
        "benchmarks": parts.pop("both", None),
        "checkpoint": {**figures, "files": [file.path for file in report.files]},
        "sibling": {
            **{name: dump[name] for name in OF_SIBLINGS}, "benchmarks": parts or None,
            "verification": dump["healed"]["verification"] if report.healed else None,
            "checkpoint": report.checkpoint.model_dump(mode="json", exclude={"files"}),
        },
    }  # fmt: skip
    return _write(folder, scrub_all(content) | {"card_templates": template_hash}, _run(report), listed)


def _listed(folder: Path, verified: Iterable[RepoFile]) -> tuple[RepoFile, ...]:
    """List the files of a folder but the manifest; those that were verified have to be there as they were."""
    listed = tuple(f for f in list_files(folder) if f.path != MANIFEST)
    found = {f.path: f.sha256 for f in listed}
    for file in verified:
        if found.get(file.path) != file.sha256:
            what = "was changed" if file.path in found else "has gone"
            raise VerificationError(
                f"{file.path} {what} since it was verified.", hint=f"Remove {folder} and run the command again."
            )
    return listed


def _run(report: PublishReport | SiblingReport) -> dict[str, Any]:
    """Say where, when and for whom it was made, which the same result may have otherwise."""
    trained = report.healing if isinstance(report, SiblingReport) else None
    return {
        "repo_id": report.repo_id,
        "create_pr": parse(Recipe, report.recipe).target.create_pr,
        "endpoint": public_address(report.endpoint),
        "environment": report.environment.model_dump(mode="json", exclude={"hubprune", "versions"}),
        "seconds": [[stage, seconds] for stage, seconds in report.seconds.items()],  # pairs, since their order counts
        "stage_keys": report.stage_keys,
        **({"training_seconds": trained.seconds} if trained else {}),
    }


def _write(
    folder: Path, content: Mapping[str, Any], run: Mapping[str, Any], listed: Sequence[RepoFile]
) -> tuple[RepoFile, ...]:
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
    return {
        **{name: dump[name] for name in (*AS_THEY_ARE, "benchmarks", "speed", "fingerprint")},
        **_origin(report, parse(Recipe, report.recipe)),
        **({"beside": dump["beside"]} if report.beside else {}),
        "checkpoint": {**dump["checkpoint"], "files": [f.path for f in report.checkpoint.files]},
    }


def _origin(report: PublishReport | SiblingReport, recipe: Recipe) -> dict[str, Any]:
    """Say of what, by which recipe and with what it was made."""
    base = report.base
    config = {key: base.config[key] for key in READ_OF_THE_BASE if key in base.config}
    return {
        "hubprune": report.environment.hubprune,
        "versions": report.environment.versions,
        "recipe": public_recipe(recipe, base=base).model_dump(mode="json", exclude_none=True),
        "base": {
            "repo_id": base.name, "commit": base.commit, "card": base.card.model_dump(mode="json"), "config": config,
        },
    }  # fmt: skip


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
