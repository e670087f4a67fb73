"""Jobs as Hugging Face Jobs keeps them: recorded, never run.  What a job says and how it ends is a script of a test.

Collections: lists of repositories with a title, kept in one file.
"""

import json
import re
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from hubprune.localhub import names

__all__ = ["CollectionStore", "JobRecord", "JobScript", "JobStore"]


# ---- collections ---------------------------------------------------------------------------------------------------


Result = TypeVar("Result")
Row = dict[str, Any]
"""One collection, as clients read it."""


class CollectionStore:
    """The collections of one hub, by slug."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def all(self) -> list[Row]:
        """List all collections, the newest last."""
        return list(self._read().values())

    def find(self, slug: str) -> Row | None:
        """Return a collection; None where there is none."""
        return self._read().get(slug)

    def create(self, title: str, owner: str, *, private: bool, description: str | None) -> tuple[Row, bool]:
        """Make a collection, or return the owner's one of that title; the second value tells whether it is new."""

        def _found_or_made(rows: dict[str, Row]) -> tuple[Row, bool]:
            same = next((row for row in rows.values() if (row["owner"], row["title"]) == (owner, title)), None)
            if same:
                return same, False
            words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "collection"
            slug = f"{owner}/{words}-{secrets.token_hex(12)}"
            rows[slug] = {
                "slug": slug, "title": title, "owner": owner, "items": [], "lastUpdated": _now(), "private": private,
                "theme": "green", "upvotes": 0, "position": len(rows), "description": description,
            }  # fmt: skip
            return rows[slug], True

        return self._change(_found_or_made)

    def add(self, slug: str, item_id: str, item_type: str, note: str | None) -> bool:
        """Put an item at the end of a collection; False where it is in it already."""

        def _appended(rows: dict[str, Row]) -> bool:
            items = rows[slug]["items"]
            if any((item["id"], item["type"]) == (item_id, item_type) for item in items):
                return False
            told = {"note": {"text": note}} if note else {}
            items.append(
                {"_id": secrets.token_hex(12), "id": item_id, "type": item_type, "position": len(items), **told}
            )
            rows[slug]["lastUpdated"] = _now()
            return True

        return self._change(_appended)

    def _read(self) -> dict[str, Row]:
        return json.loads(self._file.read_bytes()) if self._file.exists() else {}

    def _change(self, change: Callable[[dict[str, Row]], Result]) -> Result:
        with self._lock:
            rows = self._read()
            result = change(rows)
            names.write_bytes(self._file, json.dumps(rows, indent=1).encode())
        return result


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


# ---- jobs ----------------------------------------------------------------------------------------------------------


Stage = Literal["SCHEDULING", "RUNNING", "COMPLETED", "ERROR", "CANCELED"]

_LOOK_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class JobScript:
    """What becomes of a job."""

    lines: tuple[str, ...] = ("This Hub records jobs and runs none.",)
    """Its log."""
    stage: Stage = "COMPLETED"
    """How it ends."""
    message: str | None = None
    holds: bool = False
    """Goes on after its last line until it is cancelled."""


@dataclass(kw_only=True)
class JobRecord:
    """A job that was asked for."""

    id: str
    namespace: str
    spec: Mapping[str, Any]
    """The request, secrets included."""
    script: JobScript = field(repr=False)
    created: str = field(default_factory=lambda: _now())
    ended: threading.Event = field(default_factory=threading.Event, repr=False)
    canceled: bool = False

    @property
    def stage(self) -> Stage:
        """How far it is; a job that was just asked for waits for a machine."""
        if self.canceled:
            return "CANCELED"
        return self.script.stage if self.ended.is_set() else "RUNNING"

    def cancel(self) -> None:
        """End it, if it has not ended yet."""
        if not self.ended.is_set():
            self.canceled = True
            self.ended.set()

    def log(self, tail: int | None) -> Iterator[Mapping[str, str]]:
        """Yield the lines of the log as events; the end of the log is the end of the job."""
        lines = ("===== Job started at 2026-01-01 00:00:00 =====", *self.script.lines)
        for line in lines[-tail:] if tail else lines:
            yield {"timestamp": self.created, "data": line}
        if not self.script.holds:
            self.ended.set()
        while not self.ended.wait(_LOOK_SECONDS):
            yield {}  # so that a client that has gone is noticed


class JobStore:
    """The jobs of one hub, for as long as it serves."""

    def __init__(self) -> None:
        self._jobs: dict[str, JobRecord] = {}
        self._scripts: deque[JobScript] = deque()

    def script(self, script: JobScript) -> None:
        """Say what becomes of the next job that has no script yet."""
        self._scripts.append(script)

    def create(self, namespace: str, spec: Mapping[str, Any]) -> JobRecord:
        """Record a job."""
        script = self._scripts.popleft() if self._scripts else JobScript()
        job = JobRecord(id=secrets.token_hex(12), namespace=namespace, spec=spec, script=script)
        self._jobs[job.id] = job
        return job

    def find(self, namespace: str, job_id: str) -> JobRecord | None:
        """Return a job of a namespace."""
        job = self._jobs.get(job_id)
        return job if job and job.namespace == namespace else None

    def all(self, namespace: str | None = None) -> list[JobRecord]:
        """List the jobs of a namespace, or all, oldest first."""
        return [job for job in self._jobs.values() if namespace in (None, job.namespace)]
