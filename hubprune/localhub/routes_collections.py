"""Collections: list, create, look at one, add to it."""

from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub import names
from hubprune.localhub.access import Account
from hubprune.localhub.refusal import RefusedError
from hubprune.localhub.routes import HubRoutes
from hubprune.localhub.web import Call, field, page, route

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
