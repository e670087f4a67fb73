"""A small random base with its data on the Hub, and the command line as a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from little import BASE, SMALL, CommandLine, Ended, fill, put_on_hub, write_base, write_files

if TYPE_CHECKING:
    from hubprune.localhub import RunningHub

CHAT = b"""{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\r\n{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}\n"""


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def hub(hub: RunningHub, admin: Any, base_folder: Path) -> RunningHub:
    """The Hub with that base, and with others that are refused."""
    put_on_hub(admin, base_folder)
    base = {path.name: path.read_bytes() for path in base_folder.iterdir()}
    config = json.loads(base["config.json"])
    without = {k: v for k, v in base.items() if not k.endswith(".safetensors")}
    fill(admin, "meta/gated", base)
    admin.update_repo_settings("meta/gated", gated="manual")
    fill(admin, "meta/pickled", {**without, "pytorch_model.bin": b"\x80\x04never opened"})
    chats = {
        "told": {"chat_template.jinja": CHAT, "additional_chat_templates/tool_use.jinja": b"{{ 'tools' }}"},
        "broken": {"chat_template.jinja": b"{{ raise_exception('not to you\nreally') }}"},
    }
    for name, files in chats.items():
        fill(admin, f"meta/chat-{name}", {**base, **files})
    fill(admin, "meta/other", {**base, "config.json": json.dumps({**config, "model_type": "mamba"}).encode()})
    return hub


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """That folder for one test."""
    return write_files(tmp_path)


@pytest.fixture
def hubprune(hub: RunningHub, files: Path) -> CommandLine:
    """The command line with an admin's token and empty caches."""
    return CommandLine(hub, files, hub.token)


@pytest.fixture
def publish(hubprune: CommandLine) -> Callable[..., Ended]:
    """`hubprune publish meta/tiny` with the small mix and the small task, and whatever else is asked for."""

    def run(*more: object, base: str = BASE, **options: str) -> Ended:
        return hubprune("publish", base, *SMALL, *more, **options)

    return run


@pytest.fixture
def api(hub: RunningHub, admin: Any) -> Any:
    """A client that may do everything."""
    return admin
