"""Base and pruned model in memory, loaded once for all stages that measure them.

The pruned model takes the base's tensors wherever its files hold the same numbers, so that the two cost hardly more
than one, from the first moment on.  Where not even that fits, one is let go before the other is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hubprune.core.console import Reporter, quiet
from hubprune.core.errors import CheckpointError
from hubprune.core.weights import open_weights
from hubprune.evaluation import quantized

if TYPE_CHECKING:
    from hubprune.evaluation.models import LoadedModel


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model that is to be measured."""

    path: Path
    own_code: bool = False
    """Whether code in it is run: for folders whose modeling file this package rendered."""
    identity: str | None = None
    """What stands for the model, machine and versions in the memory of answers; None where nothing is remembered."""


class Pair:
    """Two model folders, `base` and `pruned`, of which each is loaded when it is first asked for.

    It is a block, at whose end the models are let go; nothing is loaded, nor torch imported, where none is asked for.
    `device` and `dtype` may be `auto`.
    """

    def __init__(self, base: ModelFolder, pruned: ModelFolder, *, device: str, dtype: str, reporter: Reporter) -> None:
        self.folders: Mapping[str, ModelFolder] = {"base": base, "pruned": pruned}
        self.device, self.dtype, self._reporter = device, dtype, reporter
        self._loaded: dict[str, LoadedModel] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()

    @cached_property
    def needed(self) -> int:
        """Bytes of both models: those of the base, and of the tensors whose like it does not have."""
        from hubprune.evaluation.models import weight_bytes
        from hubprune.evaluation.skeletons import LAYER

        if any(map(quantized.quantization, paths := [folder.path for folder in self.folders.values()])):
            return sum(weight_bytes(path, dtype=self.dtype) for path in paths)
        base, pruned = map(open_weights, paths)
        known = {(LAYER.sub("*", tensor.name), tensor.dtype, tensor.shape) for _, tensor in base}
        own = sum(t.size for _, t in pruned if (LAYER.sub("*", t.name), t.dtype, t.shape) not in known)
        whole = weight_bytes(self.folders["base"].path, dtype=self.dtype)
        return whole + own * whole // base.size()

    @cached_property
    def fits(self) -> bool:
        """Whether both models may be in memory together; asked before the first is loaded, and then for good."""
        from hubprune.evaluation.models import free_bytes, share_of

        return self.needed <= share_of(self.device) * free_bytes(self.device)

    def load(self, name: str) -> LoadedModel:
        """Return one of the models.

        Raises:
            EvaluationError: the device's memory is too small.
            RecipeError: this machine has no such device.
        """
        if name not in self._loaded:
            if not self.fits:
                self.let_go()
            with quiet():
                self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> LoadedModel:
        from hubprune.evaluation.models import load_beside, load_model

        folder, base = self.folders[name], self._loaded.get("base")
        # One that found less room than expected has tensors elsewhere, which nobody can share.
        alike = base is not None and not any(map(quantized.quantization, (f.path for f in self.folders.values())))
        if alike and base is not None and not any(parameter.is_meta for parameter in base.model.parameters()):
            try:
                return load_beside(base, folder.path, own_code=folder.own_code)
            except CheckpointError as error:  # transformers may know what to make of it
                self._reporter.note(f"the {name} model shares nothing with the base: {error.message}")
        return load_model(folder.path, device=self.device, dtype=self.dtype, trust_remote_code=folder.own_code)

    def let_go(self) -> None:
        """Give back the memory of models that nobody else refers to."""
        if self._loaded:
            from hubprune.evaluation.models import release_memory

            self._loaded.clear()
            release_memory()
