"""`hubprune card`."""

from __future__ import annotations

from pathlib import Path

from hubprune.commands import card_options, options
from hubprune.commands.terminal import errors_shown, open_session, show, show_page

EXAMPLES = "Examples:  hubprune card ./kept --notes notes.md  |  hubprune card me/Llama-3.2-3B-attn-drop-3@v2 --preview"


def card(
    published: card_options.Published,
    notes: card_options.Notes = None,
    card_template: card_options.CardTemplate = None,
    overwrite_card: card_options.OverwriteEditedCard = False,
    preview: card_options.Preview = False,
    no_open: options.NoOpen = False,
    port: options.HubPort = 0,
    endpoint: options.Endpoint = None,
) -> None:
    """Render the card of a published folder again, from its hubprune.json alone; --preview shows one in a browser."""
    with errors_shown() as reporter:
        from hubprune.workflows import card as cards

        if preview:
            cards.check_shown_as_is(notes=notes, card_template=card_template, overwrite_card=overwrite_card)
            shown = cards.preview(published, open_session=lambda: open_session(endpoint), reporter=reporter)
            show_page(shown, port=port, opens=not no_open, reporter=reporter)
            return
        choices = cards.CardChoices.read(notes=notes, template=card_template)
        done = cards.write_card(Path(published), choices, overwrite_card=overwrite_card)
        show(f"{done.path}  {done.outcome}  sha256 {done.sha256}")
