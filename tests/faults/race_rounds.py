"""Two publishers at once on one repo: what each is told, and what the repo holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fault_world import SCENARIOS, Case, World, environment
from fault_world import publish as publish_case

from hubprune.core.errors import HubpruneError

ROUNDS = 20
PROCESS = """
import json, os, sys
from pathlib import Path
from fault_world import SCENARIOS, Case, publish
job = json.loads(sys.argv[1])
case = Case(SCENARIOS[job["scenario"]], job["repo_id"], Path(job["folder"]), Path(job["cache"]))
print("ready", flush=True)
sys.stdin.readline()
try:
    done = publish(case, endpoint=os.environ["HF_ENDPOINT"], token=job["token"])
    print(json.dumps({"said": "published" if done.created else "up to date", "commit": done.commit}))
except Exception as error:
    print(json.dumps({"said": type(error).__name__, "message": str(error)}))
"""


@dataclass(frozen=True)
class Ending:
    """How one of the two ended."""

    said: str
    commit: str = ""
    message: str = ""


@dataclass
class Round:
    """What became of a round."""

    number: int
    how: str
    """`threads` or `processes`, a new or an older repo, and whether both publish the same."""
    said: tuple[str, str]
    commits: int
    """How many came on top."""
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Return the plain values."""
        return asdict(self)


def run(world: World, number: int) -> Round:
    """Run a round; the numbers go through all ways to do it."""
    processes, older, same = number % 4 == 3, number % 2 == 1, number % 5 == 4
    first = world.case(SCENARIOS[1] if older else SCENARIOS[0])
    second = _rival(world, first, same=same)
    before = world.look(first)
    endings = (_in_processes if processes else _in_threads)(world, first, second)
    after = world.look(first)
    how = f"{'processes' if processes else 'threads'}, {'older publish' if older else 'new repo'}"
    how += ", the same files" if same else ""
    commits = len(after.history["main"]) - (len(before.history["main"]) if before.exists else 1)
    result = Round(number, how, (endings[0].said, endings[1].said), commits)
    result.problems = _problems(endings, commits=commits, history=after.history["main"], same=same)
    for case in (first, second):
        world.forget(case)
    return result


def _rival(world: World, first: Case, *, same: bool) -> Case:
    """Return another publish to the same repo; with a cache of its own, as another machine would have."""
    other = world.case(SCENARIOS[0])
    folder = first.folder if same else other.folder
    return replace(other, scenario=first.scenario, repo_id=first.repo_id, folder=folder)


def _problems(endings: tuple[Ending, Ending], *, commits: int, history: tuple[str, ...], same: bool) -> list[str]:
    winners = [e for e in endings if e.said == "published"]
    problems = [] if len(winners) == commits else [f"{len(winners)} say published, {commits} commits came"]
    if not winners:
        problems.append("nobody won")
    problems += [f"{w.commit} is not in the history" for w in winners if w.commit not in history]
    for loser in (e for e in endings if e.said != "published"):
        if loser.said == "up to date":
            problems += [] if same else ["up to date, though it had something else to publish"]
        elif loser.said != "ConflictError":
            problems.append(f"the loser got {loser.said}: {loser.message}")
        elif sum(commit in loser.message for commit in history) < 1 + (len(history) > 2):
            problems.append(f"the conflict does not name both commits: {loser.message}")
    return problems


# ---- at once -----------------------------------------------------------------------------------------------------


def _in_threads(world: World, *cases: Case) -> tuple[Ending, Ending]:
    """Publish from two threads of this process, which share its cache and its connections."""
    start = threading.Barrier(2)

    def run(case: Case) -> Ending:
        start.wait()
        try:
            done = publish_case(case, endpoint=world.hub.endpoint, token=world.token)
        except HubpruneError as error:
            return Ending(type(error).__name__, message=str(error))
        except Exception as error:
            return Ending(f"bare {type(error).__name__}", message=str(error))
        return Ending("published" if done.created else "up to date", commit=done.commit)

    with ThreadPoolExecutor(2) as pool:
        return tuple(pool.map(run, cases))


def _in_processes(world: World, *cases: Case) -> tuple[Ending, Ending]:
    """Publish from two processes that begin when both are ready."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), *sys.path])
    running = []
    for case in cases:
        job = {
            "scenario": SCENARIOS.index(case.scenario), "repo_id": case.repo_id, "folder": str(case.folder),
            "cache": str(case.cache), "token": world.token,
        }  # fmt: skip
        variables = environment(world, PYTHONPATH=path, HF_HUB_CACHE=str(case.cache))
        command = [sys.executable, "-c", PROCESS, json.dumps(job)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        running.append(subprocess.Popen(command, text=True, env=variables, **pipes))
    for process in running:
        process.stdout.readline()
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    return tuple(Ending(**json.loads(p.communicate(timeout=120)[0].splitlines()[-1])) for p in running)
