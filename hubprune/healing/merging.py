"""The tensors that a training changed, put into a copy of the base's files.

From that copy a healed checkpoint is written and verified as any other: what was not trained has the base's bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hubprune.core.streaming import WeightReader


def merged(student: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every matrix that has an adapter, by the name of its weight in the base: float32, both added up there."""
    from peft.tuners.lora import LoraLayer

    for name, module in student.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            [adapter] = module.active_adapters
            up, down = module.lora_B[adapter].weight.float(), module.lora_A[adapter].weight.float()
            weight = module.get_base_layer().weight
            yield f"{name}.weight", weight.float() + module.scaling[adapter] * (up @ down)


def trained(student: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter of a model that was trained as a whole."""
    yield from ((name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad)


def put_into_copy(
    source: Path, changed: Iterator[tuple[str, torch.Tensor]], target: Path, *, names: Mapping[str, str | None],
    advance: Callable[[int], object] = lambda _: None,
) -> tuple[str, ...]:  # fmt: skip
    """Copy a checkpoint into an existing folder, and put changed tensors in the place of those of the same name.

    Each is rounded once, to the dtype that is stored.  `names` are those of tensors in the files -> in the model, where
    they differ; `advance` is told the bytes of each file.

    Returns:
        The names of what was changed.

    Raises:
        CheckpointError: the checkpoint has no such tensor.
    """
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
            copied.chmod(0o644)
            advance(copied.stat().st_size)
    reader, done = WeightReader(target, names), []
    for name, tensor in changed:
        place = reader.place(name)
        data = tensor.detach().to("cpu", place.dtype).contiguous().view(torch.uint8).flatten()
        assert data.numel() == place.size, name
        with place.path.open("r+b") as file:
            file.seek(place.begin)
            file.write(memoryview(data.numpy()))
        done.append(name)
    return tuple(done)
