"""What can be known of a base on the Hub before its weights are here: its small files, and the weights' headers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hubprune.core.artifacts import BaseCheckpoint, RepoFile
from hubprune.core.console import Reporter
from hubprune.core.errors import CheckpointError
from hubprune.hub.repos import needed_files, weight_files
from hubprune.hub.session import HubSession
from hubprune.hub.transfer import download

__all__ = ["small_files", "stored_headers", "stored_shapes"]

AT_ONCE = 8
"""Headers that are asked for at the same time."""
BROKEN_HEADER = (AttributeError, KeyError, TypeError, ValueError)
"""What the client raises at a header that is JSON of another form."""


def small_files(base: BaseCheckpoint, *, session: HubSession) -> Path:
    """Return a folder with all files of a base that a result carries, and without its weights where they are not here.

    Raises:
        HubError: the Hub refused or did not answer.
    """
    if base.folder is not None:
        return Path(base.folder)
    weights = weight_files(base.files)
    files = [file for file in needed_files(base) if file not in weights]
    return download(files, repo_id=base.name, commit=str(base.commit), session=session, reporter=Reporter(quiet=True))


def stored_headers(base: BaseCheckpoint, *, session: HubSession) -> dict[str, dict[str, tuple[int, ...]]]:
    """Read the headers of the weights of a base on the Hub: file -> name -> shape; a few kilobytes of each file.

    Raises:
        CheckpointError: a file is no safetensors file.
        HubError: the Hub refused or did not answer.
    """

    def read(file: RepoFile) -> dict[str, tuple[int, ...]]:
        return _shapes(file.path, base=base, session=session)

    files = weight_files(base.files)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return {file.path: header for file, header in zip(files, pool.map(read, files), strict=True)}


def stored_shapes(base: BaseCheckpoint, *, session: HubSession) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of all tensors from the headers, as `stored_headers`."""
    headers = stored_headers(base, session=session)
    return {name: shape for header in headers.values() for name, shape in header.items()}


def _shapes(path: str, *, base: BaseCheckpoint, session: HubSession) -> dict[str, tuple[int, ...]]:
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        header = session.ask(
            lambda api: api.parse_safetensors_file_metadata(base.name, path, revision=base.commit),
            doing=f"read the header of {path} of {base.name}",
            passing=(SafetensorsParsingError, *BROKEN_HEADER),
        )
        return {name: tuple(tensor.shape) for name, tensor in header.tensors.items()}
    except (SafetensorsParsingError, *BROKEN_HEADER) as error:
        raise CheckpointError(
            f"{path} of {base.name} is no safetensors file: {' '.join(str(error).split())}"
        ) from error
