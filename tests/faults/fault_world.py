"""A local Hub, somebody who publishes on it, and what is to be found there afterwards."""

from __future__ import annotations

import io
import itertools
import logging
import os
import random
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "shared"))

import made
from on_hub import BASE_ID, finish, make_folder, put_base, safetensors

from hubprune.core.artifacts import BaseCheckpoint, PublishedCommit
from hubprune.core.console import Reporter
from hubprune.core.recipe import BaseModelSpec, Recipe, TargetSpec
from hubprune.hub import commit
from hubprune.hub.preflight import preflight
from hubprune.hub.repos import resolve_base
from hubprune.hub.session import HubSession
from hubprune.hub.transfer import download
from hubprune.localhub import RequestRecord, RunningHub, running_hub

TAG = "hubprune-12345678"
USER = "ana"
READ_BACK = ("config.json", "modeling_pruned_llama.py", "model.safetensors")
"""What a model that is loaded from the Hub is read from."""
SILENCE_SECONDS = 1.0
"""How long clients wait for an answer that will be late."""
PATIENCE_SECONDS = 30.0
"""How long they wait otherwise, however busy the machine is."""
HANGS_AFTER_SECONDS = 120.0
SETTINGS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_XET_TELEMETRY_ENABLED": "false",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "5ms",
    "HF_XET_CLIENT_READ_TIMEOUT": "30s",
}
"""What the Xet client reads when it starts."""


@dataclass(frozen=True)
class Scenario:
    """What is published where."""

    name: str
    xet: bool = True
    older: bool = False
    """Whether the repo holds an older publish."""
    revision: str = "main"
    create_pr: bool = False


SCENARIOS = (
    Scenario("new repo, Xet"),
    Scenario("older publish, Xet", older=True),
    Scenario("new repo, LFS", xet=False),
    Scenario("older publish, LFS", xet=False, older=True),
    Scenario("new branch", older=True, revision="next"),
    Scenario("pull request", older=True, create_pr=True),
)


@dataclass(frozen=True)
class Case:
    """One folder to be published in one repo, which nothing else knows."""

    scenario: Scenario
    repo_id: str
    folder: Path
    cache: Path

    def recipe(self) -> Recipe:
        """Return a recipe with the repo as its target."""
        at = {"revision": self.scenario.revision, "create_pr": self.scenario.create_pr}
        return made.recipe(base=BaseModelSpec(repo_id=BASE_ID), target=TargetSpec(repo_id=self.repo_id, **at))


@dataclass
class Attempt:
    """How a publish ended, and all that was said on the way."""

    done: PublishedCommit | None = None
    error: BaseException | None = None
    said: str = ""
    """Log, output and traceback."""
    waits: list[float] = field(default_factory=list)
    """Seconds that it meant to sleep."""
    log: list[RequestRecord] = field(default_factory=list)


@dataclass(frozen=True)
class Remote:
    """A repo as it is on the Hub."""

    exists: bool
    heads: Mapping[str, str] = field(default_factory=dict)
    """Branches and pull requests."""
    tags: Mapping[str, str] = field(default_factory=dict)
    history: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Commits of each head, newest first."""
    files: Mapping[str, Mapping[str, tuple[int, str]]] = field(default_factory=dict)
    """Size and git blob, or SHA-256, of each file of each head."""


class World:
    """A Hub with a base on it, and a user who may write to a namespace."""

    def __init__(self, hub: RunningHub, home: Path, *, hub_folder: Path) -> None:
        from huggingface_hub import HfApi

        self.hub, self.home, self._hub_folder, self._numbers = hub, home, hub_folder, itertools.count(1)
        self._random = random.Random(0)
        self.admin = HfApi(endpoint=hub.endpoint, token=hub.token)
        put_base(self.admin)
        self.token = hub.add_user(USER, orgs=("acme",))
        self._model_folder = make_folder(home / "model")
        self._base = resolve_base(BaseModelSpec(repo_id=BASE_ID), session=self._session())
        self._older_repo = self._publish_older()

    # ---- cases ---------------------------------------------------------------------------------------------------

    def case(self, scenario: Scenario) -> Case:
        """Make a repo and a folder that no other case has; the weights are such as the Hub has never seen."""
        number = next(self._numbers)
        case = Case(scenario, f"{USER}/case-{number}", self.home / f"case-{number}", self.home / f"cache-{number}")
        shutil.copytree(self._model_folder, case.folder)
        self._new_weights(case.folder)
        finish(case.folder, card=f"# Card {number}\n", report=made.report())
        if scenario.older:
            shutil.copytree(self._git(self._older_repo), self._git(case.repo_id))
        return case

    def _session(self) -> HubSession:
        return HubSession.open(endpoint=self.hub.endpoint, token=self.token)

    def forget(self, case: Case) -> None:
        """Remove what a case left on disk."""
        for folder in (case.folder, case.cache, self._git(case.repo_id)):
            shutil.rmtree(folder, ignore_errors=True)

    def _new_weights(self, folder: Path) -> None:
        head = len(safetensors(0))
        weights = safetensors(2_000)
        (folder / "model.safetensors").write_bytes(weights[:head] + self._random.randbytes(len(weights) - head))

    def _publish_older(self) -> str:
        """Publish what the cases with an older publish begin with; it owns a file that the new one does not have."""
        case = self.case(Scenario("older"))
        (case.folder / "modeling_pruned_old.py").write_text("code = 0\n")
        finish(case.folder, card="# Older\n", report=made.report())
        assert publish(case, endpoint=self.hub.endpoint, token=self.token).created
        self.admin.delete_tag(case.repo_id, tag=TAG)
        return case.repo_id

    def _git(self, repo_id: str) -> Path:
        return self._hub_folder / "repos" / "models" / f"{repo_id}.git"

    # ---- attempts ------------------------------------------------------------------------------------------------

    def attempt(self, case: Case, *, base: BaseCheckpoint | None = None, patience: float = PATIENCE_SECONDS) -> Attempt:
        """Publish in this process; what it says is kept, and it sleeps no longer than a moment between two tries."""
        attempt = Attempt()
        self.hub.clear_log()
        worker = threading.Thread(target=self._run, args=(case, base, attempt), daemon=True)
        with all_said(attempt), self._clients(case, attempt, patience):
            worker.start()
            worker.join(HANGS_AFTER_SECONDS)
        if worker.is_alive():
            attempt.error = TimeoutError(f"it still waits after {HANGS_AFTER_SECONDS:.0f} s")
        attempt.log = self.hub.log
        return attempt

    def again(self, case: Case) -> Attempt:
        """Publish once more, of a base that was looked at before, and leave the reading to `look`."""
        return self.attempt(case, base=self._base)

    def _run(self, case: Case, base: BaseCheckpoint | None, attempt: Attempt) -> None:
        try:
            attempt.done = publish(case, endpoint=self.hub.endpoint, token=self.token, base=base)
        except BaseException as error:
            attempt.error = error
            attempt.said += "".join(traceback.format_exception(error))

    @contextmanager
    def _clients(self, case: Case, attempt: Attempt, patience: float) -> Iterator[None]:
        """Give the libraries an empty cache and the scenario's way to upload, and count how long they would sleep."""
        from huggingface_hub import constants

        def sleep(seconds: float) -> None:
            attempt.waits.append(seconds)
            threading.Event().wait(min(seconds, 0.001))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "sleep", sleep)
            shorten(patch, patience)
            patch.setattr(constants, "HF_HUB_DISABLE_XET", not case.scenario.xet)
            patch.setattr(constants, "HF_HUB_CACHE", str(case.cache))
            yield

    # ---- what is there -------------------------------------------------------------------------------------------

    def look(self, case: Case) -> Remote:
        """Read a repo as the admin of the Hub sees it."""
        if not self.admin.repo_exists(case.repo_id):
            return Remote(exists=False)
        refs = self.admin.list_repo_refs(case.repo_id, include_pull_requests=True)
        listed = {ref.name: ref.target_commit for ref in refs.branches}
        listed |= {ref.ref: ref.target_commit for ref in refs.pull_requests or ()}
        commits = {head: self._commits(case, head) for head in set(listed.values())}
        files = {head: self._files(case, head) for head in set(listed.values())}
        return Remote(
            exists=True,
            heads=listed,
            tags={ref.name: ref.target_commit for ref in refs.tags},
            history={name: commits[head] for name, head in listed.items()},
            files={name: files[head] for name, head in listed.items()},
        )

    def _commits(self, case: Case, head: str) -> tuple[str, ...]:
        return tuple(c.commit_id for c in self.admin.list_repo_commits(case.repo_id, revision=head))

    def _files(self, case: Case, head: str) -> dict[str, tuple[int, str]]:
        from huggingface_hub.hf_api import RepoFile

        tree = self.admin.list_repo_tree(case.repo_id, recursive=True, revision=head)
        return {
            e.path: (e.lfs.size, e.lfs.sha256) if e.lfs else (e.size, e.blob_id)
            for e in tree
            if isinstance(e, RepoFile)
        }


def publish(case: Case, *, endpoint: str, token: str, base: BaseCheckpoint | None = None) -> PublishedCommit:
    """Do what a publish does but for the computing: resolve, preflight, commit, read back.

    With a base, only the middle of it.
    """
    recipe, reporter = case.recipe(), Reporter(quiet=True)
    session = HubSession.open(endpoint=endpoint, token=token)
    found = base or resolve_base(recipe.base, session=session)
    target = preflight(recipe, base=found, session=session)
    done = commit.publish(case.folder, target=target, message="Drop 3", session=session, reporter=reporter, tag=TAG)
    back = [f for f in done.files if f.path in READ_BACK and not base]
    download(back, repo_id=case.repo_id, commit=done.commit, session=session, reporter=reporter)
    return done


@contextmanager
def all_said(attempt: Attempt) -> Iterator[None]:
    """Keep every log record of every library, and all that is printed."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    root, chatty = logging.getLogger(), logging.getLogger("huggingface_hub")
    before = root.level, chatty.level, chatty.propagate, chatty.handlers
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    chatty.setLevel(logging.DEBUG)
    chatty.propagate, chatty.handlers = True, []
    try:
        with redirect_stdout(text), redirect_stderr(text):
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        chatty.setLevel(before[1])
        chatty.propagate, chatty.handlers = before[2:]
        attempt.said += text.getvalue()


@contextmanager
def open_world(home: Path) -> Iterator[World]:
    """Serve a Hub below a folder, the only one that this process' clients know: they must not be imported yet."""
    assert "huggingface_hub" not in sys.modules
    with running_hub(home / "hub") as hub, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HF_")]:
            patch.delenv(name)
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        patch.setenv("HF_HOME", str(home / "hf"))
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("HUBPRUNE_HOME", str(home / "work"))
        with settings():
            yield World(hub, home, hub_folder=home / "hub")


@contextmanager
def settings() -> Iterator[None]:
    """Let the Xet client wait for moments only, in a new connection to the Hub."""
    from huggingface_hub import close_session
    from huggingface_hub.utils._xet import abort_xet_session

    def anew() -> None:
        close_session()
        abort_xet_session()

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        anew()
        yield
    anew()


def shorten(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the clients give up on an answer after some seconds."""
    from huggingface_hub import constants

    from hubprune.hub import repos as hub
    from hubprune.hub import session, target

    for module in (hub, target):
        patch.setattr(module, "REQUEST_SECONDS", seconds)
    for name in ("ANSWER_SECONDS", "CONNECT_SECONDS"):
        patch.setattr(session, name, seconds)
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        patch.setattr(constants, name, seconds)


def environment(world: World, **more: str) -> dict[str, str]:
    """Return the variables of a process whose clients know this world only."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own = {"HF_ENDPOINT": world.hub.endpoint, "HF_HOME": str(world.home / "children"), "PYTHONUNBUFFERED": "1"}
    return {**kept, **SETTINGS, **own, **more}


def everything_under(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield every file that clients left below a folder; what a Hub keeps is its own."""
    for path in folder.rglob("*"):
        if path.is_file() and "hub" not in path.relative_to(folder).parts[:2]:
            yield path, path.read_bytes()
