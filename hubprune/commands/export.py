"""`hubprune export`: the formats of other runtimes."""

from __future__ import annotations

from hubprune.commands import options
from hubprune.commands.terminal import errors_shown, open_session, show, to_json

EXAMPLES = "Example:  hubprune export gguf me/Llama-3.2-3B-attn-drop-3 --outtype q8_0 --out pruned.gguf"


def gguf(
    checkpoint: options.Checkpoint,
    out: options.ExportOut = None,
    outtype: options.Outtype = "f16",
    base: options.ControlBase = None,
    revision: options.VerifyRevision = None,
    no_verify: options.NoVerify = False,
    endpoint: options.Endpoint = None,
    as_json: options.Json = False,
) -> None:
    """Write a GGUF file for llama.cpp, and compare it with the checkpoint in transformers."""
    with errors_shown() as reporter:
        session = open_session(endpoint)
        from hubprune.commands import export_lines as lines
        from hubprune.workflows import export as command

        chosen = command.ExportOptions(
            out=out,
            outtype=command.check_outtype(outtype),
            base=base,
            revision=revision or "main",
            verify="skip" if no_verify else "compare",
        )
        made = command.export_gguf(checkpoint, chosen, session=session, reporter=reporter)
        show(to_json(made) if as_json else lines.export_lines(made))
