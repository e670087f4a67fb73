"""What the groups of routes have in common."""

import re
from urllib.parse import urlencode

from hubprune.localhub.access import Account
from hubprune.localhub.discussions import Discussions
from hubprune.localhub.hub import Hub, Need, Repo
from hubprune.localhub.refusal import RefusedError
from hubprune.localhub.web import Call

REPO = "/api/{kind:kind}/{namespace}/{name}"
"""Where the Hub's interface keeps what concerns one repository."""


class HubRoutes:
    """A group of handlers for one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def caller(self, call: Call) -> Account | None:
        """Return whose token came with the request, None without one."""
        return self.hub.accounts.identify(call.headers.get("authorization"))

    def known_caller(self, call: Call) -> Account:
        """Return whose token came with the request, which needs one."""
        account = self.caller(call)
        if account is None:
            raise RefusedError(401, "Invalid username or password.")
        return account

    def repo(self, call: Call, need: Need) -> Repo:
        """Return the repository that the address names, if the caller may do with it what it needs to.

        Who asks for a repository by the name that it had before is sent to the new one.
        """
        account = self.caller(call)
        try:
            return self.hub.open(account, call.kind, call.repo_id, need)
        except RefusedError as refusal:
            moved = self.hub.moved_to(call.kind, call.repo_id) if refusal.code == "RepoNotFound" else None
            if moved is None:
                raise
            self.hub.open(account, call.kind, moved, "see")  # or else it does not exist under any name
            raise RefusedError(307, f"Moved to {moved}", headers={"Location": _renamed(call, moved)}) from refusal

    def repo_to_change(self, call: Call) -> Repo:
        """Return the repository that the address names, if the caller may put a commit where it says.

        Everybody with a token that may write proposes, and goes on with what they have proposed.
        """
        revision = call.params["revision"]
        own = re.fullmatch(r"refs/pr/([1-9][0-9]{0,8})", revision)
        if call.flag("create_pr"):
            return self.repo(call, "propose")
        if own:
            repo = self.repo(call, "propose")
            if Discussions(repo.git).get(int(own[1])).author == self.known_caller(call).name:
                return repo
        return self.repo(call, "write")


def number_of(call: Call) -> int:
    """Return the number of the discussion that the address names."""
    text = call.params["number"]
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RefusedError(400, "A discussion is named by its number")
    return int(text)


def _renamed(call: Call, repo_id: str) -> str:
    """Return the address of a call with another repository in it, relative to the server as clients want it."""
    path = re.sub(rf"/{re.escape(call.repo_id)}(?=/|\.git|$)", f"/{repo_id}", call.path, count=1)
    return f"{path}?{urlencode(call.query.multi_items())}" if call.query else path
