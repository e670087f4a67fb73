"""Verify a pruned folder or repo: its files against its manifest, what it computes against its base.

Before that, both are found, in folders or on the Hub, and the rule is held to whose code is run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hubprune.cards.manifest import MANIFEST, NOT_LISTED, content_digest, read_manifest
from hubprune.core.artifacts import BaseCheckpoint, Check, QuantizationRecord, RepoFile, Verification
from hubprune.core.config import check_config, read_config, read_structure
from hubprune.core.console import Reporter, quiet
from hubprune.core.devices import resolve_device
from hubprune.core.errors import BaseNotFoundError, RecipeError, VerificationError
from hubprune.core.files import existing_folder, list_files, scratch_folder
from hubprune.core.recipe import BaseModelSpec
from hubprune.core.requests import LoadRequest, VerifyRequest
from hubprune.core.strict import parse_json
from hubprune.hub import repos as hub
from hubprune.hub.session import HubSession
from hubprune.hub.transfer import download
from hubprune.pruning import verify
from hubprune.pruning.base_files import examine, settle, shapes_in
from hubprune.pruning.checkpoint import read_back, write_checkpoint
from hubprune.pruning.layouts import make_runnable
from hubprune.quantizing.schemes import record_of, spec_of
from hubprune.workflows.healed import as_healed, healed_by, told_of_healed
from hubprune.workflows.quantized import How, open_source, verify_against
from hubprune.workflows.run import open_session, open_store
from hubprune.workflows.runtimes import as_checks, choose, compare_runtimes, with_runtimes

Trust = Literal["own", "any"]
"""Which code is run: only the modeling file that this version of hubprune writes, or any."""
DTYPES = "auto", "float32", "bfloat16", "float16"


@dataclass(frozen=True, kw_only=True)
class PrunedFolder:
    """A checkpoint that hubprune wrote, on this machine."""

    name: str
    """Folder or repo id, as it was asked for."""
    commit: str | None
    """Of the repo; None for a folder."""
    folder: Path
    config: Mapping[str, Any]


def find_pruned(
    name: str, *, revision: str | None, session: HubSession, reporter: Reporter, quantized: bool = False
) -> PrunedFolder:
    """Return a checkpoint that hubprune wrote; a repo is downloaded once its config.json is one of ours.

    It may be one that hubprune quantized where that is said; its base need not have been pruned then.

    Raises:
        CheckpointError: it was not written by hubprune, or is broken.
        BaseNotFoundError: there is no such folder or repo.
    """
    if there := existing_folder(name):
        return PrunedFolder(name=name, commit=None, folder=there, config=read_config(there, quantized=quantized))
    repo = hub.find_repo(name, revision=revision, session=session)
    check_config(repo.config, where=f"config.json of {name}", quantized=quantized)
    if not record_of(repo.config):
        verify.plan_of(repo.config)
    folder = download(repo.files, repo_id=name, commit=str(repo.commit), session=session, reporter=reporter)
    return PrunedFolder(name=name, commit=repo.commit, folder=folder, config=repo.config)


def refuse_foreign_code(found: PrunedFolder, *, trust: Trust, option: str = "--trust-remote-code") -> None:
    """Refuse a checkpoint whose loading would run code that this version of hubprune does not write.

    `option` is named as the way to trust it all the same.

    Raises:
        VerificationError: it would, and is not trusted.
    """
    if trust == "own" and not verify.ships_only_our_code(found.folder, found.config, read_structure(found.config)):
        raise VerificationError(
            f"{found.name} names or ships code that this version of hubprune would not write.",
            hint="If an earlier hubprune published it, `hubprune refresh REPO` writes its code anew. Else read its "
            f"auto_map and every .py file, then pass {option} to run them all the same.",
        )


def find_base(
    given: str | None, config: Mapping[str, Any], *, hint: str, session: HubSession, reporter: Reporter
) -> BaseCheckpoint:
    """Return the base of the pruned checkpoint that a config.json is of, downloaded.

    None is given for the one that it names, which is taken at the commit named there; where that was a folder, `hint`
    says how to tell where it is.

    Raises:
        BaseNotFoundError: there is no such base, or it was a folder and nobody says where.
        CheckpointError: its files contradict each other.
    """
    name, commit = verify.base_of(config)
    if given is None and commit is None:
        raise BaseNotFoundError(f"Its base was the local folder {name!r}.", hint=hint)
    if given is None and commit:
        found = hub.resolve_recorded(name, commit, session=session)
    else:
        revision = commit if commit and given == name else "main"
        found = hub.resolve_base(BaseModelSpec.of(given or name, revision=revision), session=session)
    check_config(found.config, where=f"config.json of {found.name}")
    base = hub.download_base(found, session=session, reporter=reporter)
    folder = Path(base.folder or "")
    examine(base, folder=folder, shapes=shapes_in(folder), reporter=reporter)
    return settle(base, reporter=reporter)


def load_pruned(request: LoadRequest, *, reporter: Reporter) -> tuple[Any, Any]:
    """Load the model and the tokenizer of a folder, or of a repo at a revision.

    Raises:
        CheckpointError: it was not written by hubprune, or is broken.
        VerificationError: it ships code that is not trusted.
        RecipeError: there is no such device or dtype.
        EvaluationError: the device's memory is too small.
    """
    dtype = str(request.dtype).removeprefix("torch.")  # which may be torch's own
    resolve_device(request.device)
    if dtype not in DTYPES:
        raise RecipeError(f"There is no dtype {dtype!r}.", hint=f"Pass {', '.join(DTYPES)}.")
    session = open_session(request.endpoint)
    found = find_pruned(
        request.checkpoint, revision=request.revision, session=session, reporter=reporter, quantized=True
    )
    trust: Trust = "any" if request.trust_remote_code else "own"
    if not record_of(found.config):
        verify.plan_of(found.config)
    refuse_foreign_code(found, trust=trust, option="trust_remote_code=True")
    needs_code = trust == "any" or read_structure(found.config, name=found.name).layout != "stock"
    from hubprune.evaluation.models import load_model

    with quiet():
        loaded = load_model(found.folder, device=request.device, dtype=dtype, trust_remote_code=needs_code)
    return loaded.model, loaded.tokenizer


def check(request: VerifyRequest, *, reporter: Reporter) -> Verification:
    """Verify a folder, or a repo at a revision, against its base.

    Raises:
        CheckpointError: it was not written by hubprune, or is broken.
        VerificationError: it ships a modeling file that is not trusted, or does not load.
        BaseNotFoundError: it does not name a base that can be found.
        MissingDependencyError: a runtime was named that this machine does not have.
        RecipeError: there is no such device.
    """
    device = resolve_device(request.device) if request.device else "auto"
    chosen = choose("none" if request.runtimes is None else request.runtimes)
    session = open_session(request.endpoint)
    pruned = find_pruned(
        request.checkpoint, revision=request.revision, session=session, reporter=reporter, quantized=True
    )
    folder, config = pruned.folder, pruned.config
    if record := record_of(config):
        seen = _check_quantized(pruned, record, request, device=device, session=session, reporter=reporter)
    else:
        seen = _check_pruned(pruned, request, device=device, session=session, reporter=reporter)
    if not chosen.pythons:
        return seen
    any_code = request.trust_remote_code
    return with_runtimes(seen, compare_runtimes(folder, config, chosen.pythons, any_code=any_code, reporter=reporter))


def _check_pruned(
    pruned: PrunedFolder, request: VerifyRequest, *, device: str, session: HubSession, reporter: Reporter
) -> Verification:
    """Verify a pruned checkpoint against its base without what it lacks."""
    folder, config = pruned.folder, pruned.config
    plan, structure = verify.plan_of(config), read_structure(config)
    refuse_foreign_code(pruned, trust="any" if request.trust_remote_code else "own")
    hint = "Say where it is with --base FOLDER."
    found = find_base(request.base, config, hint=hint, session=session, reporter=reporter)
    with scratch_folder(name="hubprune-base") as work:
        method = healed_by(config)
        if method:
            found = as_healed(found, plan, folder, method, work, reporter=reporter)
        runnable, architecture = make_runnable(found, work / "base"), structure.architecture
        read = read_back(runnable.weights(), folder, plan=plan, architecture=architecture)
        seen = verify.verify(
            runnable, folder, plan=plan, config=found.config, architecture=architecture, read=read, device=device,
            reporter=reporter,
        )  # fmt: skip
    checks = told_of_healed(seen.checks, method) if method else seen.checks
    return seen.model_copy(update={"checks": (*_manifest_checks(folder, known=read.files), *checks)})


def _check_quantized(
    pruned: PrunedFolder, record: QuantizationRecord, request: VerifyRequest, *, device: str, session: HubSession,
    reporter: Reporter,
) -> Verification:  # fmt: skip
    """Verify a quantized checkpoint against the one that it was made of, made anew where only its base is here."""
    refuse_foreign_code(pruned, trust="any" if request.trust_remote_code else "own")
    with scratch_folder(name="hubprune-source") as work:
        store = open_store(work / "store", reporter, earlier="run")
        how = How(mix=None, store=store, reporter=reporter, device=device)
        source = _source_of(pruned, record, request.base, work, session=session, reporter=reporter)
        opened = open_source(source, spec_of(record), work, how)
        seen = verify_against(opened, spec_of(record), pruned.folder, how, record=record)
    return seen.model_copy(update={"checks": (*_manifest_checks(pruned.folder), *seen.checks)})


def _source_of(
    pruned: PrunedFolder, record: QuantizationRecord, given: str | None, work: Path, *, session: HubSession,
    reporter: Reporter,
) -> BaseCheckpoint:  # fmt: skip
    """Return the unquantized checkpoint: the given one, the one that is named, or what the base's plan leaves of it."""
    config, was_pruned = pruned.config, "hubprune" in pruned.config
    hint = f"It was made of {record.source}. Say where that is, or its base, with --base FOLDER."
    if given is not None:
        found = hub.resolve_base(BaseModelSpec.of(given, revision="main"), session=session)
        if ("hubprune" in found.config) == was_pruned:
            return hub.download_base(found, session=session, reporter=reporter)
    elif record.source_commit:
        found = hub.resolve_recorded(record.source, record.source_commit, session=session)
        return hub.download_base(found, session=session, reporter=reporter)
    if not was_pruned or healed_by(config):
        raise BaseNotFoundError(f"{pruned.name} was made of the local folder {record.source!r}.", hint=hint)
    base, folder = find_base(given, config, hint=hint, session=session, reporter=reporter), work / "source"
    folder.mkdir()
    write_checkpoint(base, verify.plan_of(config), folder, advance=lambda _: None)
    return hub.resolve_base(BaseModelSpec.of(str(folder), revision="main"), session=session)


def require_passed(seen: Verification) -> None:
    """Raise VerificationError if some check failed."""
    failed = [check.name for check in seen.checks if not check.passed]
    elsewhere = {check.name for check in as_checks(seen.in_runtimes)} if seen.in_runtimes else set()
    hint = (
        "If it was made of another base, name that with --base. If an earlier hubprune published it, `hubprune refresh"
        " REPO` brings its files to this one's."
    )
    if elsewhere.issuperset(failed):
        hint = "In transformers it passed: what a runtime does not take is said beside it. Leave it out of --runtime."
    if failed:
        raise VerificationError(f"{len(failed)} of {len(seen.checks)} checks failed: {', '.join(failed)}.", hint=hint)


def _manifest_checks(folder: Path, *, known: Collection[RepoFile] = ()) -> list[Check]:
    """Compare the files with what the manifest says of them; a folder without a manifest has nothing to compare."""
    path = folder / MANIFEST
    if not path.is_file():
        return []
    manifest, values = read_manifest(path.read_bytes()), parse_json(path.read_bytes(), where=str(path))
    named = manifest.files
    present = {f.path: f.sha256 for f in list_files(folder, known=known) if not f.path.startswith(NOT_LISTED)}
    wrong = {
        "differs": sorted(name for name in named.keys() & present.keys() if named[name] != present[name]),
        "is missing": sorted(named.keys() - present.keys()),
        "is not listed": sorted(present.keys() - named.keys()),
    }
    found = [f"{', '.join(names)} {what}" for what, names in wrong.items() if names]
    detail = "; ".join(found) or f"{len(named)} files have their SHA-256"
    intact = manifest.content_sha256 == content_digest(values)
    told = "all that it says has its SHA-256" if intact else "it was edited: what it says has another SHA-256"
    return [
        Check(name="files as in the manifest", passed=bool(named) and not found, detail=detail),
        Check(name="manifest as it was written", passed=intact, detail=told),
    ]
