"""What has to be true of a quantized checkpoint beside the one that it was made of, from the files of both.

One matrix is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from hubprune.core.artifacts import Check, Divergence
from hubprune.core.specs import QuantizationSpec
from hubprune.core.streaming import WeightReader, holds, read_tensor
from hubprune.core.weights import open_weights
from hubprune.quantizing import gptq
from hubprune.quantizing.layerwise import Source
from hubprune.quantizing.packing import SCALE, decode, read_parts, stored_shapes
from hubprune.quantizing.schemes import Matrix

FARTHEST = 0.75
"""How far a matrix may be from what it was, by the root of the sum of squares, as a share of it.  Rounding to four bits
moves it by a tenth, GPTQ by up to some four tenths; other values of the same size would by 1.4."""
KL_FACTOR, KL_LEAST = 10.0, 0.5
"""How many times the divergence that was measured, and how many nats in any case, other texts may show."""


def check_tensors(source: Source, folder: Path, matrices: Mapping[str, Matrix], spec: QuantizationSpec) -> list[Check]:
    """Compare the files of a quantized checkpoint with those of the one before."""
    weights, written = open_weights(source.folder).used(source.tensor_names), open_weights(folder)
    others = [tensor.name for _, tensor in weights if tensor.name not in matrices]
    dtypes = {tensor.name: tensor.dtype for _, tensor in weights}
    planned = {t.name: (t.dtype, t.shape) for _, t in weights if t.name not in matrices}
    for matrix in matrices.values():
        planned |= stored_shapes(matrix, spec, dtype=dtypes[matrix.name])
    there = {tensor.name: (tensor.dtype, tensor.shape) for _, tensor in written}
    odd = sorted(name for name in planned.keys() | there.keys() if planned.get(name) != there.get(name))
    whole = f"{len(matrices)} matrices and {len(others)} other tensors"
    checks = [Check(name="tensors as the scheme has them", passed=not odd, detail=_named(odd) or whole)]
    if odd:
        return checks
    before, after = WeightReader(source.folder, source.tensor_names), WeightReader(folder, {})
    kept = [name for name in others if not holds(after.place(name), read_tensor(before.place(name)))]
    told = f"{len(others)} tensors compared"
    checks.append(
        Check(name="all other tensors as they were, byte for byte", passed=not kept, detail=_named(kept) or told)
    )
    scales, far, farthest = [], [], 0.0
    paths = {tensor.name: shard.path for shard, tensor in written}
    for matrix in matrices.values():
        parts = read_parts(matrix, spec, paths)
        weight = read_tensor(before.place(matrix.name))
        if not torch.equal(gptq.scales_of(weight, spec), parts[f"{matrix.module}.{SCALE}"]):
            scales.append(matrix.name)
        moved = weight.float() - decode(parts, spec, module=matrix.module, dtype=torch.float32)
        share = float(moved.norm()) / (float(weight.float().norm()) or 1.0)
        farthest = max(farthest, share)
        if not share <= FARTHEST:
            far.append(matrix.name)
    counted = f"{len(matrices)} matrices"
    told = f"{counted}, at most {100 * farthest:.0f} % away"
    return [
        *checks,
        Check(name="scales follow from the weights", passed=not scales, detail=_named(scales) or counted),
        Check(name="matrices decode to what they were, about", passed=not far, detail=_named(far) or told),
    ]


def check_divergence(seen: Divergence, recorded: Divergence | None) -> Check:
    """Hold the divergence on some texts against the one that was measured when the checkpoint was written."""
    most = max(KL_LEAST, KL_FACTOR * recorded.kl if recorded else 0.0)
    detail = f"KL {seen.kl:.4f} nats per token on {seen.documents} texts, at most {most:.2g}"
    return Check(name="next tokens are near those before", passed=seen.kl <= most, detail=detail)


def _named(names: list[str]) -> str:
    return ", ".join(names[:3])
