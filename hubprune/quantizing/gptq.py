"""Numbers of few bits for one matrix: each rounded by itself, or so that what leaves the layer changes least.

GPTQ (Frantar et al. 2023, arXiv 2210.17323) quantizes one column after the other.  With X what enters the layer, the
error of each is made up for in the columns behind it by what the second moments H = X'X say of how they go together:

    w[:, j] -= (w[:, i] - q[:, i]) / u[i, i] * u[i, j],   j > i,   where u'u = inverse of H, u upper triangular

Columns with the largest diagonal of H come first, while there are many left to make up for them.  What the layer is to
return is what it returned before anything was quantized: with Y what entered it then, the matrix that comes nearest to
that with what enters now is W Y'X inverse(H) (GPTAQ, Li et al. 2025, arXiv 2504.02692), and it is that which is
quantized.  The scales are those of the matrix as it was, of groups as they lie in it ("static groups"), so that they
follow from the weights alone.
"""

from __future__ import annotations

import torch

from hubprune.core.errors import ScoringError
from hubprune.core.specs import QuantizationSpec
from hubprune.quantizing.schemes import BITS

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal, as in the paper; ten times that where it is not enough."""
TRIES = 4
BLOCK = 128
"""Columns after which the ones far behind are brought up to date, all at once."""
EXACT_COLUMNS = 4096
"""Up to so many columns, second moments are inverted in float64."""
FP8 = torch.float8_e4m3fn
MOST_FP8 = torch.finfo(FP8).max
"""448."""
SHARES = tuple(0.7 + 0.04 * step for step in range(11))
"""Of the scale that fits the largest value, what is tried where GPTQ takes the one with the least squared error."""
AT_ONCE = 2**22
"""Numbers whose scales are tried at a time."""


def scales_of(weight: torch.Tensor, spec: QuantizationSpec) -> torch.Tensor:
    """Return the scales of a matrix [rows, columns], as [rows, groups], or [rows, 1] for whole rows.

    They have the matrix's own dtype, or bfloat16 where that is float32: more digits would gain nothing.
    The largest number of a group is half a step beyond the largest value, as compressed-tensors has it for symmetric
    whole numbers; that of a row is the largest float.  For GPTQ in four bits, a group takes the share of that scale
    with which rounding would move its numbers least, by the sum of squares.
    """
    columns = weight.shape[1]
    parts = weight.split(max(1, AT_ONCE // columns))
    return torch.cat([_scales_of(part.reshape(len(part), -1, spec.columns or columns), spec) for part in parts])


def _scales_of(groups: torch.Tensor, spec: QuantizationSpec) -> torch.Tensor:
    largest = groups.abs().amax(dim=-1).float()
    scale = largest / (MOST_FP8 if spec.scheme == "fp8" else (2 ** BITS[spec.scheme] - 1) / 2)
    kind = torch.bfloat16 if groups.dtype == torch.float32 else groups.dtype
    eps = torch.finfo(kind).eps
    if spec.method == "rtn" or spec.scheme != "w4a16":
        scale = scale.to(kind)
        return torch.where(scale == 0, eps, scale)
    values, least = groups.float(), torch.full(scale.shape, torch.inf, dtype=torch.float64, device=scale.device)
    best = scale.to(kind)
    for share in SHARES:
        tried = (scale * share).to(kind)
        tried = torch.where(tried == 0, eps, tried)
        step = tried.float()[..., None]
        # Sums in float64, so that every machine finds the same one.
        error = (nearest(values / step, spec) * step - values).square_().sum(dim=-1, dtype=torch.float64)
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return best


def nearest(values: torch.Tensor, spec: QuantizationSpec) -> torch.Tensor:
    """Return the nearest values that a scheme has, in float32, of what was divided by its scale."""
    if spec.scheme == "fp8":
        return values.clamp(-MOST_FP8, MOST_FP8).to(FP8).float()
    half = 2 ** (BITS[spec.scheme] - 1)
    return values.round().clamp(-half, half - 1)


def stored_type(spec: QuantizationSpec) -> torch.dtype:
    """Return the dtype that holds every value of a scheme."""
    return FP8 if spec.scheme == "fp8" else torch.int8


def round_to_nearest(weight: torch.Tensor, scale: torch.Tensor, spec: QuantizationSpec) -> torch.Tensor:
    """Return the values of a matrix, [rows, columns], each rounded by itself."""
    groups = weight.float().reshape(*scale.shape, -1)
    return nearest(groups / scale.float()[..., None], spec).to(stored_type(spec)).reshape(weight.shape)


def gptq(
    weight: torch.Tensor, scale: torch.Tensor, moments: torch.Tensor, spec: QuantizationSpec, *, name: str,
    cross: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return the values of a matrix, [rows, columns], with errors made up for in the columns behind.

    Args:
        weight: in any float dtype.
        scale: of `scales_of`.
        moments: X'X of what enters the layer, float32 or float64, [columns, columns].
        name: of the matrix, for messages.
        cross: Y'X with what entered it before anything was quantized; None where that is the same.

    Raises:
        ScoringError: what enters the layer is not finite, or has no moments that can be inverted.
    """
    order = moments.diagonal().argsort(descending=True, stable=True)
    factor, damping = inverse_factor(moments, order, name=name)
    work, columns = weight.float(), len(order)
    if cross is not None:
        wanted = (work @ cross.float() + damping * work)[:, order].to(factor.dtype)
        nearer = torch.empty_like(work)
        nearer[:, order] = (wanted @ factor.T @ factor).float()
        work = torch.where(moments.diagonal() == 0, work, nearer)
    work, factor = work.T[order].contiguous(), factor.float()  # [columns, rows]: a column is contiguous
    each = scale.float().T.contiguous()  # [groups, rows]
    group_of = order.cpu() // (spec.columns or columns)
    codes = torch.empty(work.shape, dtype=stored_type(spec), device=work.device)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors, upper = torch.empty_like(work[start:stop]), factor[start:stop]
        for place in range(start, stop):
            column, step = work[place], each[group_of[place]]
            value = nearest(column / step, spec)
            codes[place] = value.to(codes.dtype)
            row = upper[place - start]
            error = (column - value * step) / row[place]
            work[place + 1 : stop] -= torch.outer(row[place + 1 : stop], error)
            errors[place - start] = error
        work[stop:] -= upper[:, stop:].T @ errors
    back = torch.empty_like(order)
    back[order] = torch.arange(columns, device=order.device)
    return codes.view(torch.uint8)[back].T.contiguous().view(codes.dtype)


def inverse_factor(moments: torch.Tensor, order: torch.Tensor, *, name: str) -> tuple[torch.Tensor, float]:
    """Return u of u'u = inverse of the moments in some order, upper triangular, and what was added to their diagonal.

    Raises:
        ScoringError: they are not finite, or cannot be inverted however much is added to their diagonal.
    """
    diagonal = moments.diagonal().clone()
    if not bool(diagonal.isfinite().all()):
        hint = "Weights before it are broken, or overflow: try --dtype float32."
        raise ScoringError(f"What enters {name} is not finite.", hint=hint)
    exact = torch.float64 if len(order) <= EXACT_COLUMNS and moments.device.type != "mps" else torch.float32
    damping = DAMPING * float(diagonal.mean()) or 1.0
    for _ in range(TRIES):
        work = moments[order][:, order].to(exact)
        # A column that nothing ever enters makes up for nothing, and is rounded.
        work.diagonal().masked_fill_(work.diagonal() == 0, 1.0).add_(damping)
        _, failed = torch.linalg.cholesky_ex(work, out=(work, torch.empty((), dtype=torch.int32, device=work.device)))
        if not int(failed):
            torch.cholesky_inverse(work, out=work)
            torch.linalg.cholesky_ex(
                work, upper=True, out=(work, torch.empty((), dtype=torch.int32, device=work.device))
            )
            if bool(work.diagonal().isfinite().all()) and bool((work.diagonal() > 0).all()):
                return work, damping
        damping *= 10
    raise ScoringError(f"The moments of what enters {name} cannot be inverted.", hint="Pass --method rtn.")
