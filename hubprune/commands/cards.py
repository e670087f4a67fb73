"""`hubprune preview`."""

from __future__ import annotations

from hubprune.commands import options
from hubprune.commands.terminal import errors_shown, open_session, show_page

EXAMPLES = "Examples:  hubprune preview ./kept  |  hubprune preview me/Llama-3.2-3B-attn-drop-3@v2"


def preview(
    published: options.Published,
    no_open: options.NoOpen = False,
    port: options.HubPort = 0,
    endpoint: options.Endpoint = None,
) -> None:
    """Show the card of a folder or repo in a browser, as the Hub would, until Ctrl-C."""
    with errors_shown() as reporter:
        from hubprune import cards

        shown = cards.preview(published, open_session=lambda: open_session(endpoint), reporter=reporter)
        show_page(shown, port=port, opens=not no_open, reporter=reporter)
