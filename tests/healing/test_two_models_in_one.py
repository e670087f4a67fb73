"""Base and pruned model in memory share their weights, and each computes what it would alone."""

from __future__ import annotations

import pytest
import torch
from bases import FAMILIES, LLAMA, MISTRAL, family_tensors, plan, random_tensors, write_base
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hubprune.core.architectures import architecture_of
from hubprune.core.bypass import bypassed
from hubprune.core.neutral import load_causal_lm
from hubprune.healing import merging, models
from hubprune.healing.training import collate
from hubprune.pruning.checkpoint import write_checkpoint

CONFIGS = {"llama": LLAMA, "mistral": MISTRAL, **FAMILIES}
TEXT = torch.arange(24).remainder(11).add(40)[None]
DROPS = {"attention and MLP": {"attn": (0, 3), "mlp": (2,)}, "a whole layer": {"attn": (1, 2), "mlp": (1,)}}


def base_of(family, folder):
    config = CONFIGS[family]
    tensors = random_tensors(config) if family in ("llama", "mistral") else family_tensors(config)
    write = write_base(folder, config, tensors)
    return write, load_causal_lm(folder, dtype=torch.float32, own_code=False), architecture_of(config)


@pytest.mark.parametrize("drops", DROPS.values(), ids=DROPS)
@pytest.mark.parametrize("family", CONFIGS)
def test_the_student_computes_what_the_bypassed_base_does_and_the_base_stays_as_it_is(family, drops, tmp_path):
    _, base, family_of = base_of(family, tmp_path / "base")
    made = plan(CONFIGS[family]["num_hidden_layers"], **drops)
    with torch.inference_mode():
        before = base(TEXT, use_cache=False).logits
        with bypassed(base, made, family_of):
            alone = base(TEXT, use_cache=False).logits
        student = models.with_adapters(models.without_sublayers(base, made, family_of), rank=2, seed=0)
        assert torch.equal(student(input_ids=TEXT, use_cache=False).logits, alone)
        assert torch.equal(base(TEXT, use_cache=False).logits, before)
    assert not torch.equal(alone, before)


def test_both_are_one_set_of_weights(tmp_path):
    _, base, family = base_of("llama", tmp_path / "base")
    student = models.with_adapters(models.without_sublayers(base, plan(5, attn=(1,)), family), rank=2, seed=0)
    own = {p.data_ptr() for p in base.parameters()}
    added = [n for n, p in student.named_parameters() if p.data_ptr() not in own]
    assert added
    assert all("lora_" in name for name in added)
    assert {n for n, p in student.named_parameters() if p.requires_grad} == set(added)
    # Of 5 layers with 7 matrices each, the 4 of one attention are gone; each has two parts.
    assert len(added) == 2 * (5 * 7 - 4)
    assert not any("layers.1.self_attn" in name for name in added)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text", "granite"])
def test_merged_adapters_compute_what_the_student_did_and_nothing_else_changes(family, tmp_path):
    written, base, family_of = base_of(family, tmp_path / "base")
    made = plan(CONFIGS[family]["num_hidden_layers"], attn=(1,), mlp=(2,))
    student = models.with_adapters(models.without_sublayers(base, made, family_of), rank=4, seed=0)
    torch.manual_seed(1)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    for folder in ("copy", "pruned"):
        (tmp_path / folder).mkdir()
    changed = merging.put_into_copy(tmp_path / "base", merging.merged(student), tmp_path / "copy", names={})
    copy = written.model_copy(update={"folder": str(tmp_path / "copy")})
    write_checkpoint(copy, made, tmp_path / "pruned", advance=lambda _: None)
    with torch.inference_mode():
        wanted = student(input_ids=TEXT, use_cache=False).logits
        healed = load_causal_lm(tmp_path / "pruned", dtype=torch.float32, own_code=made.layout != "stock")
        found = healed(TEXT, use_cache=False).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
    again = load_causal_lm(tmp_path / "copy", dtype=torch.float32, own_code=False).state_dict()
    differing = {name for name, tensor in base.state_dict().items() if not torch.equal(again[name], tensor)}
    assert differing == set(changed)
    assert len(changed) == sum("lora_A" in name for name, _ in student.named_parameters())


def test_a_merged_tensor_is_rounded_once_to_what_is_stored(tmp_path):
    config = {**LLAMA, "torch_dtype": "bfloat16"}
    write_base(tmp_path / "base", config, {k: v.bfloat16() for k, v in random_tensors(LLAMA).items()})
    base = load_causal_lm(tmp_path / "base", dtype=torch.bfloat16, own_code=False)
    student = models.with_adapters(
        models.without_sublayers(base, plan(5, attn=(1,)), architecture_of(LLAMA)), rank=2, seed=0
    )
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    (tmp_path / "copy").mkdir()
    merging.put_into_copy(tmp_path / "base", merging.merged(student), tmp_path / "copy", names={})
    name = "model.layers.0.mlp.up_proj"
    part = student.get_base_model().get_submodule(name)
    up, down = part.lora_B["default"].weight.double(), part.lora_A["default"].weight.double()
    exact = part.base_layer.weight.double() + 2 * (up @ down)
    stored = load_causal_lm(tmp_path / "copy", dtype="auto", own_code=False).get_submodule(name).weight
    assert stored.dtype == torch.bfloat16
    # The nearest of all bfloat16: none is nearer than half a step.
    error = (stored.double() - exact).abs()
    assert bool((error <= exact.abs() * 2**-8 * 1.01).all())


# ---- the loss --------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Says the same logits of every token, whatever came before."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))

    def forward(self, input_ids, use_cache):
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.table[input_ids])


ONE = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
OTHER = [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
ROWS = [(0, 1, 2), (2, 0)]


def test_kl_is_summed_over_positions_with_a_next_token_and_divided_by_their_number():
    batch = collate(ROWS)
    pair = models.Distillation(Fixed(ONE), Fixed(OTHER), "kl")

    def kl(token):
        p, q = torch.tensor(ONE[token]).softmax(0), torch.tensor(OTHER[token]).softmax(0)
        return float((p * (p / q).log()).sum())

    # Padding and the last token of each document say nothing: 0, 1 of the first, 2 of the second.
    assert pair(**batch)["loss"].item() == pytest.approx((kl(0) + kl(1) + kl(2)) / 3, rel=1e-6)
    assert pair(**batch, num_items_in_batch=12)["loss"].item() == pytest.approx((kl(0) + kl(1) + kl(2)) / 12, rel=1e-6)
    assert kl(1) == 0


@pytest.mark.parametrize("count", [1, models.POSITIONS, models.POSITIONS + 1, 3 * models.POSITIONS])
def test_the_slope_of_the_divergence_is_that_of_its_formula(count):
    torch.manual_seed(count)
    known, told = torch.randn(count, 31) * 3, (torch.randn(count, 31) * 3).requires_grad_()
    weights = torch.rand(count)
    one, other = known.double().log_softmax(-1), told.double().log_softmax(-1)
    wanted = (one.exp() * (one - other)).sum(-1)
    found = models.divergence(known, told)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-6)
    [slope] = torch.autograd.grad((wanted * weights).sum(), told)
    [own] = torch.autograd.grad((found * weights).sum(), told)
    torch.testing.assert_close(own, slope.float(), rtol=1e-4, atol=1e-6)


def test_cross_entropy_is_that_of_the_texts_and_no_teacher_is_asked():
    batch = collate(ROWS)
    pair = models.Distillation(None, Fixed(OTHER), "ce")
    table = torch.tensor(OTHER).log_softmax(-1)
    wanted = -(table[0, 1] + table[1, 2] + table[2, 0]) / 3
    assert pair(**batch)["loss"].item() == pytest.approx(float(wanted), rel=1e-6)


def test_the_loss_of_hidden_states_is_one_minus_their_cosine_averaged_over_layers(tmp_path):
    _, base, family = base_of("llama", tmp_path / "base")
    student = models.without_sublayers(base, plan(5, attn=(1,)), family)
    layers = list(zip(base.model.layers, student.model.layers, strict=True))
    batch = collate([tuple(range(40, 60)), tuple(range(45, 52))])
    with torch.no_grad():
        plain = models.Distillation(base, student, "kl")(**batch)["loss"]
        both = models.Distillation(base, student, "kl+hidden", layers=layers)(**batch)["loss"]
        kept = batch["labels"][:, 1:] != -100
        told, hidden = [], []
        for model in (base, student):
            states = batch["input_ids"]
            states = model.model.embed_tokens(states)
            hidden.append([])
            hooks = [
                layer.register_forward_hook(lambda _, i, o, h=hidden[-1]: h.append(o)) for layer in model.model.layers
            ]
            told.append(model(batch["input_ids"], use_cache=False).logits)
            for hook in hooks:
                hook.remove()
        turned = [
            1 - nn.functional.cosine_similarity(a[:, :-1][kept], b[:, :-1][kept], dim=-1)
            for a, b in zip(*hidden, strict=True)
        ]
    assert float(both - plain) == pytest.approx(float(torch.stack(turned).mean()), rel=1e-4)
    assert float(turned[0].mean()) < 1e-6 < float(turned[1].mean())


# ---- what came back --------------------------------------------------------------------------------------------------


def looked(nll, base=(10.0, 10.0, 10.0)):
    rows = torch.tensor(nll, dtype=torch.float64)
    zero = torch.zeros_like(rows)
    return models.Look(zero, rows, torch.tensor(base, dtype=torch.float64), zero, torch.full_like(rows, 10))


def test_what_came_back_is_the_share_of_the_loss_in_log_perplexity():
    back = models.recovered(looked((20.0, 20.0, 20.0)), looked((12.0, 12.0, 12.0)), seed=0)
    assert (back.value, back.low, back.high) == pytest.approx((0.8, 0.8, 0.8))
    back = models.recovered(looked((20.0, 30.0, 12.0)), looked((12.0, 11.0, 12.0)), seed=0)
    assert back.value == pytest.approx((8 + 19 + 0) / 32)
    assert back.low < back.value < back.high
    assert back.low == pytest.approx(0.0, abs=0.3)


def test_where_nothing_was_lost_there_is_no_share():
    assert models.recovered(looked((10.0, 10.0, 10.0)), looked((9.0, 9.0, 9.0)), seed=0) is None


def test_a_look_weighs_every_position_alike():
    pair = models.Distillation(Fixed(ONE), Fixed(OTHER), "kl")
    seen = models.look(pair, [collate([row]) for row in ROWS])
    told = seen.told()
    assert seen.positions.tolist() == [2, 1]
    loss = models.Distillation(Fixed(ONE), Fixed(OTHER), "kl")(**collate(ROWS))["loss"]
    assert told.kl == pytest.approx(loss.item(), rel=1e-6)
    table = torch.tensor(OTHER).log_softmax(-1)
    assert told.perplexity == pytest.approx(float((-(table[0, 1] + table[1, 2] + table[2, 0]) / 3).exp()), rel=1e-6)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=12), st.integers(1, 5))
def test_batches_hold_every_document_once_the_longest_first(documents, size):
    from hubprune.healing.texts import batches_of

    made = batches_of(documents, size=size)
    flat = [ids for batch in made for ids in batch]
    assert sorted(flat) == sorted(documents)
    assert [len(ids) for ids in flat] == sorted(map(len, documents), reverse=True)
    assert all(len(batch) <= size for batch in made)
