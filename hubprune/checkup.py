"""Verify a pruned folder or repo: its files against its manifest, what it computes against its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hubprune.artifacts import BaseCheckpoint, Check, RepoFile, Verification
from hubprune.console import Reporter
from hubprune.errors import BaseNotFoundError, VerificationError
from hubprune.files import list_files
from hubprune.pruning import verify
from hubprune.pruning.config import needs_modeling_file, read_config
from hubprune.publishing import hub
from hubprune.publishing.manifest import MANIFEST, read_manifest
from hubprune.publishing.session import HubSession
from hubprune.publishing.transfer import download
from hubprune.recipe import BaseModelSpec

Trust = Literal["own", "any"]
"""Which modeling files are run: only the one that this version of hubprune writes, or any."""


def check(
    name: str, *, base: str | None, revision: str | None, trust: Trust, session: HubSession, reporter: Reporter
) -> Verification:
    """Verify a folder, or a repo at a revision, against its base.

    Args:
        name: folder or repo id.
        base: folder or repo id of the base; None for the one that config.json names.
        revision: of the repo; None for main.
        trust: which modeling files are run.
        session: which Hub.
        reporter: told what is going on.

    Raises:
        CheckpointError: it was not written by hubprune, or is broken.
        VerificationError: it ships a modeling file that is not trusted, or does not load.
        BaseNotFoundError: it does not name a base that can be found.
    """
    folder = Path(name) if Path(name).is_dir() else _downloaded(name, revision or "main", session, reporter)
    config = read_config(folder)
    plan, architecture = verify.plan_of(config), verify.family_of_pruned(config)
    if needs_modeling_file(plan) and trust == "own" and not verify.trusted_modeling_file(folder, architecture):
        raise VerificationError(
            f"{name} ships a {architecture.modeling_file} that this version of hubprune would not write.",
            hint="Read it, then pass --trust-remote-code to run it all the same.",
        )
    found = _base(base, config, session, reporter)
    seen = verify.verify(Path(found.folder or ""), folder, plan=plan, config=found.config, architecture=architecture)
    return seen.model_copy(update={"checks": (*_manifest_checks(folder), *seen.checks)})


def require_passed(seen: Verification) -> None:
    """Raise VerificationError if some check failed."""
    failed = [check.name for check in seen.checks if not check.passed]
    if failed:
        raise VerificationError(f"{len(failed)} of {len(seen.checks)} checks failed: {', '.join(failed)}.")


def _downloaded(repo_id: str, revision: str, session: HubSession, reporter: Reporter) -> Path:
    spec = BaseModelSpec(repo_id=repo_id, revision=revision)
    repo = hub.resolve_repo(spec, session=session)
    return download(repo.files, repo_id=repo_id, commit=str(repo.commit), session=session, reporter=reporter)


def _base(given: str | None, config: Mapping[str, Any], session: HubSession, reporter: Reporter) -> BaseCheckpoint:
    origin = config["hubprune"]
    if given is None and origin["base_commit"] is None:
        raise BaseNotFoundError(
            f"Its base was the local folder {origin['base_model']!r}.", hint="Say where it is with --base FOLDER."
        )
    spec = BaseModelSpec(repo_id=given or origin["base_model"], revision="main" if given else origin["base_commit"])
    return hub.download_base(hub.resolve_base(spec, session=session), session=session, reporter=reporter)


def _manifest_checks(folder: Path) -> list[Check]:
    """Compare the files with what the manifest says of them; a folder without a manifest has nothing to compare."""
    path = folder / MANIFEST
    if not path.is_file():
        return []
    named = read_manifest(path.read_bytes()).files
    present = {file.path: file for file in list_files(folder)}
    wrong = sorted(name for name, sha256 in named.items() if not _has(present.get(name), sha256))
    detail = f"{wrong[0]} differs or is missing" if wrong else f"{len(named)} files have their SHA-256"
    return [Check(name="files as in the manifest", passed=not wrong, detail=detail)]


def _has(file: RepoFile | None, sha256: str) -> bool:
    return file is not None and file.sha256 == sha256
