"""One cell of the matrix: a publish with one fault, what is on the Hub then, and the same publish again without."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fault_kinds import KINDS, Kind, Request, requests_of
from fault_world import BASE_ID, TAG, Attempt, Case, Remote, Scenario, World, environment

from hubprune.core.errors import HubpruneError
from hubprune.core.files import list_files
from hubprune.hub.retry import LONGEST_WAIT_SECONDS

KILL_SECONDS = 60.0
WORK_SECONDS = 0.15
"""How long the Hub gets to do the work of a request whose client is killed afterwards."""
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{16,}|Bearer \S*[A-Za-z0-9]{16}|xet-(?:read|write):[0-9]|stamp=[0-9]")
"""Tokens of the Hub, of its Xet store, and the stamps on its addresses."""


@dataclass(frozen=True)
class Cell:
    """A scenario, a request and a fault."""

    scenario: Scenario
    request: Request
    kind: Kind


@dataclass
class Result:
    """What became of a cell."""

    scenario: str
    request: str
    fault: str
    outcome: str
    """`published`, the class of the error, or `killed`."""
    message: str
    exit_code: int
    state: str
    """What was on the Hub then: `old`, `new`, or what is left of a new repo or branch."""
    rerun: str
    """How the same publish ended without the fault: `published` or `up to date`."""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, object]:
        """Return the plain values."""
        return asdict(self)


# ---- which cells -------------------------------------------------------------------------------------------------


def undisturbed(world: World, scenario: Scenario) -> list[Request]:
    """Publish without a fault and return the requests."""
    case = world.case(scenario)
    attempt = world.attempt(case)
    assert attempt.done is not None, attempt.said
    assert attempt.done.created
    world.forget(case)
    return requests_of(attempt.log, case)


def chosen(world: World, scenarios: Sequence[Scenario], *, every: bool) -> Iterator[Cell]:
    """Yield the cells of scenarios.

    A request that an earlier scenario with the same repo has too is left out, but for the commit, unless `every` one is
    wanted.
    """
    seen: set[tuple[bool, str]] = set()
    for scenario in scenarios:
        requests = undisturbed(world, scenario)
        keys = {request: (scenario.older and not _is_general(request), request.label) for request in requests}
        fresh = [r for r in requests if every or r.is_commit or keys[r] not in seen]
        seen |= set(keys.values())
        for request in fresh:
            yield from (Cell(scenario, request, kind) for kind in KINDS if kind.fault(request))


def _is_general(request: Request) -> bool:
    """Return whether a request says nothing of the target and comes before anything is written."""
    return BASE_ID in request.line or "whoami" in request.line


# ---- one cell ----------------------------------------------------------------------------------------------------


def run(world: World, cell: Cell, killable: Killable) -> Result:
    """Run a cell and judge it."""
    begin = time.monotonic()
    case = world.case(cell.scenario)
    before = world.look(case)
    fields = cell.kind.fault(cell.request)
    assert fields is not None
    times = 1000 if cell.kind.lasting else 1
    world.hub.set_faults([{**fields, "match": cell.request.pattern(case), "skip": cell.request.nth, "times": times}])
    try:
        attempt = killable.attempt(case) if cell.kind.kills else world.attempt(case, patience=cell.kind.patience)
    finally:
        world.hub.set_faults([])
    between = world.look(case)
    again = world.again(case)
    after = world.look(case)
    result = _judge(world, cell, case, attempt=attempt, again=again, states=(before, between, after))
    result.seconds = time.monotonic() - begin
    world.forget(case)
    return result


def _judge(
    world: World, cell: Cell, case: Case, *, attempt: Attempt, again: Attempt, states: tuple[Remote, Remote, Remote]
) -> Result:
    before, between, after = states
    state, problems = _state(case, before, between)
    outcome, message, code = _outcome(attempt, kills=cell.kind.kills)
    problems += _wrong_ending(attempt, state, outcome, kills=cell.kind.kills)
    problems += [f"the token is in what was said: {found}" for found in _secrets(world, attempt, again)]
    if not any(record.fault for record in attempt.log):
        problems.append("the fault hit no request")
    rerun, _, _ = _outcome(again, kills=False)
    final, wrong = _state(case, before, after)
    problems += [f"after the re-run: {text}" for text in wrong]
    if again.done is None:
        problems.append(f"the re-run failed: {again.error!r}")
    elif final != "new":
        problems.append(f"after the re-run the repo is {final}")
    elif (state == "new") == again.done.created:
        problems.append(f"the re-run says {rerun} after a repo that was {state}")
    return Result(
        scenario=cell.scenario.name, request=cell.request.label, fault=cell.kind.name, outcome=outcome,
        message=message, exit_code=code, state=state, rerun=rerun, problems=problems,
    )  # fmt: skip


def _outcome(attempt: Attempt, *, kills: bool) -> tuple[str, str, int]:
    """Return how a publish ended, what it said, and what the command line would exit with."""
    if attempt.done:
        return ("published" if attempt.done.created else "up to date"), "", 0
    if isinstance(attempt.error, HubpruneError):
        return type(attempt.error).__name__, str(attempt.error), attempt.error.exit_code
    if kills and attempt.error is None:
        return "killed", "", -signal.SIGKILL
    return f"bare {type(attempt.error).__name__}", str(attempt.error), 1


def _wrong_ending(attempt: Attempt, state: str, outcome: str, *, kills: bool) -> list[str]:
    """Return what is wrong with how the faulted publish ended, given what is on the Hub now."""
    problems = []
    if outcome.startswith("bare"):
        problems.append(f"{outcome}: {attempt.error}")
    if outcome == "published" and state != "new":
        problems.append(f"it says published, and the repo is {state}")
    if outcome == "up to date":
        problems.append("it says up to date, and it was not")
    if state.endswith("left behind") and not kills and "the same command fills it" not in str(attempt.error):
        problems.append(f"{state} after {outcome}, and that is not said")
    too_long = [seconds for seconds in attempt.waits if seconds > LONGEST_WAIT_SECONDS]
    if too_long or len(attempt.waits) > 60:
        problems.append(f"it sleeps {len(attempt.waits)} times, {max(attempt.waits):.0f} s at most")
    return problems


def _secrets(world: World, *attempts: Attempt) -> list[str]:
    """Look for the token in all that any library logs, and for other secrets in what a user gets to see."""
    shown = "".join(str(attempt.error) for attempt in attempts)
    said = "".join(attempt.said for attempt in attempts)
    return sorted({found[:12] for found in SECRET.findall(shown)} | ({"all of it"} if world.token in said else set()))


# ---- old or new --------------------------------------------------------------------------------------------------


def _state(case: Case, before: Remote, now: Remote) -> tuple[str, list[str]]:
    """Say whether a repo is as it was, as it is to be, or something in between, which is a problem."""
    place = _place(case, now)
    if place is None or now.heads.get(place) == before.heads.get(place):
        problems = ["the tag is there without the commit"] if TAG in now.tags else []
        return _old(case, before, now), problems + _moved(case, before, now)
    problems = _moved(case, before, now)
    parent = before.heads.get("main") or now.history[place][-1]
    if now.history[place][1:2] != (parent,) or len(now.history[place]) != _depth(before) + 1:
        if case.scenario.revision != "main" and now.heads[place] == before.heads["main"]:
            return "old, a branch left behind", problems
        if not before.exists and len(now.history[place]) == 1:
            return "old, an empty repo left behind", problems
        return "in between", [*problems, f"{len(now.history[place])} commits, of which the second is not the old head"]
    problems += _wrong_files(case, now, place)
    if not case.scenario.create_pr and TAG in now.tags and now.tags[TAG] != now.heads[place]:
        problems.append("the tag is elsewhere")
    return "new", problems


def _place(case: Case, now: Remote) -> str | None:
    """Return the branch or the pull request that the commit goes to; None where there is none."""
    if not now.exists:
        return None
    if not case.scenario.create_pr:
        return case.scenario.revision if case.scenario.revision in now.heads else None
    return next((name for name in now.heads if name.startswith("refs/pr/")), None)


def _depth(before: Remote) -> int:
    return len(before.history["main"]) if before.exists else 1


def _old(case: Case, before: Remote, now: Remote) -> str:
    if now.exists and not before.exists:
        return "old, an empty repo left behind"
    return "old"


def _moved(case: Case, before: Remote, now: Remote) -> list[str]:
    """Return what has changed although it was none of the publish's business."""
    problems = [] if now.exists or not before.exists else ["the repo has gone"]
    for name, head in before.heads.items():
        expected = case.scenario.revision == name and not case.scenario.create_pr
        if not expected and now.heads.get(name) != head:
            problems.append(f"{name} has moved")
    extra = set(now.heads) - set(before.heads) - {"main", case.scenario.revision}
    if len(extra) > int(case.scenario.create_pr):
        problems.append(f"there are {', '.join(sorted(extra))}")
    return problems


def _wrong_files(case: Case, now: Remote, place: str) -> list[str]:
    """Compare the commit with the folder, file by file; what an older publish owned has to have gone."""
    local = {f.path: f for f in list_files(case.folder)}
    remote = {path: found for path, found in now.files[place].items() if path != ".gitattributes"}
    if set(local) != set(remote):
        return [f"it has {sorted(set(local) ^ set(remote))} too many or too few"]
    return [
        f"{path} has other bytes"
        for path, file in local.items()
        if remote[path] not in ((file.size, file.sha256), (file.size, file.git_oid))
    ]


# ---- killed ------------------------------------------------------------------------------------------------------


class Killable:
    """Publishes in processes that are killed while the Hub holds a request of theirs."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._process: subprocess.Popen[str] | None = None

    def attempt(self, case: Case) -> Attempt:
        """Publish a case until the Hub meets a fault, then kill; without one, until it ends."""
        output = case.folder.with_name(f"{case.folder.name}.said")
        self._world.hub.clear_log()
        child = self._start(case, output)
        self._await_fault(child)
        os.kill(child, signal.SIGKILL)
        status = int(self._say())
        attempt = Attempt(said=output.read_text(), log=self._world.hub.log)
        if not os.WIFSIGNALED(status):
            attempt.error = RuntimeError(f"it ended with {status} before it was killed: {attempt.said[-500:]}")
        time.sleep(WORK_SECONDS)  # what the Hub was doing for it is over then
        return attempt

    def close(self) -> None:
        """End the process that forks."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()

    def _start(self, case: Case, output: Path) -> int:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("killable.py"))], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True, env=environment(self._world),
            )  # fmt: skip
        job = {
            "scenario": case.scenario.name, "repo_id": case.repo_id, "folder": str(case.folder),
            "cache": str(case.cache), "endpoint": self._world.hub.endpoint, "token": self._world.token,
            "output": str(output),
        }  # fmt: skip
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._say())

    def _say(self) -> str:
        return self._process.stdout.readline()

    def _await_fault(self, child: int) -> None:
        end = time.monotonic() + KILL_SECONDS
        while time.monotonic() < end and Path(f"/proc/{child}").exists():
            if hit := [r for r in self._world.hub.log if r.fault]:
                time.sleep(WORK_SECONDS if hit[0].fault == "withhold" else 0)
                return
            time.sleep(0.002)


@contextmanager
def killer(world: World) -> Iterator[Killable]:
    """Yield a `Killable` that is closed in the end."""
    found = Killable(world)
    try:
        yield found
    finally:
        found.close()
