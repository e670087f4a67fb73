"""What a healed checkpoint is made of: the base's files, with the trained tensors in the place of the base's own.

From that copy it is written, and against it it is verified, by the same code as any other pruned checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import BaseCheckpoint, Check, DropPlan
from hubprune.core.config import read_structure
from hubprune.core.console import Reporter, size
from hubprune.core.errors import DiskSpaceError
from hubprune.core.weights import open_weights
from hubprune.pruning.checkpoint import new_names

if TYPE_CHECKING:
    import torch

HEALED = "healed"
"""Key of what hubprune says in config.json: how a checkpoint was trained, `lora` or `full`, or `elsewhere`."""
ELSEWHERE = "elsewhere"
RECORD = "healing.json"
"""File beside the weights of a folder that `hubprune heal` wrote."""

UNTRAINED = "kept tensors are the base's, byte for byte"
NAMES = {
    UNTRAINED: "untrained tensors are the base's, byte for byte",
    "logits equal the base without the dropped sublayers": "logits equal the base with what was trained, without the "
    "dropped sublayers",
}


def healed_by(config: Mapping[str, Any]) -> str | None:
    """Return how the checkpoint of a config.json was trained; None for one that was not."""
    origin = config.get("hubprune")
    method = origin.get(HEALED) if isinstance(origin, Mapping) else None
    return method if isinstance(method, str) else None


def with_tensors(
    base: BaseCheckpoint, changed: Iterator[tuple[str, torch.Tensor]], scratch: Path, *, reporter: Reporter
) -> BaseCheckpoint:
    """Copy a downloaded base into a scratch folder, with some tensors changed, and return it as a base.

    Raises:
        DiskSpaceError: there is no room for it.
    """
    from hubprune.healing.merging import put_into_copy

    source, folder = Path(base.folder or ""), scratch / "healed-base"
    total = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    if (free := shutil.disk_usage(scratch).free) < total:
        raise DiskSpaceError(f"A copy of the base takes {size(total)} for the moment; {scratch} has {size(free)} free.")
    folder.mkdir()
    with reporter.progress("merging", total=total, unit="B") as advance:
        put_into_copy(source, changed, folder, names=base.tensor_names, advance=advance)
    return base.model_copy(update={"folder": str(folder)})


def as_healed(
    base: BaseCheckpoint, plan: DropPlan, pruned: Path, method: str, scratch: Path, *, reporter: Reporter
) -> BaseCheckpoint:
    """Rebuild, of a base and a healed checkpoint in a folder, what that is made of.

    Only what was trained is taken from it: the matrices of its layers where adapters were merged, else everything.
    """
    architecture = read_structure(base.config, name=base.name).architecture
    return with_tensors(base, _trained(base, plan, pruned, architecture, method), scratch, reporter=reporter)


def _trained(
    base: BaseCheckpoint, plan: DropPlan, pruned: Path, architecture: Architecture, method: str
) -> Iterator[tuple[str, torch.Tensor]]:
    from hubprune.core.streaming import TORCH_DTYPES, Load, WeightReader, read_ahead

    weights, reader = open_weights(Path(base.folder or "")).used(base.tensor_names), WeightReader(pruned, {})
    names = new_names(weights, plan, architecture)
    wanted = [
        (tensor.name, place)
        for _, tensor in weights
        if (name := names[tensor.name]) is not None and name in reader.names
        if (place := reader.place(name)).shape == tensor.shape and place.dtype == TORCH_DTYPES[tensor.dtype]
        if method != "lora" or (len(tensor.shape) == 2 and tensor.name.startswith(architecture.layers_prefix))
    ]
    loads = read_ahead([Load((place,)) for _, place in wanted])
    for (name, _), [data] in zip(wanted, loads, strict=True):
        yield name, data


def from_elsewhere(base: BaseCheckpoint, plan: DropPlan, given: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a checkpoint that somebody trained from a pruned model, by their names in its base.

    A head that is the embedding need not be in the files.
    """
    from hubprune.core.streaming import WeightReader, read_tensor

    architecture = read_structure(base.config, name=base.name).architecture
    weights, reader = open_weights(Path(base.folder or "")).used(base.tensor_names), WeightReader(given, {})
    names = new_names(weights, plan, architecture)
    for _, tensor in weights:
        if name := names[tensor.name]:
            there = name if name in reader.names else architecture.embedding
            yield tensor.name, read_tensor(reader.place(there))


def told_of_healed(checks: Sequence[Check], how: str) -> tuple[Check, ...]:
    """Name checks by what they compared where the base had the trained tensors in it."""
    names = NAMES if how == "lora" else NAMES | {UNTRAINED: "tensors are those that were trained, byte for byte"}
    return tuple(check.model_copy(update={"name": names.get(check.name, check.name)}) for check in checks)
