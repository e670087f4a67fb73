"""Measure what publishing a pruned checkpoint costs in bytes, against a local Hub that holds its base.

    python benchmarks/upload.py [--quick]

The base, a random Llama in several shards, is pushed to the Hub once.  Each group of rows starts from that state of the
Hub.  Each row is two fresh processes on a machine of its own, that is, with an HF_HOME of its own: one downloads the
base, writes the pruned checkpoint and estimates the upload as a dry run does, the other publishes it with the code that
`hubprune publish` uses.

attention drop   three attentions of ten: from the machine that has pushed the base (warm), from one that has never
                 uploaded anything (cold), cold with the primer, and cold without Xet
the same again   after cold with the primer
another card     the same with another README.md and hubprune.json
30 % width       three in ten neurons of every MLP gone, cold with the primer: for information
  killed         the same on top of the attention drop, ended by SIGKILL when all chunks are there, but not yet the list
                 that makes files of them: the worst moment
  run again      after that, on the same machine

`stored` is what the Hub's stores of large files grew by, also in percent of the weights.  `sent` is the bodies of all
requests that write: with the files that travel inside of the commit, and with what the client tells about chunks.
`estimate` is what the dry run said of `stored` and of the files inside of the commit.  The base is so large that a cold
client comes by chunks that it asks the Hub for of its own accord.  `--quick` takes a small base, whose shares say
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from measuring import Bound, Row, at_most, report
from random_llama import LlamaShape, write_llama

from hubprune.core.artifacts import DroppedSublayer, DropPlan, WidthPlan
from hubprune.core.console import Reporter
from hubprune.core.files import list_files, write_atomically
from hubprune.localhub import RunningHub, running_hub

if TYPE_CHECKING:
    from hubprune.core.artifacts import BaseCheckpoint
    from hubprune.hub.session import HubSession

FULL = LlamaShape(1024, 2816, 10, 16, 16, 8000, "BF16")
QUICK = LlamaShape(256, 704, 10, 8, 8, 1024, "BF16")
SHARDS = 4
DROPPED = (3, 5, 6)
BASE_ID, RESULT_ID = "somebody/base", "me/pruned"
PRIMED, WIDTH = "attention drop, cold + primer", "30 % width, cold + primer"
AGAIN, CARD = "  the same again", "  another card"
LARGE = ".safetensors"
"""The one kind of files here that does not travel inside of the commit."""
MOST_PERCENT = 1.0
ESTIMATE_PERCENT = 3.0
COMMIT_OVERHEAD_BYTES = 5_000
"""What a commit's payload adds to the base64 of its files."""
BASE64 = 4 / 3


@dataclass
class World:
    """A Hub that holds the base, and the cache of the machine that pushed it."""

    folder: Path
    port: int = 0
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1000)))

    @contextmanager
    def hub(self) -> Iterator[RunningHub]:
        """Serve a Hub in the state after the push, at the same address each time: caches are kept by address."""
        directory = self.new_folder("hub")
        if (self.folder / "pushed").exists():
            shutil.copytree(self.folder / "pushed", directory, dirs_exist_ok=True)
        with running_hub(directory, port=self.port) as hub:
            self.port = urlsplit(hub.endpoint).port or 0
            yield hub
        if not (self.folder / "pushed").exists():
            shutil.copytree(directory, self.folder / "pushed")
        shutil.rmtree(directory)

    def cold(self) -> Path:
        """Make an HF_HOME that nothing was ever done with."""
        return self.new_folder("home")

    def warm(self) -> Path:
        """Make an HF_HOME like that of the machine that pushed the base."""
        home = self.new_folder("home")
        shutil.copytree(self.folder / "pusher", home, dirs_exist_ok=True)
        return home

    def new_folder(self, name: str) -> Path:
        """Make an empty folder."""
        folder = self.folder / f"{name}-{next(self.numbers)}"
        folder.mkdir()
        return folder


@dataclass(frozen=True)
class Cost:
    """What one publish brought to the Hub, in bytes."""

    stored: int
    sent: int
    weights: int
    """Of the pruned checkpoint."""
    in_commit: int
    """Files that travel inside of the commit."""
    estimate: int | None
    """What the dry run expected of both; None where it was not asked."""

    @property
    def percent(self) -> float:
        """Bytes stored, in percent of the weights."""
        return 100 * self.stored / self.weights

    @property
    def estimate_error(self) -> float:
        """By how much the estimate is off, in percent of what came."""
        came = self.stored + self.in_commit
        return 100 * abs((self.estimate or 0) - came) / came if came else 100.0 * bool(self.estimate)

    def figures(self) -> tuple[str, ...]:
        """Bytes stored, their share, bytes sent, and the estimate with its error."""
        estimate = f"{self.estimate:,}" if self.estimate is not None else "-"
        error = f"{self.estimate_error:.2f} %" if self.estimate is not None else "-"
        return f"{self.stored:,}", f"{self.percent:.2f} %", f"{self.sent:,}", estimate, error


def start_child(hub: RunningHub, home: Path, order: dict[str, Any], *, xet: bool = True) -> subprocess.Popen[bytes]:
    """Start an action of this script in a fresh process that knows one Hub and one cache."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = keep | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": hub.token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "" if xet else "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, "--child", json.dumps(order)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


def run_child(hub: RunningHub, home: Path, order: dict[str, Any], *, xet: bool = True) -> dict[str, Any]:
    """Run an action to its end and return what it found."""
    with start_child(hub, home, order, xet=xet) as child:
        stdout, _ = child.communicate()
    if child.returncode:
        sys.exit(f"{order['do']} failed with exit code {child.returncode}")
    found: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return found


@contextmanager
def counted(hub: RunningHub) -> Iterator[dict[str, int]]:
    """Count what the Hub stores, and what is sent to it, while the block runs."""
    count, before = dict[str, int](), hub.stored_bytes
    hub.clear_log()
    yield count
    after = hub.stored_bytes
    count["stored"] = after.xet - before.xet + after.lfs - before.lfs
    count["sent"] = sum(record.bytes_in for record in hub.log if record.method in ("POST", "PUT"))


def measure(world: World, hub: RunningHub, home: Path, *, kind: str = "drop", xet: bool = True, **options: Any) -> Cost:
    """Write a checkpoint in one process, publish it in another, and see what reached the Hub meanwhile."""
    order = {"kind": kind, "folder": str(world.new_folder("result")), **options}
    written = run_child(hub, home, {"do": "write", **order}, xet=xet)
    with counted(hub) as count:
        run_child(hub, home, {"do": "publish", **order}, xet=xet)
    return Cost(**count, **written)


def measure_killed(world: World, hub: RunningHub, home: Path) -> tuple[Cost, Cost]:
    """Kill an upload that is nearly done, find the old head, and measure what the next run sends."""
    order = {"kind": "width", "folder": str(world.new_folder("result"))}
    written = run_child(hub, home, {"do": "write", **order})
    old = head(hub)
    with counted(hub) as first, start_child(hub, home, {"do": "publish", **order}) as child:
        hub.set_faults([{"match": "POST /_xet/v1/shards", "do": "stall", "skip": 1}])  # the primer's own goes through
        while child.poll() is None and not any(record.fault == "stall" for record in hub.log):
            time.sleep(0.01)
        child.kill()
    hub.set_faults([])
    if head(hub) != old:
        sys.exit("a publish that was killed has moved the head")
    with counted(hub) as second:
        run_child(hub, home, {"do": "publish", **order})
    if head(hub) == old:
        sys.exit("the publish after one that was killed did not move the head")
    unasked = {**written, "estimate": None}
    return Cost(**first, **unasked), Cost(**second, **unasked)


def head(hub: RunningHub) -> str | None:
    """Return the commit that the result's repo is at."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=hub.token).model_info(RESULT_ID).sha


# ---- in the child ------------------------------------------------------------------------------------------------


def push_base(folder: str) -> dict[str, Any]:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(BASE_ID)
    paths = sorted(Path(folder).iterdir())
    adds = [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in paths]
    api.create_commit(BASE_ID, adds, commit_message="Base")
    return {}


def write(kind: str, folder: str, *, card: str = "# Card\n", primer: bool = True) -> dict[str, Any]:
    from hubprune.hub.upload_plan import plan_upload

    session, base = download()
    result = Path(folder)
    write_result(base, kind, result, card=card)
    plan = plan_upload(
        result,
        files=list_files(result),
        target=look_at_target(session),
        base=base,
        session=session,
        reporter=Reporter(quiet=True),
        scratch=result.parent,
        primer=primer,
    )
    in_commit = [f for f in plan.files if f.change in ("new", "changed") and not f.path.endswith(LARGE)]
    return {
        "weights": sum(f.size for f in plan.files if f.path.endswith(LARGE)),
        "in_commit": sum(f.size for f in in_commit),
        "estimate": plan.new_bytes,
    }


def publish(kind: str, folder: str, *, card: str = "# Card\n", primer: bool = True) -> dict[str, Any]:
    from hubprune.hub.commit import publish

    session, base = download()
    publish(
        Path(folder),
        target=look_at_target(session),
        message="Publish",
        session=session,
        reporter=Reporter(quiet=True),
        base=base if primer else None,
    )
    return {}


def download() -> tuple[HubSession, BaseCheckpoint]:
    from hubprune.core.recipe import BaseModelSpec
    from hubprune.hub.repos import download_base, resolve_base
    from hubprune.hub.session import HubSession

    session = HubSession.open()
    base = resolve_base(BaseModelSpec(repo_id=BASE_ID), session=session)
    return session, download_base(base, session=session, reporter=Reporter(quiet=True))


def look_at_target(session: HubSession) -> Any:
    from hubprune.hub.remote import head_of
    from hubprune.hub.target import Target, is_private

    exists = is_private(RESULT_ID, session=session) is not None
    parent = head_of(RESULT_ID, branch="main", session=session) if exists else None
    return Target(
        repo_id=RESULT_ID, revision="main", exists=exists, branch_exists=exists, parent=parent, private=False,
        create_pr=False, user="me",
    )  # fmt: skip


def write_result(base: BaseCheckpoint, kind: str, folder: Path, *, card: str) -> None:
    """Write a pruned checkpoint with the two files by which a publish knows its own card again."""
    from hubprune.pruning.checkpoint import write_checkpoint

    write_checkpoint(base, drop_plan(kind, base.config), folder, advance=lambda _: None)
    write_atomically(folder / "README.md", f"---\nlicense: apache-2.0\n---\n{card}")
    listed = {file.path: {"sha256": file.sha256, "size": file.size} for file in list_files(folder)}
    write_atomically(folder / "hubprune.json", json.dumps({"files": listed}, indent=2))


def drop_plan(kind: str, config: dict[str, Any]) -> DropPlan:
    layers, wide = config["num_hidden_layers"], config["intermediate_size"]
    if kind == "width":
        widths = WidthPlan(before=(wide,) * layers, kept=(wide * 7 // 10,) * layers, metric="l2")
        return DropPlan(selected_by="hand", num_hidden_layers=layers, dropped=(), widths=widths, layout="stock")
    dropped = tuple(DroppedSublayer(kind="attn", layer=layer) for layer in DROPPED)
    return DropPlan(selected_by="hand", num_hidden_layers=layers, dropped=dropped)


# ---- the table ---------------------------------------------------------------------------------------------------


def costs(world: World) -> dict[str, Cost]:
    """Publish in all ways, each group from the state of the Hub after the base was pushed."""
    found = {}
    with world.hub() as hub:
        found["attention drop, warm cache"] = measure(world, hub, world.warm(), primer=False)
    with world.hub() as hub:
        found["attention drop, cold cache"] = measure(world, hub, world.cold(), primer=False)
    with world.hub() as hub:
        found[PRIMED] = measure(world, hub, world.cold())
        found[AGAIN] = measure(world, hub, world.cold())
        found[CARD] = measure(world, hub, world.cold(), card="# Another card\n")
    with world.hub() as hub:
        found["attention drop, LFS"] = measure(world, hub, world.cold(), xet=False)
    with world.hub() as hub:
        found[WIDTH] = measure(world, hub, world.cold(), kind="width")
    with world.hub() as hub:
        home = world.cold()
        measure(world, hub, home)
        found["  killed"], found["  run again"] = measure_killed(world, hub, home)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small base, and no bounds on shares")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        given = json.loads(options.child)
        actions: dict[str, Callable[..., dict[str, Any]]] = {"push": push_base, "write": write, "publish": publish}
        print(json.dumps(actions[given.pop("do")](**given)))
        return 0
    with TemporaryDirectory(prefix="hubprune-upload-") as folder:
        return compare(Path(folder), quick=options.quick)


def compare(folder: Path, *, quick: bool) -> int:
    shape = QUICK if quick else FULL
    write_llama(folder / "base", shape, shards=SHARDS)
    world = World(folder)
    (folder / "pusher").mkdir()
    with world.hub() as hub:
        run_child(hub, folder / "pusher", {"do": "push", "folder": str(folder / "base")})
    print(f"{shape}, {SHARDS} shards; new bytes on a local Hub that holds the base")
    found = costs(world)
    rows = [Row(name, cost.figures(), bound(name, cost, quick=quick)) for name, cost in found.items()]
    worst = max(cost.estimate_error for name, cost in found.items() if "primer" in name)
    rows.append(Row("estimate with the primer, error in %", bound=at_most(worst, ESTIMATE_PERCENT)))
    return report(("stored, B", "of the weights", "sent, B", "estimate, B", "error"), rows)


def bound(name: str, cost: Cost, *, quick: bool) -> Bound | None:
    """Return what a row has to keep to."""
    if name == AGAIN:
        return at_most(cost.stored + cost.sent, 0)
    if name == CARD:
        limit = BASE64 * cost.in_commit + COMMIT_OVERHEAD_BYTES
        return Bound(f"0 stored, at most {limit:,.0f} sent", cost.stored == 0 and cost.sent <= limit)
    return at_most(cost.percent, MOST_PERCENT) if name == PRIMED and not quick else None


if __name__ == "__main__":
    sys.exit(main())
