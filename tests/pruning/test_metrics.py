"""Metrics other than the cosine: independent float64 hooks, planted answers, and batches that change nothing."""

from __future__ import annotations

import pytest
import torch
from bases import FAMILIES, LLAMA, MISTRAL, family_tensors, random_tensors, write_base
from test_importance import WEIGHTS, calibration, planted, scored, values

from hubprune.core.architectures import ARCHITECTURES
from hubprune.pruning.importance import Part, Passage, measure

OTHERS = ("cosine-no-residual", "relative-magnitude")


def hooked_states(model, post_norms, entries):
    """Note, layer by layer, what the modules of a whole model see and say."""
    rows = []

    def begin(_, args, kwargs):
        rows.append({"x": args[0]})

    def note(key, of):
        def hook(_, args, kwargs, output):
            found = output[0] if isinstance(output, tuple) else output
            rows[-1][f"{key} in"] = args[0] if args else kwargs["hidden_states"]
            rows[-1][f"{key} out"] = found

        of.register_forward_hook(hook, with_kwargs=True)

    for layer in model.model.layers:
        layer.register_forward_pre_hook(begin, with_kwargs=True)
        note("layer", layer)
        note("attn", layer.self_attn)
        note("mlp", layer.mlp)
        note("between", layer.get_submodule(entries))
        for kind, norm in post_norms.items():
            note(f"{kind} norm", layer.get_submodule(norm))
    return rows


def by_hand(row, metric, factor):
    """A metric of one layer on one document: [attention, MLP, block], float64."""
    x, y, z = row["x"], row["between in"], row["layer out"]
    if metric == "cosine":
        pairs = ((x, y), (y, z), (x, z))
    elif metric == "cosine-no-residual":
        pairs = ((row["attn in"], row["attn out"]), (row["mlp in"], row["mlp out"]), (x, z - x))
    else:
        added = [factor * row.get(f"{kind} norm out", row[f"{kind} out"]) for kind in ("attn", "mlp")]
        torch.testing.assert_close(added[0], y - x)
        return torch.stack([((b - a).norm(dim=-1) / b.norm(dim=-1)).mean() for a, b in ((x, y), (y, z), (x, z))])
    return torch.stack([1 - torch.cosine_similarity(a, b, dim=-1).mean() for a, b in pairs])


def reference(folder, documents, metric, *, by_token=False, post_norms=None, entry="post_attention_layernorm"):
    """Scores of the mix from a whole model in float64, one document at a time, [layers, 3]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    rows = hooked_states(model, post_norms or {}, entry)
    factor = getattr(model.config, "residual_multiplier", 1.0)
    totals, sizes = [0.0, 0.0], [0, 0]
    for document in documents:
        rows.clear()
        with torch.no_grad():
            model(torch.tensor([document.ids]), use_cache=False)
        size = len(document.ids) if by_token else 1
        totals[document.source] += torch.stack([by_hand(row, metric, factor) for row in rows]) * size
        sizes[document.source] += size
    return sum(weight * total / size for weight, total, size in zip(WEIGHTS, totals, sizes, strict=True))


@pytest.mark.parametrize("metric", OTHERS)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_metric_equals_an_independent_computation_in_float64(request, reporter, family, metric):
    folder, documents = request.getfixturevalue(family).folder, calibration()
    assert max(len(d.ids) for d in documents.documents) > 4 * MISTRAL["sliding_window"]
    for aggregation in ("document", "token"):
        expected = reference(folder, documents.documents, metric, by_token=aggregation == "token")
        for batch_size in (1, 8):
            found = scored(folder, reporter, aggregation=aggregation, batch_size=batch_size, metric=metric)
            assert (values(found) - expected).abs().max() < 1e-6
            assert found.metric == metric


POST_NORMS = {
    "granite": ({}, "post_attention_layernorm"),
    "olmo2": ({"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}, "mlp"),
    "gemma2": (
        {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}, "pre_feedforward_layernorm"
    ),
}  # fmt: skip


@pytest.mark.parametrize("metric", OTHERS)
@pytest.mark.parametrize("family", POST_NORMS)
def test_what_is_added_is_behind_the_post_norm_and_times_the_multiplier(tmp_path, reporter, family, metric):
    config = FAMILIES[family]
    base, documents = write_base(tmp_path / "base", config, family_tensors(config)), calibration()
    post_norms, entry = POST_NORMS[family]
    expected = reference(base.folder, documents.documents, metric, post_norms=post_norms, entry=entry)
    assert (values(scored(base.folder, reporter, metric=metric)) - expected).abs().max() < 2e-6


def test_batches_change_no_score_of_any_metric(mistral, reporter):
    for metric in OTHERS:
        one, other = (scored(mistral.folder, reporter, batch_size=size, metric=metric) for size in (1, 8))
        assert (values(one) - values(other)).abs().max() < 1e-6
        for a, b in zip(one.per_document, other.per_document, strict=True):
            assert a.scores.attn == pytest.approx(b.scores.attn, abs=1e-6)
        assert max(one.standard_error.attn) > 0


def test_a_sublayer_that_does_nothing_has_no_magnitude_and_points_nowhere(tmp_path, reporter):
    base = planted(tmp_path)
    magnitude = scored(base.folder, reporter, metric="relative-magnitude").mean
    assert [layer for layer, s in enumerate(magnitude.attn) if s == 0.0] == [2, 3]
    assert [layer for layer, s in enumerate(magnitude.mlp) if s == 0.0] == [1, 3]
    assert [layer for layer, s in enumerate(magnitude.block) if s == 0.0] == [3]
    bare = scored(base.folder, reporter, metric="cosine-no-residual").mean
    assert [layer for layer, s in enumerate(bare.attn) if s == 1.0] == [2, 3]


def test_a_small_output_keeps_its_digits_in_bfloat16(tmp_path, reporter):
    tensors = random_tensors(LLAMA)
    tensors["model.layers.3.self_attn.o_proj.weight"] *= 1e-3
    base = write_base(tmp_path / "base", LLAMA, tensors)
    exact, rounded = (
        scored(base.folder, reporter, metric="relative-magnitude", dtype=dtype).mean.attn[3]
        for dtype in ("float32", "bfloat16")
    )
    # Y - X in bfloat16 would be rounding error three times over: its steps are 0.4 %, the output is 0.1 %.
    assert rounded == pytest.approx(exact, rel=0.05)


def test_the_figures_of_one_token_can_be_worked_out_by_hand():
    def states(*row):
        return torch.tensor([[row]], dtype=torch.float32)

    attn = Part(given=states(1, 0), returned=states(0, 2), added=states(0, 4))
    mlp = Part(given=states(3, 0), returned=states(-1, 0), added=states(0, 0))
    passage = Passage(states(3, 0), between=states(3, 4), leaving=states(3, 4), attn=attn, mlp=mlp)
    assert measure(passage, "cosine-no-residual")[0, 0].tolist() == pytest.approx([1.0, 2.0, 1.0])
    assert measure(passage, "relative-magnitude")[0, 0].tolist() == pytest.approx([0.8, 0.0, 0.8])
    assert measure(passage, "cosine")[0, 0].tolist() == pytest.approx([0.4, 0.0, 0.4])


def test_only_granite_multiplies_what_it_adds():
    named = {name for name, entry in ARCHITECTURES.items() if entry.residual_multiplier}
    assert named == {"granite"}
