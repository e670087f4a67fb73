"""Write a pruned checkpoint and verify it; nothing appears under its name before that.

A checkpoint that was written and not yet verified waits beside its target, under a name that says what it is and whose.
A run that ends in between, however it ends, leaves it to the next run of the same, which goes on there; only one that
fails a check is removed.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from hubprune.core import __version__, templates
from hubprune.core.artifacts import DropPlan, PrunedCheckpoint
from hubprune.core.console import Reporter
from hubprune.core.errors import UnverifiedError, VerificationError
from hubprune.core.files import check_new_folder, host, is_gone, key_of, label, staged_folder
from hubprune.core.requests import PruneRequest
from hubprune.hub import repos as hub
from hubprune.hub.transfer import check_files
from hubprune.pruning import checkpoint, verify
from hubprune.pruning.checkpoint import read_back, take_inventory
from hubprune.pruning.tokenizer_files import ids_depend_on_version
from hubprune.workflows.choosing import say_plan
from hubprune.workflows.recipes import recipe_of
from hubprune.workflows.run import Run, make_plan, open_run, say_computing, scores_if_needed

WAITING = ".unverified-"
OWNED = re.compile(r"(?P<key>[0-9a-f]{16})-(?P<host>\w+)-(?P<pid>\d+)")
"""What follows it in a name."""
NOBODY = 2**31 - 1
"""Stands for the process of a checkpoint that nobody works on: more than any system counts to."""
KEPT_SECONDS = 7 * 24 * 3600
"""How long a checkpoint waits for a run of the same beside others."""


def prune(request: PruneRequest, *, reporter: Reporter) -> PrunedCheckpoint:
    """Write the pruned checkpoint that is asked for into a new folder; nothing appears there unless it was verified.

    Raises:
        HubpruneError: the first thing that is wrong.
    """
    run, out = open_run(recipe_of(request), request.endpoint, reporter), Path(request.out)
    check_new_folder(out)
    if run.recipe.needs_scores:
        say_computing(run)
    plan = make_plan(run, scores_if_needed(run))
    say_plan(plan, reporter=run.reporter)
    return write_verified(run, plan, out)


def write_verified(run: Run, plan: DropPlan, folder: Path) -> PrunedCheckpoint:
    """Write a checkpoint of a plan into a new folder, which appears once it was verified in a fresh process.

    Raises:
        UnverifiedError: whether it computes what it should was not found out; it waits for the next run.
        VerificationError: it does not compute what it should; nothing is left of it then.
    """
    check_new_folder(folder)
    # What this version would write otherwise than an earlier one is written anew.
    key = key_of(run.base_identity, plan, __version__, templates.modeling_code(run.architecture))
    taken = _take_waiting(folder, key)
    waiting = taken or _write(run, plan, folder, key)
    if taken:
        run.reporter.note("written by an earlier run, which did not come to its end: only to be verified")
    try:
        made = _verified(run, plan, waiting)
        check_new_folder(folder)  # another run may have been faster
        waiting.replace(folder)
        return made
    except VerificationError as error:
        if isinstance(error, UnverifiedError):
            raise
        shutil.rmtree(waiting, ignore_errors=True)
        if not taken:
            raise
        run.reporter.warn(f"What an earlier run wrote is written again: {error.message}")
    finally:
        if waiting.is_dir():
            with suppress(OSError):
                waiting.replace(_waiting_name(folder, key, owner=NOBODY))
            run.reporter.note("what was written is kept: the same command goes on with its verification")
    return write_verified(run, plan, folder)


def _write(run: Run, plan: DropPlan, folder: Path, key: str) -> Path:
    """Write a checkpoint of a plan, and return where it waits to be verified."""
    base, waiting, source = run.downloaded, _waiting_name(folder, key), Path(run.downloaded.folder or "")
    if base.commit:  # once more, since these bytes are what goes out
        weights, name = hub.weight_files(base.files), base.name
        check_files(weights, source, repo_id=name, commit=base.commit, reporter=run.reporter, remembered=False)
    total = sum(f.size for f in base.files if f.path.endswith(".safetensors"))
    with (
        staged_folder(folder, becomes=waiting) as staged,
        run.reporter.progress("writing", total=total, unit="B") as advance,
    ):
        checkpoint.write_checkpoint(base, plan, staged, advance=advance)
    return waiting


def _verified(run: Run, plan: DropPlan, folder: Path) -> PrunedCheckpoint:
    """Compare a written checkpoint with its base, byte for byte and by what both compute, and describe it."""
    base, architecture, stored = run.downloaded, run.architecture, run.runnable.weights()
    if differs := ids_depend_on_version(Path(base.folder or ""), folder, architecture=architecture):
        run.reporter.warn(f"the base's tokenizer depends on the version that reads it: {differs}")
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with run.reporter.progress("reading back", total=total, unit="B") as advance:
        read = read_back(stored, folder, plan=plan, architecture=architecture, advance=advance)
    verification = verify.verify(
        run.runnable, folder, plan=plan, config=base.config, architecture=architecture, read=read,
        device=run.recipe.device, dtype=run.recipe.dtype, reporter=run.reporter,
    )  # fmt: skip
    verify.require_passed(verification)
    run.reporter.note(f"verified in a fresh process: {len(verification.checks)} checks passed")
    written = take_inventory(stored, folder, plan=plan, config=base.config, architecture=architecture, known=read.files)
    return PrunedCheckpoint(written=written, verification=verification)


# ---- what waits ------------------------------------------------------------------------------------------------------


def _waiting_name(target: Path, key: str, *, owner: int | None = None) -> Path:
    return target.with_name(f".{label(target.name)}{WAITING}{key}-{host()}-{owner or os.getpid()}")


def _take_waiting(target: Path, key: str) -> Path | None:
    """Take over what waits beside a target under a key; None where nothing does.

    What else waits for the same target goes, and so does whatever waited too long: a disk has an end.
    """
    found = None
    for folder in target.parent.glob(f".*{glob.escape(WAITING)}*"):
        name, _, rest = folder.name.removeprefix(".").rpartition(WAITING)
        owned = OWNED.fullmatch(rest)
        if not owned or owned["host"] != host() or not (int(owned["pid"]) == os.getpid() or is_gone(int(owned["pid"]))):
            continue
        own = name == label(target.name)
        try:
            if own and owned["key"] == key and found is None:
                found = folder.rename(_waiting_name(target, key))
            elif own or time.time() - folder.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # another run was faster
            continue
    return found


def is_waiting(parent: Path, name: str) -> bool:
    """Tell whether a checkpoint waits in a folder for a target whose name begins so."""
    return any(parent.glob(f".{glob.escape(name)}*{WAITING}*"))
