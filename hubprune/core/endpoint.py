"""Which Hub a process talks to.

`HF_ENDPOINT` is read when huggingface_hub is imported, and again by datasets: set afterwards it moves only one of them,
and a run would read from one Hub and publish to another.  So it is set here, before either is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from hubprune.core.errors import RecipeError

DEFAULT_ENDPOINT = "https://huggingface.co"
LOOPBACK = "http://localhost"
"""Stands for every Hub on the reader's own machine."""


def use_endpoint(endpoint: str | None) -> str:
    """Make every Hub client of this process use one endpoint, and return it.

    Args:
        endpoint: root address of the Hub; None for `HF_ENDPOINT`, else the public Hub.

    Raises:
        RecipeError: it is no http address, or a client was imported for another endpoint before.
    """
    # datasets fails with a misleading message where the address ends in a slash.
    chosen = (endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(chosen)
        fits = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # brackets that do not close, or a port that is none
        fits = False
    if not fits or not chosen.isprintable() or " " in chosen:
        raise RecipeError(f"{chosen!r} is no address of a Hub.", hint="It looks like https://huggingface.co.")
    os.environ["HF_ENDPOINT"] = chosen
    check_endpoint(chosen)
    return chosen


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
