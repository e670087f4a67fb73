"""Jobs and collections: kept for those who ask for them.

Jobs are kept as Hugging Face Jobs keeps them: recorded, never run. What a job says and how it ends is a script of a
test. Collections are lists of repositories with a title, in one file.
"""

import dataclasses
import json
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from starlette.responses import JSONResponse, Response, StreamingResponse

from hubprune.localhub import checks
from hubprune.localhub.checks import Account, RefusedError, timestamp
from hubprune.localhub.hub import Hub
from hubprune.localhub.web import Call, HubRoutes, answers, field, page

Stage = Literal["SCHEDULING", "RUNNING", "COMPLETED", "ERROR", "CANCELED"]

_LOOK_SECONDS = 0.05
_JOBS_PER_PAGE = 100
_FLAVOR = re.compile(r"[a-z0-9-]{1,40}")
_JOBS, _JOB = "/api/jobs/{namespace}", "/api/jobs/{namespace}/{job}"

Row = dict[str, Any]
"""One collection, as clients read it."""

_COLLECTIONS, _COLLECTION = "/api/collections", "/api/collections/{namespace}/{slug}"
_COLLECTIONS_PER_PAGE = 50
_SHOWN_ITEMS = 4
"""A list shows no more items of each collection, as on the Hub."""
_LONGEST_TITLE = 60
_ITEM_KINDS = ("model", "dataset")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobScript:
    """What becomes of a job."""

    lines: tuple[str, ...] = ("This Hub records jobs and runs none.",)
    """Its log."""
    stage: Stage = "COMPLETED"
    """How it ends."""
    message: str | None = None
    holds: bool = False
    """Goes on after its last line until it is cancelled."""


@dataclasses.dataclass(kw_only=True)
class JobRecord:
    """A job that was asked for."""

    id: str
    namespace: str
    spec: Mapping[str, Any]
    """The request, secrets included."""
    script: JobScript = dataclasses.field(repr=False)
    created: str = dataclasses.field(default_factory=lambda: timestamp(int(time.time())))
    ended: threading.Event = dataclasses.field(default_factory=threading.Event, repr=False)
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


@dataclasses.dataclass(frozen=True)
class JobStore:
    """The jobs of one hub, for as long as it serves."""

    records: dict[str, JobRecord] = dataclasses.field(default_factory=dict)
    """By their ids, oldest first."""
    scripts: deque[JobScript] = dataclasses.field(default_factory=deque)
    """What becomes of the next jobs."""


class JobRoutes(HubRoutes):
    """Handlers for jobs."""

    def __init__(self, hub: Hub, jobs: JobStore) -> None:
        super().__init__(hub)
        self.jobs = jobs

    @answers(_JOBS, method="POST")
    def create(self, call: Call) -> Response:
        """Record a job."""
        account, spec = self._member(call), call.json()
        if not account.may_create_in(call.params["namespace"]):
            raise RefusedError(403, f"You may not run jobs in {call.params['namespace']}")
        if not all(isinstance(word, str) for word in field(spec, "command", list)):
            raise RefusedError(400, "A command is a list of words")
        if not _FLAVOR.fullmatch(field(spec, "flavor", str)):
            raise RefusedError(400, f"There is no flavor {spec['flavor']!r}")
        for name in ("environment", "secrets", "labels"):
            field(spec, name, dict, {})
        if not (field(spec, "dockerImage", str, "") or field(spec, "spaceId", str, "")):
            raise RefusedError(400, "A job needs an image")
        script = self.jobs.scripts.popleft() if self.jobs.scripts else JobScript()
        job = JobRecord(id=secrets.token_hex(12), namespace=call.params["namespace"], spec=spec, script=script)
        self.jobs.records[job.id] = job
        return JSONResponse(_described(job, account, stage="SCHEDULING"))

    @answers(_JOBS)
    def list(self, call: Call) -> Response:
        """List the jobs of a namespace, newest first, by stage and label."""
        account = self._member(call)
        stages, labels = call.query.getlist("stage"), call.query.getlist("label")
        found = []
        for job in reversed([*self.jobs.records.values()]):
            has = {f"{key}={value}" for key, value in job.spec.get("labels", {}).items()}
            if job.namespace == call.params["namespace"] and (not stages or job.stage in stages) and has >= {*labels}:
                found.append(job)
        return page(call, found, size=_JOBS_PER_PAGE, describe=lambda part: [_described(job, account) for job in part])

    @answers(_JOB)
    def show(self, call: Call) -> Response:
        """Return one job."""
        account = self._member(call)
        return JSONResponse(_described(self._found(call), account))

    @answers(f"{_JOB}/logs")
    def log(self, call: Call) -> Response:
        """Stream the log as server-sent events."""
        self._member(call)
        job, tail = self._found(call), call.query.get("tail", "")
        if tail and not re.fullmatch(r"[0-9]{1,6}", tail):
            raise RefusedError(400, "tail is a number of lines")
        events = job.log(int(tail) if tail else None)
        stream = (f"data: {json.dumps(event)}\n\n" if event else ": keep-alive\n\n" for event in events)
        return StreamingResponse(stream, media_type="text/event-stream")

    @answers(f"{_JOB}/cancel", method="POST")
    def cancel(self, call: Call) -> Response:
        """End a job."""
        account = self._member(call)
        if not account.may_create_in(call.params["namespace"]):
            raise RefusedError(403, "This token has no write permission")
        self._found(call).cancel()
        return JSONResponse({})

    def _member(self, call: Call) -> Account:
        account = self.known_caller(call)
        if not account.belongs_to(call.params["namespace"]):
            raise RefusedError(403, f"You are no member of {call.params['namespace']}")
        return account

    def _found(self, call: Call) -> JobRecord:
        if (job := self.jobs.records.get(call.params["job"])) is None or job.namespace != call.params["namespace"]:
            raise RefusedError(404, "Job not found")
        return job


def _described(job: JobRecord, account: Account, *, stage: Stage | None = None) -> dict[str, Any]:
    """Describe a job as clients read it; of its secrets only the names."""
    shown = ("dockerImage", "spaceId", "command", "arguments", "environment", "flavor", "labels")
    kind = "user" if job.namespace == account.name else "org"
    return {
        **{name: job.spec[name] for name in shown if name in job.spec},
        "secrets": dict.fromkeys(job.spec.get("secrets", {}), ""),
        "id": job.id,
        "createdAt": job.created,
        "owner": {"id": job.namespace, "name": job.namespace, "type": kind},
        "initiator": {"id": account.name, "name": account.name, "type": "user"},
        "status": {"stage": stage or job.stage, "message": job.script.message if job.ended.is_set() else None},
    }


class CollectionStore:
    """The collections of one hub, by slug."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def rows(self) -> dict[str, Row]:
        """Return all collections, the newest last."""
        return json.loads(self._file.read_bytes()) if self._file.exists() else {}

    def create(self, title: str, owner: str, *, private: bool, description: str | None) -> tuple[Row, bool]:
        """Make a collection, or return the owner's one of that title; the second value tells whether it is new."""
        with self._changing() as rows:
            for row in rows.values():
                if (row["owner"], row["title"]) == (owner, title):
                    return row, False
            words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "collection"
            slug, now = f"{owner}/{words}-{secrets.token_hex(12)}", timestamp(int(time.time()))
            rows[slug] = {
                "slug": slug, "title": title, "owner": owner, "items": [], "lastUpdated": now, "private": private,
                "theme": "green", "upvotes": 0, "position": len(rows), "description": description,
            }  # fmt: skip
            return rows[slug], True

    def add(self, slug: str, item_id: str, item_type: str, note: str | None) -> bool:
        """Put an item at the end of a collection; False where it is in it already."""
        with self._changing() as rows:
            items = rows[slug]["items"]
            if any((item["id"], item["type"]) == (item_id, item_type) for item in items):
                return False
            item = {"_id": secrets.token_hex(12), "id": item_id, "type": item_type, "position": len(items)}
            items.append({**item, "note": {"text": note}} if note else item)
            rows[slug]["lastUpdated"] = timestamp(int(time.time()))
            return True

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Row]]:
        with self._lock:
            rows = self.rows()
            yield rows
            checks.write_bytes(self._file, json.dumps(rows, indent=1).encode())


class CollectionRoutes(HubRoutes):
    """Handlers for collections."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.collections = CollectionStore(hub.directory / "collections.json")

    @answers(_COLLECTIONS)
    def list(self, call: Call) -> Response:
        """List the collections that the caller may see, or those of one owner."""
        account, owner = self.caller(call), call.query.get("owner")
        every = self.collections.rows().values()
        rows = [row for row in every if owner in (None, row["owner"]) and _may_see(account, row)]

        def shown(part: Any) -> Any:
            numbered = [{k: v for k, v in row.items() if k != "position"} for row in part]  # clients count themselves
            return [{**row, "items": row["items"][:_SHOWN_ITEMS]} for row in numbered]

        return page(call, rows, size=_COLLECTIONS_PER_PAGE, describe=shown)

    @answers(_COLLECTIONS, method="POST")
    def create(self, call: Call) -> Response:
        """Create a collection; of the same owner and title there is only one."""
        account, body = self.known_caller(call), call.json()
        title, owner = field(body, "title", str), field(body, "namespace", str, None) or account.name
        if not title.strip() or len(title) > _LONGEST_TITLE or not checks.is_clean(title):
            raise RefusedError(400, f"A title has 1 to {_LONGEST_TITLE} characters")
        if not account.may_create_in(owner):
            raise RefusedError(403, f'You don\'t have the rights to create a collection under "{owner}"')
        private, description = field(body, "private", bool, False), field(body, "description", str, None)
        row, created = self.collections.create(title, owner, private=private, description=description)
        refusal = {"error": "This collection exists already", "slug": row["slug"]}
        return JSONResponse(row) if created else JSONResponse(refusal, 409)

    @answers(_COLLECTION)
    def show(self, call: Call) -> Response:
        """Return one collection with all its items."""
        return JSONResponse(self._found(call))

    @answers(f"{_COLLECTION}/items", method="POST")
    def add(self, call: Call) -> Response:
        """Put a repository into a collection."""
        account, row, body = self.known_caller(call), self._found(call), call.json()
        if not account.may_create_in(row["owner"]):
            raise RefusedError(403, "You don't have the rights to change this collection")
        item = field(body, "item", dict)
        kind, repo_id = field(item, "type", str), field(item, "id", str)
        if kind not in _ITEM_KINDS:
            raise RefusedError(400, f"This Hub collects models and datasets, not {kind}")
        self.hub.open(account, checks.kind_of(kind), repo_id, "see")
        if not self.collections.add(row["slug"], repo_id, kind, field(body, "note", str, None)):
            raise RefusedError(409, "This item is in the collection already")
        return JSONResponse(self.collections.rows()[row["slug"]])

    def _found(self, call: Call) -> dict[str, Any]:
        row = self.collections.rows().get(f"{call.params['namespace']}/{call.params['slug']}")
        if row is None or not _may_see(self.caller(call), row):
            raise RefusedError(404, "Collection not found")
        return row


def _may_see(account: Account | None, row: dict[str, Any]) -> bool:
    return not row["private"] or (account is not None and account.belongs_to(row["owner"]))
