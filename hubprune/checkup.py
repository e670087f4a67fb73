"""Verify a pruned folder or repo: its files against its manifest, what it computes against its base."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hubprune.artifacts import BaseCheckpoint, Check, Verification
from hubprune.console import Reporter
from hubprune.errors import BaseNotFoundError, VerificationError
from hubprune.files import list_files
from hubprune.pruning import verify
from hubprune.pruning.config import check_config, read_config
from hubprune.pruning.runnable import make_runnable
from hubprune.pruning.structure import read_structure
from hubprune.publishing import hub
from hubprune.publishing.manifest import MANIFEST, read_manifest
from hubprune.publishing.session import HubSession
from hubprune.publishing.transfer import download
from hubprune.recipe import REPO_ID, BaseModelSpec

NOT_OURS = (MANIFEST, ".gitattributes", ".cache/huggingface/")
"""Files that no manifest lists: itself, what the Hub puts into every repo, and what a download leaves beside it."""
Trust = Literal["own", "any"]
"""Which code is run: only the modeling file that this version of hubprune writes, or any."""


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
    folder, config = _found(name, revision or "main", session, reporter)
    plan, structure = verify.plan_of(config), read_structure(config)
    if trust == "own" and not verify.ships_only_our_code(folder, config, structure):
        raise VerificationError(
            f"{name} names or ships code that this version of hubprune would not write.",
            hint="Read its auto_map and every .py file, then pass --trust-remote-code to run them all the same.",
        )
    found = _base(base, config, session, reporter)
    with tempfile.TemporaryDirectory(prefix="hubprune-base-") as work:
        runnable = make_runnable(found, Path(work) / "base")
        seen = verify.verify(runnable, folder, plan=plan, config=found.config, architecture=structure.architecture)
    return seen.model_copy(update={"checks": (*_manifest_checks(folder), *seen.checks)})


def require_passed(seen: Verification) -> None:
    """Raise VerificationError if some check failed."""
    failed = [check.name for check in seen.checks if not check.passed]
    if failed:
        raise VerificationError(f"{len(failed)} of {len(seen.checks)} checks failed: {', '.join(failed)}.")


def _found(name: str, revision: str, session: HubSession, reporter: Reporter) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a checkpoint and its config.json; a repo is downloaded once its config is one of ours."""
    if Path(name).is_dir():
        return Path(name), read_config(Path(name))
    if not REPO_ID.fullmatch(name):
        raise BaseNotFoundError(f"{name} is neither a folder nor a repo id.", hint="A repo id looks like owner/name.")
    repo = hub.resolve_repo(BaseModelSpec(repo_id=name, revision=revision), session=session)
    check_config(repo.config, where=f"config.json of {name}")
    verify.plan_of(repo.config)
    folder = download(repo.files, repo_id=name, commit=str(repo.commit), session=session, reporter=reporter)
    return folder, repo.config


def _base(given: str | None, config: Mapping[str, Any], session: HubSession, reporter: Reporter) -> BaseCheckpoint:
    name, commit = verify.base_of(config)
    if given is None and commit is None:
        raise BaseNotFoundError(f"Its base was the local folder {name!r}.", hint="Say where it is with --base FOLDER.")
    spec = BaseModelSpec(repo_id=given or name, revision="main" if given else str(commit))
    found = hub.resolve_base(spec, session=session)
    check_config(found.config, where=f"config.json of {found.name}")
    return hub.download_base(found, session=session, reporter=reporter)


def _manifest_checks(folder: Path) -> list[Check]:
    """Compare the files with what the manifest says of them; a folder without a manifest has nothing to compare."""
    path = folder / MANIFEST
    if not path.is_file():
        return []
    named = read_manifest(path.read_bytes()).files
    present = {f.path: f.sha256 for f in list_files(folder) if not f.path.startswith(NOT_OURS)}
    wrong = {
        "differs": sorted(name for name in named.keys() & present.keys() if named[name] != present[name]),
        "is missing": sorted(named.keys() - present.keys()),
        "is not listed": sorted(present.keys() - named.keys()),
    }
    found = [f"{', '.join(names)} {what}" for what, names in wrong.items() if names]
    detail = "; ".join(found) or f"{len(named)} files have their SHA-256"
    return [Check(name="files as in the manifest", passed=bool(named) and not found, detail=detail)]
