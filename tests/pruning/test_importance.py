"""Scores: known answers, an independent computation in float64, and batches that change nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from bases import LLAMA, MISTRAL, SHARED_DATA, plan, random_tensors, write_base

from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import CalibrationRecord, CalibrationSource
from hubprune.core.errors import CheckpointError, ScoringError
from hubprune.pruning.calibration import CalibrationSet, Document
from hubprune.pruning.checkpoint import write_checkpoint
from hubprune.pruning.importance import Scoring, score

WEIGHTS = (0.75, 0.25)


def calibration(lengths=(3, 40, 17, 9, 2, 33, 21, 12, 28), *, vocabulary=256):
    """Documents of random tokens: the even ones are of the first subset, the odd ones of the second."""
    made = torch.Generator().manual_seed(7)
    documents = tuple(
        Document(number % 2, tuple(torch.randint(vocabulary, (length,), generator=made).tolist()))
        for number, length in enumerate(lengths)
    )
    sources = tuple(
        CalibrationSource(
            dataset=f"set {s}",
            config=None,
            split="train",
            commit=None,
            weight=weight,
            documents=sum(d.source == s for d in documents),
            tokens=sum(len(d.ids) for d in documents if d.source == s),
        )
        for s, weight in enumerate(WEIGHTS)
    )
    record = CalibrationRecord(
        mix="own", sources=sources, max_tokens=64, seed=0, shuffle_buffer=1, token_sha256="0" * 64
    )
    return CalibrationSet(documents, record)


def scored(folder, reporter, documents=None, **options):
    """Score a folder in float32 on the CPU."""
    config = json.loads((Path(folder) / "config.json").read_text())
    how = Scoring(architecture=architecture_of(config), **options)
    return score(Path(folder), documents or calibration(), how, reporter=reporter)


def reference(folder, documents, *, by_token):
    """Scores from a whole model in float64, one document at a time, by 1 - cos and nothing clever.

    Returns:
        attention, MLP and block means of the mix, one tensor per layer each.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    states = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, args, kwargs: states.append(args[0]), with_kwargs=True)
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: states.append(args[0]))
        layer.register_forward_hook(lambda _, args, output: states.append(output))
    totals, sizes = [0.0, 0.0], [0, 0]
    for document in documents:
        states.clear()
        with torch.no_grad():
            model(torch.tensor([document.ids]), use_cache=False)
        rows = []
        for x, y, z in zip(states[::3], states[1::3], states[2::3], strict=True):
            pairs = ((x, y), (y, z), (x, z))
            rows.append(torch.stack([1 - torch.cosine_similarity(a[0], b[0], dim=-1).mean() for a, b in pairs]))
        size = len(document.ids) if by_token else 1
        totals[document.source] += torch.stack(rows) * size
        sizes[document.source] += size
    return sum(weight * total / size for weight, total, size in zip(WEIGHTS, totals, sizes, strict=True))


def values(scores):
    """Means as a matrix, [layers, 3]."""
    return torch.tensor([scores.mean.attn, scores.mean.mlp, scores.mean.block], dtype=torch.float64).T


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_scores_equal_an_independent_computation_in_float64(request, reporter, family):
    folder = request.getfixturevalue(family).folder
    documents = calibration()
    if family == "mistral":
        assert max(len(d.ids) for d in documents.documents) > 4 * MISTRAL["sliding_window"]
    for aggregation in ("document", "token"):
        expected = reference(folder, documents.documents, by_token=aggregation == "token")
        for batch_size in (1, 8):
            found = values(scored(folder, reporter, documents, aggregation=aggregation, batch_size=batch_size))
            assert (found - expected).abs().max() < 1e-6


def test_document_and_token_means_differ_and_so_do_the_weights_of_the_mix(llama, reporter):
    by_document, by_token = (values(scored(llama.folder, reporter, aggregation=a)) for a in ("document", "token"))
    assert (by_document - by_token).abs().max() > 1e-3
    found = scored(llama.folder, reporter)
    mixed = [0.75 * one + 0.25 * other for one, other in zip(*(s.attn for s in found.by_source), strict=True)]
    assert found.mean.attn == pytest.approx(mixed, abs=1e-12)
    assert found.by_source[0].attn != pytest.approx(found.by_source[1].attn, abs=1e-3)


def test_batches_change_no_score(mistral, reporter):
    one, other = (scored(mistral.folder, reporter, batch_size=size) for size in (1, 4))
    assert (values(one) - values(other)).abs().max() < 1e-6
    for a, b in zip(one.per_document, other.per_document, strict=True):
        assert a.tokens == b.tokens
        assert a.scores.attn == pytest.approx(b.scores.attn, abs=1e-6)


def test_the_record_says_how_scores_were_made(llama, reporter):
    found = scored(llama.folder, reporter, aggregation="token")
    assert (found.metric, found.aggregation, found.dtype, found.device) == ("cosine", "token", "float32", "cpu")
    assert found.calibration == calibration().record
    assert [row.tokens for row in found.per_document] == [3, 40, 17, 9, 2, 33, 21, 12, 28]


# ---- known answers -----------------------------------------------------------------------------------------------


def planted(tmp_path):
    """Split layer 1's attention and MLP over two layers, and put a layer that does nothing behind them.

    Layer 1 keeps its attention, layer 2 has its MLP, layer 3 writes only zeros.
    """
    tensors = random_tensors(LLAMA)
    zero = ["1.mlp.down_proj", "2.self_attn.o_proj", "3.self_attn.o_proj", "3.mlp.down_proj"]
    for name in zero:
        tensors[f"model.layers.{name}.weight"].zero_()
    return write_base(tmp_path / "base", LLAMA, tensors)


def test_a_sublayer_that_does_nothing_scores_exactly_zero_and_no_other_does(tmp_path, reporter):
    base = planted(tmp_path)
    for dtype in ("float32", "bfloat16"):
        found = scored(base.folder, reporter, dtype=dtype)
        assert [layer for layer, s in enumerate(found.mean.attn) if s == 0.0] == [2, 3]
        assert [layer for layer, s in enumerate(found.mean.mlp) if s == 0.0] == [1, 3]
        assert [layer for layer, s in enumerate(found.mean.block) if s == 0.0] == [3]
        assert found.mean.ascending("attn")[:2] == [3, 2]
        assert min(s for s in (*found.mean.attn, *found.mean.mlp) if s) > 1e-3


def test_dropping_what_scores_zero_changes_no_logit(tmp_path):
    from transformers import AutoModelForCausalLM

    base, out = planted(tmp_path), tmp_path / "planted-pruned"
    out.mkdir()
    write_checkpoint(base, plan(5, attn=[2, 3], mlp=[1, 3]), out, advance=lambda _: None)
    ids = torch.arange(50)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(base.folder)(ids).logits
        pruned = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)(ids).logits
    assert torch.equal(pruned, expected)


def test_a_score_is_never_negative_however_little_a_sublayer_does(tmp_path, reporter):
    tensors = random_tensors(LLAMA)
    for layer, shrink in enumerate([1e-2, 1e-3, 1e-4, 1e-5, 1e-6]):
        tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] *= shrink
    base = write_base(tmp_path / "base", LLAMA, tensors)
    attn = scored(base.folder, reporter).mean.attn
    assert min(attn) >= 0
    # The angle falls with the size of the sublayer's output, and the score with its square.
    assert all(deeper < before / 10 for before, deeper in pairwise(attn[:4]))


# ---- what stops a run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_stop_the_run(tmp_path, reporter, bad):
    tensors = random_tensors(LLAMA)
    tensors["model.layers.2.self_attn.o_proj.weight"][0, 0] = bad
    base = write_base(tmp_path / "base", LLAMA, tensors)
    with pytest.raises(ScoringError, match="score of layer 2 is not a finite number"):
        scored(base.folder, reporter)


def test_weights_that_do_not_fit_the_config_stop_the_run(tmp_path, reporter):
    base = write_base(tmp_path / "base", {**LLAMA, "intermediate_size": 40}, random_tensors(LLAMA))
    with pytest.raises(CheckpointError, match="Layer 0 does not have the tensors that its config says"):
        scored(base.folder, reporter)


def test_a_layer_without_weights_stops_the_run(tmp_path, reporter):
    base = write_base(tmp_path / "base", {**LLAMA, "num_hidden_layers": 6}, random_tensors(LLAMA))
    with pytest.raises(CheckpointError, match="Layer 5"):
        scored(base.folder, reporter)


def test_tokens_that_the_embedding_does_not_have_stop_the_run(llama, reporter):
    with pytest.raises(CheckpointError, match="has no row 999"):
        scored(llama.folder, reporter, CalibrationSet((Document(0, (1, 999)),), calibration().record))


def test_rotary_tables_that_old_checkpoints_store_are_passed_over(tmp_path, llama, reporter):
    tensors = random_tensors(LLAMA)
    for layer in range(5):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    base = write_base(tmp_path / "base", LLAMA, tensors)
    assert scored(base.folder, reporter).mean == scored(llama.folder, reporter).mean


# ---- a model that learned something ------------------------------------------------------------------------------


STORIES = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her dog. One "
    "day, Lily found a big red ball under a tree. She wanted to share it with her friend Tim. Tim was very happy and "
    "they played all day long. At the end of the day, Lily went home and told her mom about the ball.",
    "Once upon a time, there was a small cat named Tom. Tom liked to sleep in the sun. One day, a bird came and sat "
    "on the tree. Tom wanted to play with the bird, but the bird was scared and flew away. Tom was sad. Then the bird "
    'came back and said, "I will be your friend." Tom was happy and they played together every day.',
    "One day, a boy named Ben went to the store with his mom. He saw a toy car and he wanted it. His mom said, "
    '"No, Ben. We need to buy food." Ben was sad, but he helped his mom carry the bags. When they got home, his mom '
    "gave him a surprise. It was the toy car!",
)


def losses_without_each_attention(folder, documents):
    """Mean loss per token, in nats, of the whole model without the attention of one layer at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for layer in model.model.layers:
        hook = layer.self_attn.register_forward_hook(lambda _, args, output: (output[0] * 0, *output[1:]))
        found.append(sum(float(model(ids, labels=ids).loss) * (ids.shape[1] - 1) for ids in documents))
        hook.remove()
    return [total / sum(ids.shape[1] - 1 for ids in documents) for total in found]


@pytest.mark.skipif(not (SHARED_DATA / "models" / "stories260K").is_dir(), reason="the stories260K model is not here")
@pytest.mark.parametrize("text", ["stories", "web"])
def test_the_least_important_attention_of_stories260k_is_layer_2_and_the_cheapest_to_lose(reporter, text):
    from transformers import AutoTokenizer

    folder = SHARED_DATA / "models" / "stories260K"
    rows = json.loads((SHARED_DATA / "calibration" / "c4_demo.json").read_text())
    web = [row["text"] if isinstance(row, dict) else row for row in rows][:64]
    texts = {"stories": list(STORIES), "web": web}[text]
    ids = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, max_length=256)["input_ids"]
    record = calibration().record
    record = record.model_copy(update={"sources": record.sources[:1]})
    found = scored(folder, reporter, CalibrationSet(tuple(Document(0, tuple(row)) for row in ids), record))
    assert found.mean.ascending("attn")[0] == 2
    # Below the first place, rank and damage part ways.
    with torch.no_grad():
        losses = losses_without_each_attention(folder, [torch.tensor([row]) for row in ids])
    assert min(range(5), key=lambda layer: losses[layer]) == 2
