"""Verify a pruned folder or repo: its files against its manifest, what it computes against its base."""

from __future__ import annotations

from pathlib import Path

from hubprune.cards.manifest import MANIFEST, NOT_LISTED, content_digest, read_manifest
from hubprune.core.artifacts import Check, Verification
from hubprune.core.console import Reporter
from hubprune.core.errors import VerificationError
from hubprune.core.files import list_files, scratch_folder
from hubprune.core.strict_json import parse_json
from hubprune.core.structure import read_structure
from hubprune.hub.session import HubSession
from hubprune.pruning import verify
from hubprune.pruning.runnable import make_runnable
from hubprune.workflows.checkpoints import Trust, find_base, find_pruned, refuse_foreign_code


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
    pruned = find_pruned(name, revision=revision, session=session, reporter=reporter)
    folder, config = pruned.folder, pruned.config
    plan, structure = verify.plan_of(config), read_structure(config)
    refuse_foreign_code(pruned, trust=trust)
    hint = "Say where it is with --base FOLDER."
    found = find_base(base, config, hint=hint, session=session, reporter=reporter)
    with scratch_folder(name="hubprune-base") as work:
        runnable = make_runnable(found, work / "base")
        seen = verify.verify(runnable, folder, plan=plan, config=found.config, architecture=structure.architecture)
    return seen.model_copy(update={"checks": (*_manifest_checks(folder), *seen.checks)})


def require_passed(seen: Verification) -> None:
    """Raise VerificationError if some check failed."""
    failed = [check.name for check in seen.checks if not check.passed]
    if failed:
        raise VerificationError(
            f"{len(failed)} of {len(seen.checks)} checks failed: {', '.join(failed)}.",
            hint="If an earlier hubprune published it, `hubprune refresh REPO` brings its files to this one's.",
        )


def _manifest_checks(folder: Path) -> list[Check]:
    """Compare the files with what the manifest says of them; a folder without a manifest has nothing to compare."""
    path = folder / MANIFEST
    if not path.is_file():
        return []
    manifest, values = read_manifest(path.read_bytes()), parse_json(path.read_bytes(), where=str(path))
    named = manifest.files
    present = {f.path: f.sha256 for f in list_files(folder) if not f.path.startswith(NOT_LISTED)}
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
