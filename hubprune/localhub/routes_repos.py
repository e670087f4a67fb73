"""Accounts and whole repositories: who is calling, create, delete, settings, branches and tags, history, and moves.

Also what a trusted publisher's identity is exchanged for: a short-lived token for a job that keeps no secret.
"""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from hubprune.localhub import checks
from hubprune.localhub.checks import PUBLISHER, Account, RefusedError, conflict, revision_not_found
from hubprune.localhub.git import LoggedCommit
from hubprune.localhub.hub import Repo
from hubprune.localhub.web import REPO, Call, HubRoutes, answers, field, page, text_field, wants_private

_COMMITS_PER_PAGE = 50

# The exchange of tokens, which RFC 8693 describes.
_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_IDENTITY = "urn:ietf:params:oauth:token-type:id_token"
_ACCESS = "urn:ietf:params:oauth:token-type:access_token"


class RepoRoutes(HubRoutes):
    """Handlers for accounts, and for a repository as a whole."""

    @answers("/api/whoami-v2")
    def whoami(self, call: Call) -> Response:
        """Say whose token this is and what it may do; that of a trusted publisher is nobody's."""
        account = self.known_caller(call)
        if account.role == "publisher":
            raise RefusedError(401, "Invalid username or password.")
        # Clients look here before they create a repository, so the admin has to be a member wherever there is one.
        namespaces = self.hub.namespaces() if account.admin else account.orgs
        orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in namespaces]
        token: dict[str, object] = {"displayName": account.role, "role": account.role}
        if account.role == "fineGrained":
            reads_gated = account.reads_gated and bool(account.granted)
            everywhere = ["discussion.write"] if account.proposes else []
            named = [("model", repo_id) for repo_id in account.writable]
            named += [("user" if name == account.name else "org", name) for name in dict.fromkeys(account.creatable)]
            permissions = ["repo.content.read", "repo.write"]
            scoped = [{"entity": {"type": kind, "name": name}, "permissions": permissions} for kind, name in named]
            token["fineGrained"] = {"canReadGatedRepos": reads_gated, "global": everywhere, "scoped": scoped}
        who = {"type": "user", "id": account.name, "name": account.name, "fullname": account.name, "isPro": False}
        return JSONResponse({**who, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}})

    @answers("/api/repos/create", method="POST")
    def create(self, call: Call) -> Response:
        """Create a repository, in the caller's namespace unless an organization is named."""
        account, body = self.known_caller(call), call.json()
        kind, namespace, repo_id = _named(body, account)
        if not account.may_create_in(namespace):
            message = f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{namespace}"'
            raise RefusedError(403, message)
        try:
            status, repo = 200, self.hub.create_repo(kind, repo_id, private=wants_private(body) or False)
        except FileExistsError:
            status, repo = 409, self.hub.open(account, kind, repo_id, "see")
        return _made(call, repo, status, name=repo_id, id=repo_id)

    @answers("/api/repos/delete", method="DELETE")
    def delete(self, call: Call) -> Response:
        """Delete a repository."""
        account, body = self.known_caller(call), call.json()
        kind, namespace, repo_id = _named(body, account)
        repo = self.hub.open(account, kind, repo_id, "write")
        if not account.may_create_in(namespace):
            raise RefusedError(403, f"You don't have the rights to delete {repo_id}")
        self.hub.delete_repo(repo)
        return Response(status_code=200)

    @answers(f"{REPO}/settings", method="PUT")
    def settings(self, call: Call) -> Response:
        """Change who can see a repository, and whether its content has to be asked for."""
        repo, body = self.repo(call, "write"), call.json()
        changes: dict[str, Any] = {}
        if "gated" in body:
            if body["gated"] not in ("auto", "manual", False):
                raise RefusedError(400, "gated is one of auto, manual and false")
            changes["gated"] = body["gated"]
        if (private := wants_private(body)) is not None:
            changes["private"] = private
        repo.change_settings(**changes)
        return JSONResponse({})

    @answers(f"{REPO}/auth-check", f"{REPO}/auth-check/write")
    def check(self, call: Call) -> Response:
        """Answer 200 if the caller may read the content, or commit."""
        self.repo(call, "write" if call.path.endswith("/auth-check/write") else "read")
        return JSONResponse({})

    @answers(f"{REPO}/refs")
    def refs(self, call: Call) -> Response:
        """List branches, tags and pull requests."""
        refs = self.repo(call, "see").git.refs()

        def named(prefix: str) -> list[dict[str, str]]:
            listed = ((ref, sha) for ref, sha in refs.items() if ref.startswith(prefix))
            return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha} for ref, sha in listed]

        pull_requests = [{**ref, "name": ref["ref"]} for ref in named("refs/pr/")]
        answer = {"branches": named("refs/heads/"), "tags": named("refs/tags/"), "converts": []}
        return JSONResponse({**answer, "pullRequests": pull_requests})

    @answers(f"{REPO}/commits/{{revision}}")
    def commits(self, call: Call) -> Response:
        """List the history of a revision, newest first."""
        repo, sha = self.revision(call, "see")

        def row(commit: LoggedCommit) -> dict[str, Any]:
            row = {"id": commit.sha, "date": commit.date, "title": commit.title, "message": commit.description}
            return {**row, "authors": [{"user": commit.author}]}

        return page(call, repo.git.log(sha), size=_COMMITS_PER_PAGE, describe=lambda part: list(map(row, part)))

    @answers(f"{REPO}/branch/{{branch}}", method="POST")
    def create_branch(self, call: Call) -> Response:
        """Start a branch at a revision."""
        start = field(call.json(), "startingPoint", str, None) or "main"
        return self._new_ref(self.repo(call, "write"), f"refs/heads/{checks.ref_name(call.params['branch'])}", start)

    @answers(f"{REPO}/branch/{{branch}}", method="DELETE")
    def delete_branch(self, call: Call) -> Response:
        """Delete a branch other than main."""
        branch = checks.ref_name(call.params["branch"])
        repo = self.repo(call, "write")
        if branch == "main":
            raise RefusedError(403, "Cannot delete the branch main")
        repo.git.delete_ref(f"refs/heads/{branch}")
        return Response(status_code=200)

    @answers(f"{REPO}/tag/{{revision}}", method="POST")
    def create_tag(self, call: Call) -> Response:
        """Tag a revision."""
        tag = checks.ref_name(field(call.json(), "tag", str))
        return self._new_ref(self.repo(call, "write"), f"refs/tags/{tag}", call.params["revision"])

    @answers(f"{REPO}/tag/{{revision}}", method="DELETE")
    def delete_tag(self, call: Call) -> Response:
        """Delete a tag."""
        self.repo(call, "write").git.delete_ref(f"refs/tags/{checks.ref_name(call.params['revision'])}")
        return Response(status_code=200)

    def _new_ref(self, repo: Repo, ref: str, revision: str) -> Response:
        if not repo.git.move_ref(ref, repo.git.resolve(revision), old=None):
            raise RefusedError(409, f"Reference {ref} already exists")
        return JSONResponse({})

    @answers("/api/repos/move", method="POST")
    def move(self, call: Call) -> Response:
        """Give a repository another name, perhaps in another namespace of the caller."""
        account, body = self.known_caller(call), call.json()
        kind = checks.kind_of(field(body, "type", str, None) or "model")
        source, target = (_two_parts(field(body, name, str)) for name in ("fromRepo", "toRepo"))
        repo = self.hub.open(account, kind, source, "write")
        _check_namespace(account, source)
        _check_namespace(account, target)
        try:
            moved = self.hub.move_repo(repo, target)
        except FileExistsError as error:
            raise RefusedError(409, f"{target} exists already") from error
        return JSONResponse({"url": call.origin + moved.web_path()})

    @answers(f"{REPO}/duplicate", method="POST")
    def duplicate(self, call: Call) -> Response:
        """Copy a repository with its history, without its discussions."""
        source, account, body = self.repo(call, "read"), self.known_caller(call), call.json()
        target, private = _two_parts(field(body, "repository", str)), wants_private(body)
        _check_namespace(account, target)
        private = source.settings.private if private is None else private
        try:
            status, made = 200, self.hub.copy_repo(source, target, private=private)
        except FileExistsError:
            status, made = 409, self.hub.open(account, source.kind, target, "see")
        return _made(call, made, status, filesCopyPending=False)

    @answers(f"{REPO}/super-squash/{{revision}}", method="POST")
    def forget_history(self, call: Call) -> Response:
        """Make one commit of a branch and all that came before."""
        repo, branch = self.repo(call, "write"), checks.ref_name(call.params["revision"])
        message, author = text_field(call.json(), "message"), self.known_caller(call).name
        ref = f"refs/heads/{branch}"
        if (head := repo.git.refs().get(ref)) is None:
            raise revision_not_found(branch)
        only = repo.git.commit_tree(f"{head}^{{tree}}", parent=None, message=message, author=author)
        if not repo.git.move_ref(ref, only, old=head):
            raise conflict()
        return JSONResponse({})

    @answers("/oauth/token", method="POST")
    def exchange(self, call: Call) -> Response:
        """Give a token for the repository, or a reading one for the user, that trusts the identity."""
        body = call.json()
        if (field(body, "grant_type", str), field(body, "subject_token_type", str)) != (_GRANT, _IDENTITY):
            refusal = {"error": "invalid_request", "error_description": "Only identity tokens are exchanged here"}
            return JSONResponse(refusal, 400)
        resource = field(body, "resource", str)
        if not self.hub.accounts.trusts(field(body, "subject_token", str), resource):
            refusal = {"error": "invalid_grant", "error_description": "No trusted publisher matches this identity"}
            return JSONResponse(refusal, 400)
        publisher, accounts = Account(name=PUBLISHER, role="publisher", writable=(resource,)), self.hub.accounts
        token = accounts.add(publisher if "/" in resource else Account(name=resource, role="read"))
        answer = {"token_type": "bearer", "expires_in": accounts.lifetime_seconds, "issued_token_type": _ACCESS}
        return JSONResponse({**answer, "access_token": token})


def _named(body: Mapping[str, Any], account: Account) -> tuple[str, str, str]:
    """Read which repository is meant: its kind, its namespace, which is the caller's unless named, and its id."""
    kind = checks.kind_of(field(body, "type", str, None) or "model")
    namespace = field(body, "organization", str, None) or account.name
    return kind, namespace, checks.repo_id(namespace, field(body, "name", str))


def _made(call: Call, repo: Repo, status: int, **told: object) -> Response:
    """Tell of a new repository, or, with status 409, of the one that is there already."""
    refused = {"error": f"You already created this {repo.kind[:-1]} repo"} if status == 409 else {}
    return JSONResponse({"url": call.origin + repo.web_path(), **told, **refused}, status)


def _two_parts(text: str) -> str:
    namespace, _, name = text.partition("/")
    return checks.repo_id(namespace, name)


def _check_namespace(account: Account, repo_id: str) -> None:
    namespace = repo_id.split("/")[0]
    if not account.may_create_in(namespace):
        raise RefusedError(403, f"You don't have the rights to create or move repositories in {namespace}")
