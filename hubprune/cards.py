"""Find what a page in a browser shows of a published folder or repo: its card and the pictures in it."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.console import Reporter
from hubprune.errors import BaseNotFoundError
from hubprune.publishing import hub
from hubprune.publishing.manifest import CARD
from hubprune.publishing.session import HubSession
from hubprune.publishing.transfer import download
from hubprune.recipe import REPO_ID, BaseModelSpec

if TYPE_CHECKING:
    from hubprune.localhub import Preview

SHOWN = (CARD, "*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.svg")
"""Files of a repo that its card may show."""


def preview(name: str, *, open_session: Callable[[], HubSession], reporter: Reporter) -> Preview:
    """Find what a page of a folder or repo shows; of a repo only the card and its pictures are downloaded.

    Args:
        name: folder, or repo id on the Hub with `@` and a revision where it is not main.
        open_session: called where a Hub has to be asked.
        reporter: told of the download.

    Raises:
        BaseNotFoundError: there is no such folder or repo, or it has no card.
        MissingDependencyError: the extra `localhub` is not installed.
    """
    from hubprune.localhub import Preview

    folder = Path(name)
    if folder.is_dir():
        if not (folder / CARD).is_file():
            raise BaseNotFoundError(f"{folder} holds no {CARD}.", hint="hubprune publish --out writes such a folder.")
        return Preview(title=folder.resolve().name, subtitle=str(folder), folder=folder)
    repo_id, _, revision = name.partition("@")
    if not REPO_ID.fullmatch(repo_id):
        raise BaseNotFoundError(f"{name} is neither a folder nor a repo id.", hint="A repo id looks like owner/name.")
    session = open_session()
    repo = hub.resolve_repo(BaseModelSpec(repo_id=repo_id, revision=revision or "main"), session=session)
    shown = tuple(file for file in repo.files if any(fnmatch(file.path, pattern) for pattern in SHOWN))
    if not any(file.path == CARD for file in shown):
        raise BaseNotFoundError(f"{repo_id} has no {CARD} at {repo.commit}.")
    here = download(shown, repo_id=repo_id, commit=str(repo.commit), session=session, reporter=reporter)
    from huggingface_hub import constants

    return Preview(
        title=repo_id,
        subtitle=f"{session.endpoint} at {repo.commit}",
        folder=here,
        linked=(Path(constants.HF_HUB_CACHE),),
        listed={file.path: file.size for file in repo.files},
    )
