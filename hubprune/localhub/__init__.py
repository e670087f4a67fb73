"""Serve a Hugging Face Hub on this machine's loopback interface.

The server speaks the Hub's own protocol, so the unmodified clients (`huggingface_hub`, `hf-xet`, `datasets`,
`transformers`) work against it once HF_ENDPOINT names it. It is there for dry runs, for the demo and for tests:

    with running_hub(directory) as hub:
        HfApi(endpoint=hub.endpoint, token=hub.token).create_repo("me/model")

Everything lives in one directory: a bare git repository per Hub repository, large files by their SHA-256, Xet chunks
as the client packed them, and the access tokens. A hub that is stopped and served again from the same directory has
lost nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubprune.localhub.faults import Fault, RequestRecord
    from hubprune.localhub.jobs import JobRecord, JobScript
    from hubprune.localhub.pages import Preview
    from hubprune.localhub.server import RunningHub, running_hub, serve, serve_preview

__all__ = [
    "Fault",
    "JobRecord",
    "JobScript",
    "Preview",
    "RequestRecord",
    "RunningHub",
    "running_hub",
    "serve",
    "serve_preview",
]

_HOME = {
    "Fault": "hubprune.localhub.faults",
    "JobRecord": "hubprune.localhub.jobs",
    "JobScript": "hubprune.localhub.jobs",
    "Preview": "hubprune.localhub.pages",
    "RequestRecord": "hubprune.localhub.faults",
    "RunningHub": "hubprune.localhub.server",
    "running_hub": "hubprune.localhub.server",
    "serve": "hubprune.localhub.server",
    "serve_preview": "hubprune.localhub.server",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, and say which extra is missing when that fails."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from hubprune.core.errors import MissingDependencyError

    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "hubprune":
            raise
        raise MissingDependencyError(
            f"This needs the package {error.name!r}, which is not installed.",
            hint="pip install 'hubprune[localhub]'",
        ) from error


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
