"""Accounts and repositories: whoami, create, delete, settings, permissions, branches and tags, history."""

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub import names
from hubprune.localhub.access import Account
from hubprune.localhub.hub import Hub, Need, Repo
from hubprune.localhub.refusal import RefusedError
from hubprune.localhub.web import Call, field, page, route

REPO = "/api/{kind:kind}/{namespace}/{name}"
_COMMITS_PER_PAGE = 50


class RepoRoutes:
    """Handlers for a repository as a whole."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        return [
            route("/api/whoami-v2", self.whoami),
            route("/api/repos/create", self.create, method="POST"),
            route("/api/repos/delete", self.delete, method="DELETE"),
            route(f"{REPO}/settings", self.settings, method="PUT"),
            route(f"{REPO}/auth-check", self.may_read),
            route(f"{REPO}/auth-check/write", self.may_write),
            route(f"{REPO}/refs", self.refs),
            route(f"{REPO}/commits/{{revision}}", self.commits),
            route(f"{REPO}/branch/{{branch}}", self.create_branch, method="POST"),
            route(f"{REPO}/branch/{{branch}}", self.delete_branch, method="DELETE"),
            route(f"{REPO}/tag/{{revision}}", self.create_tag, method="POST"),
            route(f"{REPO}/tag/{{revision}}", self.delete_tag, method="DELETE"),
        ]

    def whoami(self, call: Call) -> Response:
        """Say whose token this is and what it may do."""
        account = self._someone(call)
        orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in account.orgs]
        token: dict[str, object] = {"displayName": account.role, "role": account.role}
        if account.role == "fineGrained":
            scopes = [
                {"entity": {"type": "model", "name": repo_id}, "permissions": ["repo.content.read", "repo.write"]}
                for repo_id in account.writable
            ]
            token["fineGrained"] = {"canReadGatedRepos": bool(account.granted), "global": [], "scoped": scopes}
        who = {"type": "user", "id": account.name, "name": account.name, "fullname": account.name, "isPro": False}
        return JSONResponse({**who, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}})

    def create(self, call: Call) -> Response:
        """Create a repository, in the caller's namespace unless an organization is named."""
        account, body = self._someone(call), call.json()
        kind = names.kind_of(field(body, "type", str, None) or "model")
        namespace = field(body, "organization", str, None) or account.name
        repo_id = names.repo_id(namespace, field(body, "name", str))
        if not account.may_create_in(namespace):
            message = f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{namespace}"'
            raise RefusedError(403, message)
        private = field(body, "visibility", str, None) == "private"
        try:
            status, repo = 200, self._hub.create_repo(kind, repo_id, private=private)
        except FileExistsError:
            status, repo = 409, self._hub.open(account, kind, repo_id, "see")
        answer = {"url": call.origin + repo.web_path(), "name": repo_id, "id": repo_id}
        refused = {"error": f"You already created this {kind[:-1]} repo"} if status == 409 else {}
        return JSONResponse({**answer, **refused}, status)

    def delete(self, call: Call) -> Response:
        """Delete a repository."""
        account, body = self._someone(call), call.json()
        kind = names.kind_of(field(body, "type", str, None) or "model")
        namespace = field(body, "organization", str, None) or account.name
        repo_id = names.repo_id(namespace, field(body, "name", str))
        repo = self._hub.open(account, kind, repo_id, "write")
        if not account.may_create_in(namespace):
            raise RefusedError(403, f"You don't have the rights to delete {repo_id}")
        self._hub.delete_repo(repo)
        return Response(status_code=200)

    def settings(self, call: Call) -> Response:
        """Change who can see a repository, and whether its content has to be asked for."""
        repo, body = self._repo(call, "write"), call.json()
        if "gated" in body:
            if body["gated"] not in ("auto", "manual", False):
                raise RefusedError(400, "gated is one of auto, manual and false")
            repo.change_settings(gated=body["gated"])
        if visibility := field(body, "visibility", str, None):
            if visibility not in ("public", "private"):
                raise RefusedError(400, "visibility is one of public and private")
            repo.change_settings(private=visibility == "private")
        return JSONResponse({})

    def may_read(self, call: Call) -> Response:
        """Answer 200 if the caller may read the content."""
        self._repo(call, "read")
        return JSONResponse({})

    def may_write(self, call: Call) -> Response:
        """Answer 200 if the caller may commit."""
        self._repo(call, "write")
        return JSONResponse({})

    def refs(self, call: Call) -> Response:
        """List branches, tags and pull requests."""
        refs = self._repo(call, "see").git.refs()

        def named(prefix: str) -> list[dict[str, str]]:
            listed = ((ref, sha) for ref, sha in refs.items() if ref.startswith(prefix))
            return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha} for ref, sha in listed]

        pull_requests = [{**ref, "name": ref["ref"]} for ref in named("refs/pr/")]
        answer = {"branches": named("refs/heads/"), "tags": named("refs/tags/"), "converts": []}
        return JSONResponse({**answer, "pullRequests": pull_requests})

    def commits(self, call: Call) -> Response:
        """List the history of a revision, newest first."""
        git = self._repo(call, "see").git
        rows = [
            {
                "id": commit.sha,
                "date": commit.date,
                "title": commit.title,
                "message": commit.description,
                "authors": [{"user": commit.author}],
            }
            for commit in git.log(git.resolve(call.params["revision"]))
        ]
        return page(call, rows, size=_COMMITS_PER_PAGE)

    def create_branch(self, call: Call) -> Response:
        """Start a branch at a revision."""
        start = field(call.json(), "startingPoint", str, None) or "main"
        return self._new_ref(self._repo(call, "write"), f"refs/heads/{names.ref_name(call.params['branch'])}", start)

    def create_tag(self, call: Call) -> Response:
        """Tag a revision."""
        tag = names.ref_name(field(call.json(), "tag", str))
        return self._new_ref(self._repo(call, "write"), f"refs/tags/{tag}", call.params["revision"])

    def delete_branch(self, call: Call) -> Response:
        """Delete a branch other than main."""
        branch = names.ref_name(call.params["branch"])
        repo = self._repo(call, "write")
        if branch == "main":
            raise RefusedError(403, "Cannot delete the branch main")
        repo.git.delete_ref(f"refs/heads/{branch}")
        return Response(status_code=200)

    def delete_tag(self, call: Call) -> Response:
        """Delete a tag."""
        self._repo(call, "write").git.delete_ref(f"refs/tags/{names.ref_name(call.params['revision'])}")
        return Response(status_code=200)

    def _new_ref(self, repo: Repo, ref: str, revision: str) -> Response:
        if not repo.git.move_ref(ref, repo.git.resolve(revision), old=None):
            raise RefusedError(409, f"Reference {ref} already exists")
        return JSONResponse({})

    def _repo(self, call: Call, need: Need) -> Repo:
        account = self._hub.accounts.identify(call.headers.get("authorization"))
        return self._hub.open(account, call.kind, call.repo_id, need)

    def _someone(self, call: Call) -> Account:
        account = self._hub.accounts.identify(call.headers.get("authorization"))
        if account is None:
            raise RefusedError(401, "Invalid username or password.")
        return account
