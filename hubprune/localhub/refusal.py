"""The one exception with which a handler turns a request down."""

from collections.abc import Mapping


class RefusedError(Exception):
    """Answer the request with an error that the Hub's clients understand.

    `code` becomes the X-Error-Code header, from which `huggingface_hub` picks its exception class: RepoNotFound,
    RevisionNotFound, EntryNotFound or GatedRepo.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})


def conflict() -> RefusedError:
    """Refuse a commit because the branch has moved."""
    return RefusedError(412, "A commit has happened since. Please refresh and try again.")


def revision_not_found(revision: str) -> RefusedError:
    """Refuse a revision that no branch, tag, pull request or commit answers to."""
    return RefusedError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(path: str, sha: str) -> RefusedError:
    """Refuse a path that the commit does not hold; clients note the commit to remember the absence."""
    message = f'{path} does not exist on "{sha}"'
    return RefusedError(404, message, code="EntryNotFound", headers={"X-Repo-Commit": sha})
