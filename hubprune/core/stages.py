"""Remember what a stage found, so that a run that was stopped goes on where it was.

A stage's result is kept as JSON under a key of everything it depends on.  Whatever changes gives another key, so
nothing has to be thrown away by hand, and two runs that share a stage share its result.  A file that is not as it was
written, by its SHA-256, is computed again: the numbers in it are those that get published.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from hubprune import __version__
from hubprune.core.console import end_if_interrupted
from hubprune.core.errors import RecipeError
from hubprune.core.files import make_writable, sweep, write_atomically

Value = TypeVar("Value", bound=BaseModel)


def work_folder() -> Path:
    """Return the folder that finished stages are kept in: `HUBPRUNE_HOME`, else the user's cache folder.

    Raises:
        RecipeError: neither exists.
    """
    import platformdirs

    if home := os.environ.get("HUBPRUNE_HOME"):
        return Path(home)
    try:
        return Path(platformdirs.user_cache_dir("hubprune"))
    except RuntimeError as error:  # where a container runs as a user that it does not know
        hint = "Set HOME to a folder that can be written; the client of the Hub needs it as well."
        raise RecipeError("This user has no home folder to keep results in.", hint=hint) from error


def key_of(*inputs: Any) -> str:
    """Return 16 hex digits that stand for some inputs and for this version of hubprune."""
    text = json.dumps([__version__, *inputs], sort_keys=True, default=to_jsonable_python)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Offer:
    """The result of a run elsewhere."""

    value: BaseModel
    seconds: float
    on_take: Callable[[str], object]


class StageStore:
    """Results of stages on disk, and the seconds each stage took.

    Args:
        folder: where they are kept.
        on_reuse: told the stage whose result is taken from an earlier run.
        warn: told of a kept result that is not as it was written, in a sentence.

    Raises:
        RecipeError: nothing can be written there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        on_reuse: Callable[[str], None] = lambda _: None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder = folder
        make_writable(folder / "stages")
        for place in (folder, *(path for path in folder.iterdir() if path.is_dir()), Path(tempfile.gettempdir())):
            sweep(place)
        self.seconds: dict[str, float] = {}
        """Stage -> how long it took, when it was run."""
        self.keys: dict[str, str] = {}
        """Stage -> its key."""
        self.warn = warn
        self._on_reuse = on_reuse
        self._offers: dict[tuple[str, str], _Offer] = {}

    def run(
        self,
        stage: str,
        key: str,
        kind: type[Value],
        compute: Callable[[], Value],
        *,
        valid: Callable[[Value], bool] = lambda _: True,
    ) -> Value:
        """Return a stage's result: the one kept under this key, or a new one, which is then kept.

        Args:
            stage: name of the stage.
            key: from `key_of` everything that the result depends on.
            kind: type of the result.
            compute: makes the result.
            valid: tells whether a kept result can still be used, where it speaks of files that may be gone.

        Raises:
            RecipeError: the result could not be kept, as a folder stands in its place.
        """
        end_if_interrupted()
        path = self._path(stage, key)
        if path.is_dir():
            raise RecipeError(f"{path} is a folder, and a file belongs there.", hint="Remove it.")
        self.keys[stage] = key
        kept = self._read(path, kind)
        if kept is None and path.exists():
            self.warn(f"{stage}: what an earlier run kept in {path} is not as it was written, and is computed again")
        if kept and valid(kept[0]):
            value, self.seconds[stage] = kept
            self._on_reuse(stage)
            return value
        if (offer := self._offers.get((stage, key))) and isinstance(offer.value, kind) and valid(offer.value):
            self.take(stage, key, seconds=offer.seconds)
            offer.on_take(stage)
            return offer.value
        start = time.monotonic()
        value = compute()
        end_if_interrupted()  # before a result is kept that may be half of one
        self.seconds[stage] = round(time.monotonic() - start, 2)
        content = json.loads(json.dumps({"seconds": self.seconds[stage], "value": value.model_dump(mode="json")}))
        write_atomically(path, json.dumps({**content, "sha256": _digest(content)}, sort_keys=True) + "\n")
        return value

    def has(self, stage: str, key: str) -> bool:
        """Tell whether a result is kept under this key, as it was written."""
        return _content(self._path(stage, key)) is not None

    def _path(self, stage: str, key: str) -> Path:
        return self.folder / "stages" / f"{stage}-{key}.json"

    def offer(
        self, stage: str, key: str, value: BaseModel, *, seconds: float, on_take: Callable[[str], object]
    ) -> None:
        """Hold the result of a run elsewhere ready, in case that it is asked for and none is kept here.

        Args:
            stage: name of the stage.
            key: under which that run would have kept it.
            value: the result.
            seconds: how long it took there.
            on_take: told the stage when the result is taken.
        """
        self._offers[stage, key] = _Offer(value, seconds, on_take)

    def offers(self, stage: str, key: str) -> bool:
        """Tell whether a result that is not kept here is ready under this key."""
        return (stage, key) in self._offers and not self.has(stage, key)

    def take(self, stage: str, key: str, *, seconds: float) -> None:
        """Note that the result of a stage comes from a run elsewhere, which took so long."""
        self.keys[stage], self.seconds[stage] = key, seconds

    @staticmethod
    def _read(path: Path, kind: type[Value]) -> tuple[Value, float] | None:
        content = _content(path)
        try:
            return (kind.model_validate(content["value"]), float(content["seconds"])) if content else None
        except (ValidationError, ValueError, KeyError, TypeError):
            return None  # of another shape: it is computed again


def _content(path: Path) -> dict[str, Any] | None:
    """Read a kept result; None where there is none, or where it is not what was written."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        digest = kept.pop("sha256", None) if isinstance(kept, dict) else None
        return kept if digest is not None and digest == _digest(kept) else None
    except (OSError, ValueError, RecursionError):
        return None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
