"""Jobs: create, look at one, list, read the log, cancel.

Collections: list, create, look at one, add to it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from hubprune.localhub import names
from hubprune.localhub.access import Account
from hubprune.localhub.jobs import JobRecord, Stage
from hubprune.localhub.names import RefusedError
from hubprune.localhub.web import Call, HubRoutes, field, page, route

# ---- routes collections --------------------------------------------------------------------------------------------


_PER_PAGE = 50
_SHOWN_ITEMS = 4
"""A list shows no more items of each collection, as on the Hub."""
_LONGEST_TITLE = 60
_ITEM_KINDS = ("model", "dataset")


class CollectionRoutes(HubRoutes):
    """Handlers for collections."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        one = "/api/collections/{namespace}/{slug}"
        return [
            route("/api/collections", self.list),
            route("/api/collections", self.create, method="POST"),
            route(one, self.show),
            route(f"{one}/items", self.add, method="POST"),
        ]

    def list(self, call: Call) -> Response:
        """List the collections that the caller may see, or those of one owner."""
        account, owner = self.caller(call), call.query.get("owner")
        rows = [row for row in self.hub.collections.all() if owner in (None, row["owner"]) and _may_see(account, row)]

        def shown(part: Any) -> Any:
            numbered = [{k: v for k, v in row.items() if k != "position"} for row in part]  # clients count themselves
            return [{**row, "items": row["items"][:_SHOWN_ITEMS]} for row in numbered]

        return page(call, rows, size=_PER_PAGE, describe=shown)

    def create(self, call: Call) -> Response:
        """Create a collection; of the same owner and title there is only one."""
        account, body = self.known_caller(call), call.json()
        title, owner = field(body, "title", str), field(body, "namespace", str, None) or account.name
        if not title.strip() or len(title) > _LONGEST_TITLE or not names.is_clean(title):
            raise RefusedError(400, f"A title has 1 to {_LONGEST_TITLE} characters")
        if not account.may_create_in(owner):
            raise RefusedError(403, f'You don\'t have the rights to create a collection under "{owner}"')
        row, created = self.hub.collections.create(
            title, owner, private=field(body, "private", bool, False), description=field(body, "description", str, None)
        )
        if not created:
            return JSONResponse({"error": "This collection exists already", "slug": row["slug"]}, 409)
        return JSONResponse(row)

    def show(self, call: Call) -> Response:
        """Return one collection with all its items."""
        return JSONResponse(self._found(call))

    def add(self, call: Call) -> Response:
        """Put a repository into a collection."""
        account, row, body = self.known_caller(call), self._found(call), call.json()
        if not account.may_create_in(row["owner"]):
            raise RefusedError(403, "You don't have the rights to change this collection")
        item = field(body, "item", dict)
        kind, repo_id = field(item, "type", str), field(item, "id", str)
        if kind not in _ITEM_KINDS:
            raise RefusedError(400, f"This Hub collects models and datasets, not {kind}")
        self.hub.open(account, names.kind_of(kind), repo_id, "see")
        if not self.hub.collections.add(row["slug"], repo_id, kind, field(body, "note", str, None)):
            raise RefusedError(409, "This item is in the collection already")
        return JSONResponse(self.hub.collections.find(row["slug"]))

    def _found(self, call: Call) -> dict[str, Any]:
        row = self.hub.collections.find(f"{call.params['namespace']}/{call.params['slug']}")
        if row is None or not _may_see(self.caller(call), row):
            raise RefusedError(404, "Collection not found")
        return row


def _may_see(account: Account | None, row: dict[str, Any]) -> bool:
    return not row["private"] or (account is not None and account.belongs_to(row["owner"]))


# ---- routes jobs ---------------------------------------------------------------------------------------------------


_JOBS_PER_PAGE = 100
_FLAVOR = re.compile(r"[a-z0-9-]{1,40}")


class JobRoutes(HubRoutes):
    """Handlers for jobs."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        one = "/api/jobs/{namespace}/{job}"
        return [
            route("/api/jobs/{namespace}", self.create, method="POST"),
            route("/api/jobs/{namespace}", self.list),
            route(one, self.show),
            route(f"{one}/logs", self.log),
            route(f"{one}/cancel", self.cancel, method="POST"),
        ]

    def create(self, call: Call) -> Response:
        """Record a job."""
        account, spec = self._member(call), call.json()
        if not account.may_create_in(call.params["namespace"]):
            raise RefusedError(403, f"You may not run jobs in {call.params['namespace']}")
        _check(spec)
        job = self.hub.jobs.create(call.params["namespace"], spec)
        return JSONResponse(_described(job, account, stage="SCHEDULING"))

    def list(self, call: Call) -> Response:
        """List the jobs of a namespace, newest first, by stage and label."""
        account = self._member(call)
        stages, labels = call.query.getlist("stage"), call.query.getlist("label")
        found = [
            job
            for job in reversed(self.hub.jobs.all(call.params["namespace"]))
            if (not stages or job.stage in stages) and set(labels) <= _labels(job)
        ]
        return page(call, found, size=_JOBS_PER_PAGE, describe=lambda part: [_described(job, account) for job in part])

    def show(self, call: Call) -> Response:
        """Return one job."""
        account = self._member(call)
        return JSONResponse(_described(self._found(call), account))

    def log(self, call: Call) -> Response:
        """Stream the log as server-sent events."""
        self._member(call)
        job, tail = self._found(call), call.query.get("tail", "")
        if tail and not re.fullmatch(r"[0-9]{1,6}", tail):
            raise RefusedError(400, "tail is a number of lines")
        return StreamingResponse(_events(job, int(tail) if tail else None), media_type="text/event-stream")

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
        job = self.hub.jobs.find(call.params["namespace"], call.params["job"])
        if job is None:
            raise RefusedError(404, "Job not found")
        return job


def _check(spec: Mapping[str, Any]) -> None:
    if not all(isinstance(word, str) for word in field(spec, "command", list)):
        raise RefusedError(400, "A command is a list of words")
    if not _FLAVOR.fullmatch(field(spec, "flavor", str)):
        raise RefusedError(400, f"There is no flavor {spec['flavor']!r}")
    for name in ("environment", "secrets", "labels"):
        field(spec, name, dict, {})
    if not (field(spec, "dockerImage", str, "") or field(spec, "spaceId", str, "")):
        raise RefusedError(400, "A job needs an image")


def _labels(job: JobRecord) -> set[str]:
    return {f"{key}={value}" for key, value in job.spec.get("labels", {}).items()}


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


def _events(job: JobRecord, tail: int | None) -> Iterator[str]:
    for event in job.log(tail):
        yield f"data: {json.dumps(event)}\n\n" if event else ": keep-alive\n\n"
