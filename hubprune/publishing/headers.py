"""What can be known of a base on the Hub before its weights are here: its small files, and the weights' headers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hubprune.artifacts import BaseCheckpoint, RepoFile
from hubprune.console import Reporter
from hubprune.errors import CheckpointError
from hubprune.pruning.weights import INDEX_NAME, check_index, read_index
from hubprune.publishing.hub import needed_files, weight_files
from hubprune.publishing.session import HubSession
from hubprune.publishing.transfer import download

__all__ = ["small_files", "stored_shapes"]

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


def stored_shapes(
    base: BaseCheckpoint, *, session: HubSession, folder: Path | None = None
) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of all tensors from the headers of a base's weights; a few kilobytes of each file.

    Args:
        base: a base on the Hub.
        session: which Hub.
        folder: with the base's small files, whose index is then compared with the headers.

    Raises:
        CheckpointError: a file is no safetensors file, or the index disagrees with the headers.
        HubError: the Hub refused or did not answer.
    """

    def read(file: RepoFile) -> dict[str, tuple[int, ...]]:
        return _shapes(file.path, base=base, session=session)

    files = weight_files(base.files)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        headers = list(pool.map(read, files))
    if folder and len(files) > 1 and (folder / INDEX_NAME).is_file():
        found = [(name, file.path) for file, header in zip(files, headers, strict=True) for name in header]
        check_index(read_index(folder / INDEX_NAME), found, f"{INDEX_NAME} of {base.name}")
    return {name: shape for header in headers for name, shape in header.items()}


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
