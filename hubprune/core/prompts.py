"""What models are asked: prompts, one per line of a file, and what a chat template makes of messages.

A chat template is a stranger's Jinja: transformers renders it, in its sandbox, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import Chat
from hubprune.core.errors import RecipeError, UnsupportedFormatError
from hubprune.core.strict import parse_json

PACKAGE_PROMPTS = Path(__file__).parent.parent / "evaluation" / "prompts.txt"
TEMPLATE, MORE_TEMPLATES, SETTINGS = "chat_template.jinja", "additional_chat_templates", "tokenizer_config.json"
DEFAULT = "default"
"""Name of the chat template that is taken where a tokenizer has several."""
ASKS_FOR_THE_DAY = "strftime_now"
"""The function by which a template writes the day into a prompt."""
Message = Mapping[str, Any]
"""A turn of a conversation: `role` and `content`."""


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read prompts, one per line; empty lines are passed over.

    Raises:
        RecipeError: the file cannot be read or holds no prompt.
    """
    try:
        prompts = tuple(text for line in path.read_text(encoding="utf-8").splitlines() if (text := line.strip()))
    except (OSError, ValueError) as error:
        raise RecipeError(f"Cannot read the prompts in {path}: {error}") from error
    if not prompts:
        raise RecipeError(f"{path} holds no prompt.")
    return prompts


# ---- chat templates ------------------------------------------------------------------------------------------------


def chat_templates(folder: Path) -> dict[str, str]:
    """Read the chat templates of a tokenizer, by name, as transformers 5 does: files win over tokenizer_config.json.

    Raises:
        CheckpointError: tokenizer_config.json is no JSON object.
    """
    files = {path.stem: path for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    if (single := folder / TEMPLATE).is_file():
        files[DEFAULT] = single
    if files:
        texts = {name: path.read_text(encoding="utf-8", errors="replace") for name, path in files.items()}
        return {name: text for name, text in texts.items() if text}
    path = folder / SETTINGS
    told = parse_json(path.read_bytes(), where=str(path)).get("chat_template") if path.is_file() else None
    rows = told if isinstance(told, list) else [{"name": DEFAULT, "template": told}]
    pairs = [(row.get("name"), row.get("template")) for row in rows if isinstance(row, dict)]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str) and text}


def chat_of(folder: Path) -> Chat:
    """Say that prompts go through the chat template in a folder now, and which day it writes into them, if it does."""
    dated = ASKS_FOR_THE_DAY in chat_templates(folder).get(DEFAULT, "")
    return Chat(date=datetime.now(UTC).astimezone().date().isoformat() if dated else None)


def rendered(tokenizer: Any, messages: Sequence[Message], *, answer: bool, of: str = "the base") -> str:
    """Return what the chat template of a tokenizer makes of a conversation, with the opening of an answer if `answer`.

    `of` is what errors call the model.

    Raises:
        UnsupportedFormatError: the template cannot be rendered.
    """
    try:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=answer, tokenize=False))
    except Exception as error:  # whatever Jinja, its sandbox, or the template itself raises
        raise unrenderable(error, of=of) from error


def unrenderable(error: Exception, *, of: str = "the base") -> UnsupportedFormatError:
    """Make an error of whatever a chat template raised."""
    said = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    return UnsupportedFormatError(
        f"The chat template of {of} cannot be rendered: {said:.200}", hint="Leave it out: --no-apply-chat-template."
    )


def chat_ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Return the token ids of a rendered conversation, in which the template has put all special tokens."""
    return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])
