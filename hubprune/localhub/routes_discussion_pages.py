"""Pages for people who follow the address of a discussion or a pull request, which clients print."""

from functools import partial

from starlette.responses import Response
from starlette.routing import Route

from hubprune.localhub.discussions import Discussion, Discussions, Event
from hubprune.localhub.hub import Repo
from hubprune.localhub.markup import render
from hubprune.localhub.pages import DiscussionRow, EventRow, Frame, discussion_page, discussions_page
from hubprune.localhub.proposals import conflicts_of, difference_of, events_of
from hubprune.localhub.routes import HubRoutes, number_of
from hubprune.localhub.routes_pages import for_people, frame_of, media_address
from hubprune.localhub.web import Call, route

_MAX_DIFF = 200_000
"""Characters of a difference that a page shows; clients get all of it."""


class DiscussionPageRoutes(HubRoutes):
    """Handlers that answer with HTML about discussions."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        made = []
        for prefix in ("/{kind:kind}/{namespace}/{name}", "/{namespace}/{name}"):
            made.append(route(f"{prefix}/discussions", self.listing))
            made.append(route(f"{prefix}/discussions/{{number}}", self.one))
        return made

    @for_people
    def listing(self, call: Call) -> Response:
        """List the discussions and pull requests of a repository."""
        repo = self.repo(call, "see")
        rows = [_row(repo, discussion) for discussion in Discussions(repo.git).all()]
        return discussions_page(_frame(repo), rows)

    @for_people
    def one(self, call: Call) -> Response:
        """Show one of them, with the changes that a pull request proposes."""
        repo = self.repo(call, "read")
        discussion = Discussions(repo.git).get(number_of(call))
        events = [_event_row(repo, event) for event in events_of(repo.git, discussion)]
        diff = difference_of(repo.git, discussion) if discussion.is_pull_request else ""
        shown = diff if len(diff) <= _MAX_DIFF else f"{diff[:_MAX_DIFF]}\n... and more\n"
        conflicts = conflicts_of(repo.git, discussion)
        return discussion_page(_frame(repo), _row(repo, discussion), events=events, conflicts=conflicts, diff=shown)


def _frame(repo: Repo) -> Frame:
    return frame_of(repo, repo.git.resolve("main"), "Discussions")


def _row(repo: Repo, discussion: Discussion) -> DiscussionRow:
    kind = "pull request" if discussion.is_pull_request else "discussion"
    return DiscussionRow(
        name=f"{kind} #{discussion.number}",
        title=discussion.title,
        status=discussion.status,
        author=discussion.author,
        date=discussion.created_at,
        address=f"{repo.web_path()}/discussions/{discussion.number}",
    )


def _event_row(repo: Repo, event: Event) -> EventRow:
    """Say in words what has happened; what was written is rendered as a card is."""
    row = partial(EventRow, author=event.author, date=event.created_at)
    match event.type:
        case "commit":
            sha = event.data["oid"]
            address = f"{repo.web_path()}/tree/{sha}"
            return row(what=event.data["subject"], detail=sha[:8], address=address)
        case "title-change":
            return row(what="changed the title from", detail=event.data["from"])
        case "status-change":
            return row(what="changed the status to", detail=event.data["status"])
    text = event.data["latest"]["raw"]
    body = render(text, address_of=partial(media_address, repo, "main"))
    return row(what="comment, taken away" if event.data["hidden"] else "comment", body=body)
