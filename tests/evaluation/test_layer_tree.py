"""One pass for several models gives each what it computes alone."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest
import torch
import transformers
from torch import nn

from hubprune.core.errors import EvaluationError
from hubprune.evaluation import batch as batch_module
from hubprune.evaluation import computing as scoring
from hubprune.evaluation import requests as requests_module
from hubprune.evaluation.computing import Scorer
from hubprune.evaluation.layer_tree import Variant, why_not
from hubprune.evaluation.requests import Request

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
FAMILIES = {
    "llama": ("Llama", {}),
    "mistral, window": ("Mistral", {"sliding_window": 7}),
    "gemma2, both kinds, capped": ("Gemma2", {"sliding_window": 7, "head_dim": 8, "final_logit_softcapping": 3.0}),
    "gemma3, two ropes": ("Gemma3", {"sliding_window": 7, "head_dim": 8}),
    "granite, scaled": ("Granite", {"logits_scaling": 3.0, "embedding_multiplier": 5.0}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
}


def make(family="llama", **changes):
    name, special = FAMILIES[family]
    kind = "Gemma3ForCausalLM" if name == "Gemma3" else f"{name}ForCausalLM"
    config = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    torch.manual_seed(0)
    return getattr(transformers, kind)(getattr(transformers, config)(**{**SIZES, **special, **changes})).eval()


def questions(documents=6, choices=3, seed=0):
    source = random.Random(seed)

    def words(most):
        return [source.randrange(97) for _ in range(source.randint(1, most))]

    contexts = [words(40) for _ in range(documents)]
    return [Request.of(context, words(9), max_length=30) for context in contexts for _ in range(choices)]


def alone(model, requests):
    """The definition: one request at a time, no padding, no cache."""
    found = []
    for request in requests:
        with torch.no_grad():
            likely = model(torch.tensor([request.read]), use_cache=False).logits[0].float().log_softmax(-1)
        places = range(len(request.read) - request.scored, len(request.read))
        found.append(sum(likely[p, t].item() for p, t in zip(places, request.targets, strict=True)))
    return found


def together(variants, requests, **settings):
    scorer = Scorer(variants, **settings)
    answers = {variant.name: {} for variant in variants}
    for rows in scorer.plan(requests):
        for name, some in scorer.answer(rows, requests).items():
            answers[name] |= some
    return {name: [some[n].log_likelihood for n in range(len(requests))] for name, some in answers.items()}, scorer


class Nothing(nn.Module):
    def forward(self, hidden_states, *args, **kwargs):
        return torch.zeros_like(hidden_states), None


def without_attention(model, *layers):
    """A copy of a model in which attentions add zero."""
    found = deepcopy(model)
    for layer in layers:
        found.model.layers[layer].self_attn = Nothing()
    return found


def share_weights(base, other):
    """Let a model use the base's equal tensors, as those that are loaded beside it do."""
    theirs = dict(base.named_parameters())
    for name, parameter in other.named_parameters():
        found = [theirs[name], *theirs.values()] if name in theirs else theirs.values()
        parameter.data = next((p.data for p in found if torch.equal(p, parameter)), parameter.data)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_answer_is_that_of_a_plain_forward_pass(family, attention):
    model, requests = make(family), questions()
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip("transformers has no such attention for it")
    model.set_attn_implementation(attention)
    found, scorer = together([Variant.of("base", model)], requests)
    assert any(not row.is_plain for rows in scorer.plan(requests) for row in rows)
    assert found["base"] == pytest.approx(alone(model, requests), abs=1e-4)


@pytest.fixture
def short_pieces(monkeypatch):
    """What is long for a model of 128 positions."""
    monkeypatch.setattr(requests_module, "LONGEST_ROW", 24)
    monkeypatch.setattr(requests_module, "LEAST_SHARED", 10)
    monkeypatch.setattr(batch_module, "PIECE", 7)
    monkeypatch.setattr(batch_module, "LEAST_PIECE", 7)


def behind_examples(documents=5, choices=4, seed=1, vocabulary=97):
    """Questions behind the same 60 tokens, each with answers that begin alike."""
    source = random.Random(seed)

    def words(count):
        return tuple(source.randrange(vocabulary) for _ in range(count))

    examples = words(60)
    contexts = [(*examples, *words(source.randint(1, 9))) for _ in range(documents)]
    starts = [words(2), words(2)]
    answers = [(*starts[n % 2], *words(source.randint(1, 5))) for n in range(choices)]
    return [Request.of(context, answer, max_length=100) for context in contexts for answer in answers]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_row_in_pieces_answers_as_each_request_alone(family, attention, short_pieces):
    base, requests = make(family), behind_examples()
    if attention == "sdpa" and not base._supports_sdpa:
        pytest.skip("transformers has no such attention for it")
    base.set_attn_implementation(attention)
    pruned = without_attention(base, 2)
    share_weights(base, pruned)
    variants = [Variant.of("base", base), Variant.of("pruned", pruned)]
    found, scorer = together(variants, requests)
    ((row,),) = scorer.plan(requests)
    assert row.is_long
    for variant in variants:
        assert found[variant.name] == pytest.approx(alone(variant.model, requests), abs=1e-5)
    # Two layers in common, two of each, and all tokens of the tree once.
    assert scorer.tree.token_layers == (2 + 2 * 2) * len(row)
    assert 10 * len(row) < sum(map(len, requests))


def test_of_a_long_row_the_way_to_the_next_token_is_kept_and_no_other_branch(short_pieces):
    requests = behind_examples(documents=9, choices=6)
    (row,) = requests_module.make_rows(requests, most=10**6)
    batch = batch_module.collate([row], torch.device("cpu"), piece=7)
    assert [piece.start for piece in batch.pieces] == [*range(0, len(row), 7)]
    for piece in batch.pieces:
        before = [n for n in range(piece.start) if row.ends[n] > piece.start]
        assert piece.kept.tolist() == before
        assert [row.positions[n] for n in before] == [*range(row.positions[piece.start])]


def test_a_long_row_that_does_not_fit_is_halved(short_pieces, monkeypatch):
    model, requests = make(), behind_examples()
    memory = Memory(monkeypatch, 100)
    found, _ = together([Variant.of("base", model)], requests)
    assert max(memory.sizes) > 100
    assert found["base"] == pytest.approx(alone(model, requests), abs=1e-5)


def test_the_last_token_of_every_ending_is_told_greedy_or_not():
    model = make()
    with torch.no_grad():
        best = model(torch.tensor([[5, 6, 7]])).logits[0, -1].argmax().item()
    requests = [Request.of([5, 6, 7], [token], max_length=9) for token in (best, (best + 1) % 97)]
    scorer = Scorer([Variant.of("base", model)])
    (answers,) = [scorer.answer(rows, requests)["base"] for rows in scorer.plan(requests)]
    assert [answers[0].is_greedy, answers[1].is_greedy] == [True, False]


def test_layers_that_variants_share_are_run_once():
    base, requests = make(), questions(2)
    pruned = without_attention(base, 2)
    share_weights(base, pruned)
    variants = [Variant.of("base", base), Variant.of("pruned", pruned)]
    found, scorer = together(variants, requests)
    batches = len(scorer.plan(requests))
    assert scorer.tree.calls == batches * (2 + 2 * 2)  # two in common, then two of each
    for variant in variants:
        assert found[variant.name] == pytest.approx(alone(variant.model, requests), abs=1e-4)
    assert found["base"] != found["pruned"]


def test_models_with_other_weights_share_nothing():
    base, requests = make(), questions(2)
    other = make()
    with torch.no_grad():
        other.model.embed_tokens.weight[0] += 1
    share_weights(base, other)
    found, scorer = together([Variant.of("base", base), Variant.of("other", other)], requests)
    assert scorer.tree.calls == 2 * 4 * len(scorer.plan(requests))
    assert found["other"] == pytest.approx(alone(other, requests), abs=1e-4)


def test_layers_are_known_by_their_weights_and_not_by_the_object_they_are():
    """An object that is gone may have left its number to another one."""
    base, requests = make(), questions(2)
    twin = deepcopy(base)
    share_weights(base, twin)
    _, scorer = together([Variant.of("base", base), Variant.of("twin", twin)], requests)
    assert scorer.tree.calls == 4 * len(scorer.plan(requests))


def test_layers_of_equal_weights_that_see_another_window_are_two():
    base, other = make("mistral, window"), make("mistral, window", sliding_window=3)
    share_weights(base, other)
    requests = questions(3)
    variants = [Variant.of("base", base), Variant.of("other", other)]
    found, _ = together(variants, requests)
    assert found["base"] != found["other"]
    for variant in variants:
        assert found[variant.name] == pytest.approx(alone(variant.model, requests), abs=1e-4)


def test_a_model_with_fewer_layers_takes_part():
    base, requests = make(), questions(2)
    short = deepcopy(base)
    short.model.layers = short.model.layers[1:]
    short.config.num_hidden_layers = 3
    for number, layer in enumerate(short.model.layers):
        layer.self_attn.layer_idx = number
    share_weights(base, short)
    found, _ = together([Variant.of("base", base), Variant.of("short", short)], requests)
    assert found["short"] == pytest.approx(alone(short, requests), abs=1e-4)
    assert found["base"] == pytest.approx(alone(base, requests), abs=1e-4)


# ---- memory ------------------------------------------------------------------------------------------------------


class Memory:
    """Lets a forward pass fail that has more tokens than fit."""

    def __init__(self, monkeypatch, most):
        self.sizes = []
        collate = scoring.collate

        def refuse(rows, device, **settings):
            batch = collate(rows, device, **settings)
            self.sizes.append(batch.ids.numel())
            if batch.ids.numel() > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return batch

        monkeypatch.setattr(scoring, "collate", refuse)


def test_a_batch_that_does_not_fit_is_halved_and_so_are_those_after_it(monkeypatch):
    model, requests = make(), questions(40)
    expected, _ = together([Variant.of("base", model)], requests)
    monkeypatch.setattr(scoring, "CPU_SLOTS", 1000)
    memory = Memory(monkeypatch, 300)
    found, _ = together([Variant.of("base", model)], requests)
    assert found["base"] == pytest.approx(expected["base"], abs=1e-4)
    failed = [n for n, size in enumerate(memory.sizes) if size > 300]
    assert 0 < len(failed) <= 2
    assert all(size <= 300 for size in memory.sizes[failed[-1] + 1 :])


def test_a_row_that_does_not_fit_is_taken_apart(monkeypatch):
    model, requests = make(), [Request.of(range(20), [n] * 9, max_length=60) for n in range(4)]
    expected = alone(model, requests)
    Memory(monkeypatch, 30)
    assert together([Variant.of("base", model)], requests)[0]["base"] == pytest.approx(expected, abs=1e-4)


def test_a_request_that_does_not_fit_alone_is_an_error(monkeypatch):
    Memory(monkeypatch, 3)
    with pytest.raises(EvaluationError, match="out of memory over a single request of 28 tokens"):
        together([Variant.of("base", make())], [Request.of(range(20), [1] * 9, max_length=60)])


def test_an_answer_that_is_not_finite_is_an_error():
    model = make()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(EvaluationError, match="log-likelihood of the base model is not finite"):
        together([Variant.of("base", model)], questions(1))


# ---- what is left to lm-eval -------------------------------------------------------------------------------------


def test_models_that_cannot_be_run_layer_by_layer_are_told_why():
    assert why_not(Variant.of("base", make())) is None
    quantized = make()
    quantized.config.quantization_config = {"quant_method": "awq"}
    assert why_not(Variant.of("base", quantized)) == "it is quantized"
    flash = make()
    flash.config._attn_implementation = "flash_attention_2"
    assert why_not(Variant.of("base", flash)) == "its attention is flash_attention_2"
    spread = make()
    spread.model.layers[3].to("meta")
    assert why_not(Variant.of("base", spread)) == "it is spread over several devices"
    other = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=97))
    assert why_not(Variant.of("base", other)) == "its decoder has no layers and no norm and no embed_tokens"
