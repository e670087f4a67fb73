"""Whole repositories on the move: under another name, as a copy, or without their past."""

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub import names
from hubprune.localhub.access import Account
from hubprune.localhub.merging import squash
from hubprune.localhub.refusal import RefusedError, conflict, revision_not_found
from hubprune.localhub.routes import REPO, HubRoutes
from hubprune.localhub.web import Call, field, route, text_field, wants_private


class MovingRoutes(HubRoutes):
    """Handlers that make one repository of another."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        return [
            route("/api/repos/move", self.move, method="POST"),
            route(f"{REPO}/duplicate", self.duplicate, method="POST"),
            route(f"{REPO}/super-squash/{{revision}}", self.forget_history, method="POST"),
        ]

    def move(self, call: Call) -> Response:
        """Give a repository another name, perhaps in another namespace of the caller."""
        account, body = self.known_caller(call), call.json()
        kind = names.kind_of(field(body, "type", str, None) or "model")
        source, target = (_named(field(body, name, str)) for name in ("fromRepo", "toRepo"))
        repo = self.hub.open(account, kind, source, "write")
        for repo_id in (source, target):
            _check_namespace(account, repo_id)
        try:
            moved = self.hub.move_repo(repo, target)
        except FileExistsError as error:
            raise RefusedError(409, f"{target} exists already") from error
        return JSONResponse({"url": call.origin + moved.web_path()})

    def duplicate(self, call: Call) -> Response:
        """Copy a repository with its history, without its discussions."""
        source, account, body = self.repo(call, "read"), self.known_caller(call), call.json()
        target, private = _named(field(body, "repository", str)), wants_private(body)
        _check_namespace(account, target)
        private = source.settings.private if private is None else private
        try:
            status, made = 200, self.hub.copy_repo(source, target, private=private)
        except FileExistsError:
            status, made = 409, self.hub.open(account, source.kind, target, "see")
        refused = {"error": f"You already created this {source.kind[:-1]} repo"} if status == 409 else {}
        answer = {"url": call.origin + made.web_path(), "filesCopyPending": False}
        return JSONResponse({**answer, **refused}, status)

    def forget_history(self, call: Call) -> Response:
        """Make one commit of a branch and all that came before."""
        repo, branch = self.repo(call, "write"), names.ref_name(call.params["revision"])
        message, author = text_field(call.json(), "message"), self.known_caller(call).name
        ref = f"refs/heads/{branch}"
        head = repo.git.refs().get(ref)
        if head is None:
            raise revision_not_found(branch)
        only = squash(repo.git, f"{head}^{{tree}}", parent=None, message=message, author=author)
        if not repo.git.move_ref(ref, only, old=head):
            raise conflict()
        return JSONResponse({})


def _named(text: str) -> str:
    namespace, _, name = text.partition("/")
    return names.repo_id(namespace, name)


def _check_namespace(account: Account, repo_id: str) -> None:
    if not account.may_create_in(repo_id.split("/")[0]):
        raise RefusedError(403, f"You don't have the rights to create or move repositories in {repo_id.split('/')[0]}")
