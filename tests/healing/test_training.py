"""A training goes on where it was stopped as if nothing had happened, and ends where nothing is gained."""

from __future__ import annotations

import json

import pytest
import torch
from bases import LLAMA, plan, random_tensors, write_base

from hubprune.core.architectures import architecture_of
from hubprune.core.console import Reporter
from hubprune.core.errors import HealingError
from hubprune.core.neutral import load_causal_lm
from hubprune.healing import models, training
from hubprune.healing.training import Settings, train

DOCUMENTS = [tuple((7 * n + 3 * k) % 200 + 20 for k in range(6 + n % 9)) for n in range(40)]
HELD_OUT = [tuple((5 * n + 2 * k) % 200 + 20 for k in range(8)) for n in range(6)]
SETTINGS = Settings(
    steps=12, batch_size=4, micro_batch=4, learning_rate=5e-3, seed=3, device="cpu", dtype="float32"
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "base"
    write_base(folder, LLAMA, random_tensors(LLAMA))
    return folder


def pair_of(base, *, full=False):
    teacher = load_causal_lm(base, dtype=torch.float32, own_code=False).requires_grad_(requires_grad=False)
    made = plan(5, attn=(1, 3))
    if full:
        own = load_causal_lm(base, dtype=torch.float32, own_code=False)
        student = models.without_sublayers(own, made, architecture_of(LLAMA))
        return models.Distillation(teacher, student.requires_grad_(requires_grad=True), "kl")
    student = models.without_sublayers(teacher, made, architecture_of(LLAMA))
    return models.Distillation(teacher, models.with_adapters(student, rank=4, seed=0), "kl")


def learned(pair):
    return {name: p.detach().clone() for name, p in pair.named_parameters() if p.requires_grad}


def run(pair, folder, settings=SETTINGS):
    return train(pair, DOCUMENTS, HELD_OUT, settings, folder=folder, reporter=Reporter(quiet=True))


@pytest.mark.parametrize("full", [False, True], ids=["adapters", "all weights"])
def test_a_killed_training_goes_on_bit_for_bit(base, tmp_path, monkeypatch, full):
    undisturbed = pair_of(base, full=full)
    whole = run(undisturbed, tmp_path / "whole")
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)

    class Killed(BaseException):
        """As a signal that nobody catches."""

    note = training._Watch.note_loss
    calls = []

    def kill(self, loss, tokens):
        note(self, loss, tokens)
        calls.append(loss)
        if len(calls) == 7:
            raise Killed

    monkeypatch.setattr(training._Watch, "note_loss", kill)
    with pytest.raises(Killed):
        run(pair_of(base, full=full), tmp_path / "killed")
    monkeypatch.setattr(training._Watch, "note_loss", note)
    [last] = (tmp_path / "killed").glob("checkpoint-*")
    kept = (last / training.WHOLE).read_text()
    # What a killed run left half of does not count.
    (tmp_path / "killed" / "checkpoint-9").mkdir()
    again = pair_of(base, full=full)
    rest = run(again, tmp_path / "killed")
    assert rest.steps == 12
    one, other = learned(undisturbed), learned(again)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert rest.curve == whole.curve
    assert rest.seconds > json.loads(kept)["seconds"] > 0
    assert rest.tokens == whole.tokens
    assert rest.first.told() == whole.first.told()
    assert torch.equal(rest.first.nll, whole.first.nll)
    assert torch.equal(rest.last.nll, whole.last.nll)


def test_a_checkpoint_holds_what_was_trained_and_nothing_else(base, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    pair = pair_of(base)
    run(pair, tmp_path)
    [last] = tmp_path.glob("checkpoint-*")
    kept = load_file(last / training.TRAINED)
    assert {name: tensor.shape for name, tensor in kept.items()} == {n: t.shape for n, t in learned(pair).items()}
    assert json.loads((last / training.WHOLE).read_text())["curve"][-1]["step"] == 12


def test_parts_of_a_step_add_up_to_it(base, tmp_path):
    whole, parts = pair_of(base), pair_of(base)
    one = run(whole, tmp_path / "whole")
    other = run(parts, tmp_path / "parts", Settings(**{**vars(SETTINGS), "micro_batch": 1}))
    assert one.tokens == other.tokens
    for left, right in zip(one.curve, other.curve, strict=True):
        assert left.held_out.kl == pytest.approx(right.held_out.kl, rel=2e-3)
        assert left.loss == pytest.approx(right.loss, rel=2e-2) if left.loss is not None else right.loss is None


def test_healing_brings_back_what_dropping_lost(base, tmp_path):
    found = run(pair_of(base), tmp_path, SETTINGS.with_steps(60))
    first, last = found.curve[0].held_out, found.curve[-1].held_out
    assert found.curve[0].step == 0
    assert found.curve[0].loss is None
    assert last.kl < 0.75 * first.kl  # of random weights, on texts of random numbers


def test_it_ends_where_the_held_out_loss_no_longer_falls(base, tmp_path):
    still = Settings(**{**vars(SETTINGS), "learning_rate": 1e-12, "steps": 40})
    found = run(pair_of(base), tmp_path, still)
    assert found.steps == 4 * (training.PATIENCE + 1)


def test_a_loss_that_is_no_number_ends_it_and_the_checkpoint_before_it_stays(base, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    with pytest.raises(HealingError, match=r"The loss of step .* is nan") as caught:
        run(pair_of(base), tmp_path, Settings(**{**vars(SETTINGS), "learning_rate": 1e38, "steps": 40}))
    assert "--learning-rate" in str(caught.value.hint)
    assert any((place / training.WHOLE).is_file() for place in tmp_path.glob("checkpoint-*"))


def test_the_rate_rises_then_falls_to_a_twentieth():
    rates = [training._rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[-1] == pytest.approx(0.05 + 0.95 * 0.01)
