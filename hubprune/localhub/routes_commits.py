"""Publishing: what a client calls between having files and having a commit."""

import base64
import binascii
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub import cards, names
from hubprune.localhub.commits import CommitOrder, parse_order
from hubprune.localhub.discussions import Discussions
from hubprune.localhub.hub import Repo
from hubprune.localhub.lfs import is_large
from hubprune.localhub.refusal import RefusedError, conflict, revision_not_found
from hubprune.localhub.routes import REPO, HubRoutes
from hubprune.localhub.web import Call, field, route

_MAX_ATTEMPTS = 100


class CommitRoutes(HubRoutes):
    """Handlers that write to a repository."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        return [
            route("/api/validate-yaml", self.validate_yaml, method="POST"),
            route(f"{REPO}/preupload/{{revision}}", self.preupload, method="POST"),
            route(f"{REPO}/commit/{{revision}}", self.commit, method="POST"),
            route(f"{REPO}/lfs-files/duplicate", self.duplicate, method="POST"),
        ]

    def validate_yaml(self, call: Call) -> Response:
        """Check the metadata of a card."""
        try:
            metadata = cards.read_metadata(field(call.json(), "content", str))
        except cards.MetadataError as error:
            message = str(error).encode(errors="replace").decode()
            return JSONResponse({"errors": [{"message": message}], "warnings": []}, 400)
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return JSONResponse({"errors": [], "warnings": warnings})

    def preupload(self, call: Call) -> Response:
        """Say for each file whether it goes into git or into the large file store, and what is there now."""
        repo = self.repo_to_change(call)
        sha = repo.git.resolve(call.params["revision"])
        wanted = [_described(file) for file in field(call.json(), "files", list)]
        entries = repo.git.entries(sha, [path for path, _, _ in wanted])
        present = {file.entry.path: file for file in self.hub.files(repo, list(entries.values()))}
        answer = []
        for path, size, sample in wanted:
            mode = "lfs" if is_large(path, size, sample) else "regular"
            row: dict[str, Any] = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if (file := present.get(path)) and file.entry.kind == "file":
                row["oid"] = file.pointer.sha256 if file.pointer else file.entry.oid
            answer.append(row)
        return JSONResponse({"files": answer, "commitOid": sha})

    def commit(self, call: Call) -> Response:
        """Make one commit on a branch, or a pull request of one commit."""
        proposes = call.flag("create_pr")
        repo = self.repo_to_change(call)
        author = self.known_caller(call)
        order = parse_order(call.body)
        web = call.origin + repo.web_path()
        if proposes:
            sha, number = self._open_pull_request(repo, call.params["revision"], order, author.name)
            extra = {"pullRequestUrl": f"{web}/discussions/{number}"}
        else:
            sha, extra = self._advance(repo, call.params["revision"], order, author.name), {}
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{web}/commit/{sha}", "hookOutput": ""}
        return JSONResponse({**answer, **extra})

    def duplicate(self, call: Call) -> Response:
        """Copy large files into another repository, which takes nothing but leave: the store is one for all."""
        self.repo(call, "read")
        done, failed = [], []
        for file in field(call.json(), "files", list):
            if not isinstance(file, dict):
                raise RefusedError(400, "A file is not a JSON object")
            sha256 = names.digest(field(file, "sha256", str))
            if self.hub.stored_size(sha256) is not None:
                done.append(sha256)
            else:
                failed.append({"sha256": sha256, "error": "not found"})
        return JSONResponse({"success": done, "failed": failed})

    def _advance(self, repo: Repo, revision: str, order: CommitOrder, author: str) -> str:
        """Put a commit on a branch.

        With a parent in the order, the branch has to be there still. Without one, a commit that came in between is
        built upon, so that of two writers both succeed.
        """
        ref = revision if revision.startswith(("refs/heads/", "refs/pr/")) else f"refs/heads/{revision}"
        changes = order.changes(self.hub.stored_size)
        for _ in range(_MAX_ATTEMPTS):
            head = repo.git.refs().get(ref)
            if head is None:
                raise revision_not_found(revision)
            if order.parent is not None and not head.startswith(order.parent):
                raise conflict()
            sha = repo.git.write_commit(head, changes, message=order.message, author=author)
            if repo.git.move_ref(ref, sha, old=head):
                return sha
        raise conflict()

    def _open_pull_request(self, repo: Repo, revision: str, order: CommitOrder, author: str) -> tuple[str, int]:
        """Store a commit, and open a pull request with it."""
        base = repo.git.resolve(order.parent or revision)
        changes = order.changes(self.hub.stored_size)
        sha = repo.git.write_commit(base, changes, message=order.message, author=author)
        title, text = order.summary.strip(), order.description.strip()
        made = Discussions(repo.git).open(title, text, author=author, head=sha)
        return sha, made.number


def _described(file: Any) -> tuple[str, int, bytes]:
    """Read what `preupload` is told of one file: path, size, first bytes."""
    if not isinstance(file, dict):
        raise RefusedError(400, "A file is not a JSON object")
    try:
        sample = base64.b64decode(field(file, "sample", str, ""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, "A sample is not valid base64") from error
    return names.file_path(field(file, "path", str)), field(file, "size", int), sample
