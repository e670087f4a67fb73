"""A Hugging Face Hub on this machine's loopback interface, for dry runs, for the demo and for tests.

It speaks the Hub's own protocol, so the unmodified clients (`huggingface_hub`, `hf-xet`, `datasets`, `transformers`)
work against it once HF_ENDPOINT names it:

    with running_hub(directory) as hub:
        HfApi(endpoint=hub.endpoint, token=hub.token).create_repo("me/model")

Everything lives in one directory; a hub that is served again from it has lost nothing. In reading order:

    server               run a hub or a preview on loopback: the application, its routes, its errors
    web                  a request that has been read, checked fields, pages of answers, groups of handlers
    routes_repos         accounts and repositories; then _changes, _storage, _files and _listing
    jobs, pages          the same for jobs and collections, and for people who come with a browser
    hub                  the repositories and stores below the directory, and who may open what
    git, discussions     a bare git repository for each repository, with what people say about it
    large_files          pointers, whole files by SHA-256, chunks as the client packed them (xet_format)
    cards                front matter that is checked, Markdown that becomes harmless HTML
    faults               a log of the requests, and what goes wrong with them on purpose
    checks               who asks, what may be asked for, how a request is refused, and files that are whole
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubprune.localhub.faults import Fault, RequestRecord
    from hubprune.localhub.jobs import JobRecord, JobScript
    from hubprune.localhub.pages import Preview
    from hubprune.localhub.server import RunningHub, running_hub, serve, serve_preview

__all__ = [
    "Fault", "JobRecord", "JobScript", "Preview", "RequestRecord", "RunningHub", "running_hub", "serve",
    "serve_preview",
]  # fmt: skip

_HOMES = {
    "faults": ("Fault", "RequestRecord"),
    "jobs": ("JobRecord", "JobScript"),
    "pages": ("Preview",),
    "server": ("RunningHub", "running_hub", "serve", "serve_preview"),
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, and say which extra is missing when that fails."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from hubprune.core.extras import missing

    try:
        return getattr(import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError as error:
        if told := missing(error):
            raise told from error
        raise


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
