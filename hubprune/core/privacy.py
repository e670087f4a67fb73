"""What leaves this machine: to one Hub, nothing private in what is written down, of a base only files of known kinds.

`HF_ENDPOINT` is read when huggingface_hub is imported, and again by datasets: set afterwards it moves only one of them,
and a run would read from one Hub and publish to another.  So it is set here, before either is imported.

A result is published under its user's name, so of the files of a base besides its weights and config.json only those
travel, byte for byte, of which both name and kind are known: nothing that a program would run or unpickle.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import PurePath, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from hubprune.core.artifacts import BaseCheckpoint
from hubprune.core.errors import RecipeError
from hubprune.core.recipe import Recipe

DEFAULT_ENDPOINT = "https://huggingface.co"
LOOPBACK = "http://localhost"
"""Stands for every Hub on the reader's own machine."""
TASK_FOLDER = "tasks"
"""Folder of a published repo that holds the task YAMLs of `include_path`."""

TOKEN = re.compile(
    r"(?:hf|api_org)_[A-Za-z0-9]{16,}"
    r"|hf_(?:jwt|oauth)_[\w.-]{16,}"  # of trusted publishers, and of a login in the browser
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+",  # the identity that a job shows
    re.ASCII,
)
"""Wherever it begins: a token that is stuck to the word before it is still one."""
LOCAL_DATA = (".jsonl", ".json", ".parquet", ".txt", ".csv")


def use_endpoint(endpoint: str | None) -> str:
    """Make every Hub client of this process use one endpoint, and return it.

    Args:
        endpoint: root address of the Hub; None for the user's `HF_ENDPOINT`, else the public Hub.

    Raises:
        RecipeError: it is no http address, or a client was imported for another endpoint before.
    """
    before = os.environ.get("HF_ENDPOINT")
    users = _users.get(before, before) if before else None
    # datasets fails with a misleading message where the address ends in a slash.
    chosen = (endpoint or users or DEFAULT_ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(chosen)
        fits = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # brackets that do not close, or a port that is none
        fits = False
    if not fits or not chosen.isprintable() or " " in chosen:
        raise RecipeError(f"{chosen!r} is no address of a Hub.", hint="It looks like https://huggingface.co.")
    os.environ["HF_ENDPOINT"] = chosen
    try:
        check_endpoint(chosen)
    except RecipeError:  # the next call asks as if there had been none
        del os.environ["HF_ENDPOINT"]
        os.environ |= {"HF_ENDPOINT": before} if before else {}
        raise
    if endpoint and chosen != before:
        _users[chosen] = users
    return chosen


_users: dict[str, str | None] = {}
"""Address that a call asked for -> what the user had set before it, which holds for a call that asks for none."""


def check_endpoint(endpoint: str) -> None:
    """Refuse a process whose clients talk, or would talk once imported, to different Hubs.

    Raises:
        RecipeError: naming the addresses.
    """
    coming = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT)
    for module, name in (("huggingface_hub.constants", "ENDPOINT"), ("datasets.config", "HF_ENDPOINT")):
        used = getattr(sys.modules.get(module), name, coming)
        if used != endpoint:
            client = module.partition(".")[0]
            raise RecipeError(
                f"The libraries would talk to different Hubs: {client} to {used}, this run to {endpoint}.",
                hint=f"Set HF_ENDPOINT={endpoint} before the program starts.",
            )


@contextmanager
def no_calls_elsewhere() -> Iterator[None]:
    """Keep datasets from calling hosts other than the endpoint while the block runs.

    It would count downloads at S3, and ask datasets-server for an export, the latter with the user's token.  Where such
    a host does not answer, each call costs seconds.
    """
    import datasets.config as config

    before = config.HF_UPDATE_DOWNLOAD_COUNTS, config.USE_PARQUET_EXPORT
    config.HF_UPDATE_DOWNLOAD_COUNTS = config.USE_PARQUET_EXPORT = False
    try:
        yield
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS, config.USE_PARQUET_EXPORT = before


# ---- what is written down --------------------------------------------------------------------------------------------


def page(name: str, *, endpoint: str) -> str | None:
    """Return the address of a repo's page, or None on loopback, where no reader could follow it.

    A local Hub may answer on another port tomorrow, and a card must not change with it.
    """
    public = public_address(endpoint)
    return None if public == LOOPBACK else f"{public}/{name}"


def public_address(endpoint: str) -> str:
    """Return an endpoint as it may be written down: any on loopback is `LOOPBACK`, whatever its port."""
    host = urlsplit(endpoint).hostname or ""
    local = host == "localhost" or host.startswith("127.") or host == "::1"
    return LOOPBACK if local else endpoint


def scrub(text: str) -> str:
    """Replace access tokens, and the home folder by `~`."""
    text = TOKEN.sub("hf_…", text)
    home = os.path.expanduser("~")  # noqa: PTH111, pathlib raises where a user has none
    return re.sub(re.escape(home) + r"(?=[/\\\s:'\"]|$)", "~", text) if len(home) > 1 else text


def scrub_all(value: Any) -> Any:
    """Scrub every string in a JSON value."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {scrub(key): scrub_all(item) for key, item in value.items()}
    return [scrub_all(item) for item in value] if isinstance(value, (list, tuple)) else value


def is_local_data(dataset: str) -> bool:
    """Return whether a calibration data set is a file on this machine, by the rule of the recipe."""
    return dataset.endswith(LOCAL_DATA) or dataset.startswith(("/", "~", ".")) or "\\" in dataset


def public_name(dataset: str) -> str:
    """Return the name that a data set is published under: a local file keeps its file name only."""
    return PurePath(dataset.replace("\\", "/")).name if is_local_data(dataset) else dataset


def public_recipe(recipe: Recipe, *, base: BaseCheckpoint) -> Recipe:
    """Return the recipe as it is published: the base pinned to its commit, and names instead of local paths.

    The target keeps its name and loses its namespace and what follows a publish, so that whoever runs the recipe
    publishes as themselves.
    """
    calibration = recipe.calibration
    subsets = tuple(s.model_copy(update={"dataset": public_name(s.dataset)}) for s in calibration.subsets)
    tasks = TASK_FOLDER if recipe.evaluation.include_path else None
    name = (recipe.target.repo_id or "").rsplit("/", 1)[-1] or None
    target = {"repo_id": name, "create_pr": False, "staged": False, "collection": None, "supersedes": None}
    pinned = {"repo_id": base.name, "revision": base.commit or recipe.base.revision}
    parts = {
        "base": recipe.base.model_copy(update=pinned),
        "calibration": calibration.model_copy(update={"subsets": subsets}),
        "evaluation": recipe.evaluation.model_copy(update={"include_path": tasks}),
        "target": recipe.target.model_copy(update=target),
    }
    return recipe.model_copy(update=parts)


# ---- which files travel ----------------------------------------------------------------------------------------------

LICENSE_PATTERNS = ("license*", "notice*", "use_policy*")
"""Patterns of lower-case names at the top of a repo."""
CARRIED_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.tiktoken", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    *("generation_config.json", "chat_template*", "chat_templates/*", "additional_chat_templates/*"),
)
"""Patterns of tokenizer, generation and chat template files, at the top unless a folder is named."""
CARRIED_SUFFIXES = (".bpe", ".jinja", ".json", ".model", ".tiktoken", ".txt")
LICENSE_SUFFIXES = ("", ".html", ".md", ".pdf", ".rst", ".rtf", ".txt")
VERSION_SUFFIX = re.compile(r"\.v?\d+")
"""The end of `LICENSE-2.0` and of `tokenizer.model.v3`."""


def is_carried(path: str) -> bool:
    """Tell whether a file travels into the result; `path` is below the repo, with forward slashes."""
    return is_license(path) or (_matches(path, CARRIED_FILES) and _suffix(path) in CARRIED_SUFFIXES)


def is_license(path: str) -> bool:
    """Tell whether a file holds terms of use, to go by its name."""
    return _matches(path, LICENSE_PATTERNS) and _suffix(path) in LICENSE_SUFFIXES


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Compare without regard to case: a name that only some systems tell from another one is no other name."""
    name = path.lower()
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _suffix(path: str) -> str:
    """Return the suffix that says what kind of file it is, in lower case; that of a version says nothing."""
    name = PurePosixPath(path.lower())
    return name.with_suffix("").suffix if VERSION_SUFFIX.fullmatch(name.suffix) else name.suffix
