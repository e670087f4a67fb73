"""Export a folder or repo as GGUF: plan, write, compare, and only then put the file where it belongs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import PLAIN_TYPES, GgufExport, Parity
from hubprune.core.config import read_config
from hubprune.core.console import Reporter
from hubprune.core.errors import HubpruneError
from hubprune.core.files import existing_folder, scratch_folder
from hubprune.core.requests import ExportRequest
from hubprune.exporting import bounds, parity
from hubprune.exporting.parity import ParitySeen
from hubprune.exporting.quantizing import check_outtype, quantize, type_notes
from hubprune.exporting.writing import (
    GgufContent,
    check_space,
    check_target,
    check_writer,
    plan_content,
    read_layers,
    staged_file,
    write_gguf,
)
from hubprune.hub import repos as hub
from hubprune.hub.session import HubSession
from hubprune.hub.transfer import download
from hubprune.workflows.quantized import refuse_quantized
from hubprune.workflows.run import open_session

SKIPPED = "--no-verify was passed"


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A checkpoint on this machine."""

    name: str
    folder: Path
    config: Mapping[str, Any]


def export_gguf(request: ExportRequest, *, reporter: Reporter, session: HubSession | None = None) -> GgufExport:
    """Write a checkpoint as a GGUF file and compare it with the checkpoint.

    Raises:
        UnsupportedArchitectureError: llama.cpp does not compute what this model does.
        UnsupportedFormatError: its tokenizer or its weights cannot be written.
        CheckpointError: a file of the checkpoint is broken.
        VerificationError: llama.cpp computes something else; no file is kept.
        RecipeError: the target exists, or cannot be written.
        MissingDependencyError: gguf is not installed.
    """
    session, outtype = session or open_session(request.endpoint), check_outtype(request.outtype)
    check_writer()
    name, target = request.checkpoint, Path(request.out or "")
    if target.suffix.lower() != ".gguf":
        target /= f"{Path(name.rstrip('/')).resolve().name}-{outtype.upper()}.gguf"
    check_target(target)
    source = _find(name, request.revision or "main", session, reporter)
    content = plan_content(source.folder, source.config, name=Path(source.name).name, outtype=outtype)
    check_space(target, needed=content.disk_bytes)
    with staged_file(target) as staged:
        _write(content, staged, reporter, what=target.name)
        not_verified = SKIPPED if request.no_verify else parity.obstacle(source.folder)
        compared = None
        if not not_verified:
            reporter.note("compare with transformers")
            seen = _measure(staged, content, source)
            control, without_control = _control(staged, source, request, session, reporter)
            compared = bounds.judge(content, seen, control=control, without_control=without_control)
            bounds.require_passed(compared)
        return _describe(staged, target, content, compared, not_verified)


def _write(content: GgufContent, path: Path, reporter: Reporter, *, what: str) -> None:
    if content.outtype in PLAIN_TYPES:
        with reporter.progress(f"write {what}", total=content.data_bytes, unit="B") as advance:
            write_gguf(content, path, advance=advance)
        return
    with scratch_folder(path.parent, name="plain") as folder:
        plain = folder / f"{content.plain}.gguf"
        with reporter.progress(f"write {what} in {content.plain}", total=content.data_bytes, unit="B") as advance:
            write_gguf(content, plain, advance=advance)
        reporter.note(f"quantize to {content.outtype}")
        quantize(plain, path, content.outtype)


def _measure(file: Path, content: GgufContent, source: _Source) -> ParitySeen:
    structure = read_layers(source.config, name=source.name)
    return parity.measure(file, content, folder=source.folder, config=source.config, structure=structure)


def _describe(
    file: Path, target: Path, content: GgufContent, compared: Parity | None, not_verified: str | None
) -> GgufExport:
    slots, vocabulary = content.slots, content.vocabulary
    stored = [(number, slot) for number, slot in enumerate(slots) if slot.source is not None]
    with file.open("rb") as written:
        sha256 = hashlib.file_digest(written, "sha256").hexdigest()
    return GgufExport(
        file=str(target), size=file.stat().st_size, sha256=sha256, architecture=content.architecture,
        outtype=content.outtype, layers=len(slots),
        layers_without_attention=tuple(i for i, slot in stored if slot.attention != "full"),
        layers_without_mlp=tuple(i for i, slot in stored if not slot.has_mlp),
        context_length=content.sizes.context_length, tokenizer=f"{vocabulary.model}, {vocabulary.pre}",
        notes=(*content.notes, *type_notes(file, content.outtype)), parity=compared, not_verified=not_verified,
    )  # fmt: skip


def _find(name: str, revision: str, session: HubSession, reporter: Reporter) -> _Source:
    """Return a checkpoint; a repo is downloaded once its config.json says that it can be exported."""
    if folder := existing_folder(name):
        config = read_config(folder, quantized=True)
        refuse_quantized(config, name=name, do="Export")
        return _Source(name=str(folder.resolve()), folder=folder, config=config)
    repo = hub.find_repo(name, revision=revision, session=session)
    refuse_quantized(repo.config, name=name, do="Export")
    read_layers(repo.config, name=name)
    folder = download(hub.needed_files(repo), repo_id=name, commit=str(repo.commit), session=session, reporter=reporter)
    return _Source(name=name, folder=folder, config=read_config(folder))


def _control(
    file: Path, source: _Source, request: ExportRequest, session: HubSession, reporter: Reporter
) -> tuple[ParitySeen | None, str | None]:
    """Write and compare the unpruned base in the same way, beside the file and for the moment.

    Returns:
        What was seen and None, or None and why there is no control.
    """
    base, why = _base(source, request, session, reporter)
    if base is None:
        return None, why
    try:
        outtype = check_outtype(request.outtype)
        content = plan_content(base.folder, base.config, name=Path(base.name).name, outtype=outtype)
    except HubpruneError as error:
        if request.base is not None:
            raise
        return None, f"the base {base.name:.100} cannot be exported ({error.message})"  # half of it may be in the cache
    if obstacle := parity.obstacle(base.folder):
        return None, obstacle
    check_space(file.parent, needed=content.disk_bytes)
    with scratch_folder(file.parent, name="control") as folder:
        control = folder / "control.gguf"
        _write(content, control, reporter, what="the unpruned base as a control")
        return _measure(control, content, base), None


def _base(
    source: _Source, request: ExportRequest, session: HubSession, reporter: Reporter
) -> tuple[_Source | None, str | None]:
    """Return the unpruned base; one that was not named on the command line is never downloaded."""
    if request.base is not None:
        return _find(request.base, "main", session, reporter), None
    origin = source.config.get("hubprune")
    named = origin.get("base_model") if isinstance(origin, dict) else None
    if not isinstance(named, str):
        return None, "config.json names no base; pass --base FOLDER_OR_REPO"
    folder: Path | None = Path(named)
    if isinstance(origin, dict) and isinstance(commit := origin.get("base_commit"), str):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(named, revision=commit, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, ValueError, OSError):
            folder = None
    if folder is None or not (folder / "config.json").is_file():
        return None, f"the base {named:.100} is not on this machine; pass --base FOLDER_OR_REPO"
    try:
        return _Source(name=named, folder=folder, config=read_config(folder)), None
    except HubpruneError as error:
        return None, f"the base {named:.100} cannot be read ({error.message})"
