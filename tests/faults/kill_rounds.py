"""A whole `hubprune publish` that is killed at some moment and run again: what the repo holds, and what is left."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hubprune.cards.manifest import CARD, MANIFEST
from hubprune.cards.provenance import without_times
from hubprune.localhub import RunningHub, running_hub

KILLS = 30
REPO = "local/killed"
OPTIONS = ("--attn-drop", "1", "--num-samples", "6", "--limit", "2", "--repo-id", REPO)
ENDS_AFTER_SECONDS = 600.0
TIMED = (CARD, MANIFEST)
"""Files that say how long a run took; all others have to be the same, byte for byte."""


@dataclass
class Kill:
    """What became of a publish that was killed and run again."""

    number: int
    at: str
    """When it was killed: a moment, or what it said."""
    said: str
    """Its last line by then."""
    died: bool
    """Whether it was still running."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return it as a line."""
        ended = "" if self.died else " (it had ended)"
        return f"at {self.at}, after {self.said!r:.80}{ended}: {'; '.join(self.problems) or 'the same'}"

    def as_json(self) -> dict[str, object]:
        """Return the plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Published:
    """A repo as an undisturbed run and a disturbed one are to leave it."""

    files: Mapping[str, object]
    """Blob of each file; of those that name times, what they say beside them."""
    commits: int
    tags: tuple[str, ...]
    tag_is_head: bool


class KillWorld:
    """A Hub with a small base and its data, and one repo that is published over and over."""

    def __init__(self, hub: RunningHub, home: Path) -> None:
        import little
        from huggingface_hub import HfApi

        self.hub, self.home = hub, home
        self.api = HfApi(endpoint=hub.endpoint, token=hub.token)
        little.put_on_hub(self.api, little.write_base(home / "base"))
        little.write_files(home)
        self._command = [sys.executable, "-m", "hubprune", "publish", little.BASE, *little.SMALL, *OPTIONS]
        start = time.monotonic()
        self._places = self._fresh("undisturbed")
        assert self._start().wait(ENDS_AFTER_SECONDS) == 0, self._said()
        self.seconds = time.monotonic() - start
        self.published = self._look()
        self.left = self._left()

    def run(self, number: int, *, at: float | str) -> Kill:
        """Publish until a share of its time, or until it says something; kill it, run it again, and look.

        Only the process itself is killed, as by a lack of memory: nobody ends what it has started.
        """
        self._places = self._fresh(f"kill-{number}")
        self.api.delete_repo(REPO)
        moment, start = at * self.seconds if isinstance(at, float) else at, time.monotonic()
        process = self._start()
        self._wait(process, moment)
        process.kill()
        died = process.wait() < 0
        if not died:  # a machine that has less to do by now is faster
            self.seconds = min(self.seconds, time.monotonic() - start)
        lines = self._said().splitlines()
        when = f"{moment:.1f} s" if isinstance(moment, float) else moment
        result = Kill(number, when, lines[-1].strip() if lines else "", died)
        code = self._start().wait(ENDS_AFTER_SECONDS)
        if code:
            result.problems.append(f"the second run ended with {code}: {self._said().splitlines()[-3:]}")
        else:
            result.problems = [*self._differences(), *_difference("left behind", self.left, self._left())]
        shutil.rmtree(self.home / f"kill-{number}", ignore_errors=True)
        return result

    # ---- processes -----------------------------------------------------------------------------------------------

    def _fresh(self, name: str) -> Path:
        places = self.home / name
        (places / "tmp").mkdir(parents=True)
        return places

    def _start(self) -> subprocess.Popen[bytes]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUBPRUNE_"))}
        own = {
            "HF_ENDPOINT": self.hub.endpoint, "HF_TOKEN": self.hub.token, "HF_HOME": str(self._places / "hf"),
            "HUBPRUNE_HOME": str(self._places / "work"), "TMPDIR": str(self._places / "tmp"), "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        with (self._places / "said").open("wb") as said:
            return subprocess.Popen(
                self._command, cwd=self.home, env={**kept, **own}, stdout=subprocess.DEVNULL, stderr=said
            )

    def _wait(self, process: subprocess.Popen[bytes], at: float | str) -> None:
        end = time.monotonic() + (at if isinstance(at, float) else ENDS_AFTER_SECONDS)
        while time.monotonic() < end and process.poll() is None:
            if isinstance(at, str) and at in self._said():
                return
            threading.Event().wait(0.01)

    def _said(self) -> str:
        return (self._places / "said").read_text(errors="replace")

    # ---- what is there -------------------------------------------------------------------------------------------

    def _look(self) -> Published:
        refs = self.api.list_repo_refs(REPO)
        [head] = [ref.target_commit for ref in refs.branches]
        infos = self.api.model_info(REPO, files_metadata=True).siblings or ()
        files: dict[str, object] = {file.rfilename: file.blob_id for file in infos}
        return Published(
            files={**files, **self._timeless()},
            commits=len(self.api.list_repo_commits(REPO)),
            tags=tuple(ref.name for ref in refs.tags),
            tag_is_head=all(ref.target_commit == head for ref in refs.tags),
        )

    def _timeless(self) -> dict[str, object]:
        card, manifest = (Path(self.api.hf_hub_download(REPO, name, force_download=True)) for name in TIMED)
        values = json.loads(manifest.read_bytes())
        listed = {path: row for path, row in values["files"].items() if path != CARD}
        return {CARD: without_times(card.read_bytes()), MANIFEST: [values["content_sha256"], listed]}

    def _differences(self) -> list[str]:
        now, then = self._look(), self.published
        found = _difference("published", set(then.files), set(now.files))
        found += [
            f"{path} is another" for path in then.files if now.files.get(path, then.files[path]) != then.files[path]
        ]
        if (now.commits, now.tags, now.tag_is_head) != (then.commits, then.tags, then.tag_is_head):
            found.append(f"{now.commits} commits, tags {now.tags}, {now.tag_is_head=}")
        return found

    def _left(self) -> set[str]:
        """Return what lies in the work folder and in that of temporary files, and what a client has not finished."""
        work, temporary = self._places / "work", self._places / "tmp"
        found = {f"work/{path.relative_to(work).as_posix()}" for path in work.rglob("*")}
        found |= {f"tmp/{path.relative_to(temporary).as_posix()}" for path in temporary.rglob("*")}
        return found | {path.name for path in (self._places / "hf").rglob("*.incomplete")}


def _difference(what: str, then: set[str], now: set[str]) -> list[str]:
    return [f"{what}: {path} {'too many' if path in now else 'is missing'}" for path in sorted(then ^ now)]


@contextmanager
def open_kill_world(home: Path) -> Iterator[KillWorld]:
    """Serve a Hub below a folder, on which an undisturbed run has shown what is to come."""
    home.mkdir(parents=True, exist_ok=True)
    with running_hub(home / "hub") as hub:
        yield KillWorld(hub, home)


def moments(number: int) -> list[float]:
    """Draw moments of a run as shares of its time, the same ones each time; a few come after its end."""
    drawn = random.Random(number)
    return [drawn.uniform(0.0, 1.05) for _ in range(number)]
