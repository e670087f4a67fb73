"""Values and scales of single matrices: known ones, against the package of the format, and against the paper."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams

from hubprune.core.errors import ScoringError
from hubprune.core.specs import QuantizationSpec
from hubprune.quantizing import gptq
from hubprune.quantizing.packing import decode, encode
from hubprune.quantizing.schemes import weight_arguments

W4 = QuantizationSpec(scheme="w4a16", group_size=4)
RTN = W4.model_copy(update={"method": "rtn"})


def matrix(rows=12, columns=32, *, seed=0, dtype=torch.float32):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def decoded(values, scale, spec):
    return decode(encode(values, scale, spec, module="m"), spec, module="m", dtype=torch.float32)


def test_scales_and_values_of_a_group_are_those_that_anybody_can_compute():
    weight = torch.tensor([[7.5, -7.5, 1.4, 0.6, 0.0, 0.0, 0.0, 0.0]])
    scale = gptq.scales_of(weight, RTN)
    assert scale.tolist() == [[1.0, torch.finfo(torch.bfloat16).eps]]
    # A half goes to the even neighbour, and 8 is one too many.
    assert gptq.round_to_nearest(weight, scale, W4).tolist() == [[7, -8, 1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("scheme", ["w4a16", "w8a16", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_are_those_of_compressed_tensors(scheme, dtype):
    spec = QuantizationSpec(scheme=scheme, group_size=None if scheme == "fp8" else 16, method="rtn")
    weight = matrix(dtype=dtype)
    groups = weight.float().reshape(12, -1, spec.columns or 32)
    arguments = QuantizationArgs.model_validate(weight_arguments(spec))
    theirs, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    torch.testing.assert_close(gptq.scales_of(weight, spec).float(), theirs, rtol=2**-8, atol=0)


def test_a_group_takes_the_scale_with_which_its_numbers_move_least(monkeypatch):
    monkeypatch.setattr(gptq, "AT_ONCE", 100)  # a few rows at a time
    weight = matrix(12, 64)
    largest, found = gptq.scales_of(weight, RTN), gptq.scales_of(weight, W4)

    def moved(scale):
        groups = weight.reshape(*scale.shape, 4)
        return (
            ((groups / scale.float()[..., None]).round().clamp(-8, 7) * scale.float()[..., None] - groups)
            .square()
            .sum(-1)
        )

    tried = [moved((weight.reshape(12, 16, 4).abs().amax(-1) / 7.5 * share).bfloat16()) for share in gptq.SHARES]
    torch.testing.assert_close(moved(found), torch.stack(tried).amin(0))
    assert (moved(found) <= moved(largest) + 1e-6).float().mean() > 0.9
    assert moved(found).sum() < 0.9 * moved(largest).sum()


def dense_gptq(weight, moments, scale, group, most, cross=None):
    """Section 3 of the paper, in the order of the diagonal, with the whole inverse downdated after each column."""
    work, steps = weight.double().clone(), scale.double().repeat_interleave(group, 1)
    values, damping = (
        torch.zeros_like(work),
        gptq.DAMPING * moments.diagonal().mean() * torch.eye(len(moments)).double(),
    )
    inverse = torch.linalg.inv(moments + damping)
    if cross is not None:
        work = work @ (cross + damping) @ inverse
    for column in moments.diagonal().argsort(descending=True).tolist():
        values[:, column] = (work[:, column] / steps[:, column]).round().clamp(-most, most - 1)
        error = (work[:, column] - values[:, column] * steps[:, column]) / inverse[column, column]
        work -= error[:, None] * inverse[column]
        inverse -= torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return values


@pytest.mark.parametrize("columns", [32, 160])
@pytest.mark.parametrize("other", [False, True], ids=["alone", "behind others"])
def test_gptq_equals_the_paper_written_out(columns, other):
    weight, rows = (
        matrix(columns=columns),
        matrix(400, columns, seed=1).double() @ matrix(columns, columns, seed=2).double(),
    )
    moments, scale = rows.T @ rows, gptq.scales_of(weight, W4)
    cross = (rows + 0.3 * matrix(400, columns, seed=7).double()).T @ rows if other else None
    found = gptq.gptq(weight, scale, moments.clone(), W4, name="m", cross=cross)
    same = found.double() == dense_gptq(weight, moments, scale, 4, 8, cross)
    # In float32, one in a thousand may fall to the other side of a half, and others with it.
    assert same.float().mean() > (0.98 if other else 0.999)
    assert not torch.equal(found, gptq.round_to_nearest(weight, scale, W4))


@pytest.mark.parametrize("spec", [W4, QuantizationSpec(scheme="fp8")], ids=["w4a16", "fp8"])
def test_gptq_changes_what_leaves_the_layer_less_than_rounding(spec):
    weight, mixing = matrix(32, 64), matrix(64, 64, seed=5)
    rows = matrix(1000, 64, seed=3) @ (mixing @ torch.diag(torch.linspace(2, 0.02, 64)))
    scale = gptq.scales_of(weight, spec)
    rounded = gptq.round_to_nearest(weight, scale, spec)
    made_up = gptq.gptq(weight, scale, rows.T @ rows, spec, name="m")
    errors = [((weight - decoded(v, scale, spec)) @ rows.T).norm() for v in (made_up, rounded)]
    assert errors[0] < 0.8 * errors[1]


def test_gptq_brings_back_what_the_layer_returned_before_its_inputs_changed():
    weight, rows = matrix(32, 64), matrix(1000, 64, seed=3) @ matrix(64, 64, seed=5)
    changed = rows + 0.2 * rows.flip(1)
    scale = gptq.scales_of(weight, W4)
    errors = []
    for cross in (rows.T @ changed, None):
        values = gptq.gptq(weight, scale, changed.T @ changed, W4, name="m", cross=cross)
        errors.append((rows @ weight.T - changed @ decoded(values, scale, W4).T).norm())
    assert errors[0] < 0.5 * errors[1]


def test_without_correlations_gptq_is_rounding():
    weight = matrix()
    scale = gptq.scales_of(weight, W4)
    found = gptq.gptq(weight, scale, torch.diag(torch.arange(1.0, 33.0)), W4, name="m")
    assert torch.equal(found, gptq.round_to_nearest(weight, scale, W4))


def test_columns_that_nothing_enters_are_rounded():
    weight, rows = matrix(), matrix(100, 32, seed=4)
    rows[:, 5] = 0
    scale = gptq.scales_of(weight, W4)
    found = gptq.gptq(weight, scale, rows.T @ rows, W4, name="m")
    assert torch.equal(found[:, 5], gptq.round_to_nearest(weight, scale, W4)[:, 5])


def test_moments_that_are_no_numbers_are_an_error_with_the_name_of_the_matrix():
    moments = torch.full((32, 32), float("nan"))
    with pytest.raises(ScoringError, match=r"enters model\.layers\.3\.mlp\.down_proj\.weight is not finite"):
        gptq.gptq(matrix(), gptq.scales_of(matrix(), W4), moments, W4, name="model.layers.3.mlp.down_proj.weight")
