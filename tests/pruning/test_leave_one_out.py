"""What a model loses without one sublayer: the loss of the model that is really pruned, for fewer runs of layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bases import FAMILIES, LLAMA, MISTRAL, family_tensors, plan, random_tensors, write_base, written
from test_importance import calibration

from hubprune.core import streaming
from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import BaseCheckpoint, WidthPlan
from hubprune.core.bypass import bypassed
from hubprune.core.errors import ScoringError
from hubprune.pruning import leave_one_out, rooms
from hubprune.pruning.importance import Scoring
from hubprune.pruning.leave_one_out import LeaveOneOut
from hubprune.pruning.variants import Variant

LAYERS = 5
NEAR = 5e-6
"""What float32 leaves of a loss of 6 nats, over a document of two tokens."""
ALL = tuple(Variant(layer, kind) for layer in range(LAYERS) for kind in ("attn", "mlp", "block"))


def made(folder, variants=ALL, *, documents=None, **options):
    """Open a base for leaving out in float32 on the CPU."""
    own = {name: options.pop(name) for name in ("in_rounds", "width_metric") if name in options}
    config = json.loads((Path(folder) / "config.json").read_text())
    scoring = Scoring(architecture=architecture_of(config), **options)
    return LeaveOneOut(Path(folder), documents or calibration(), scoring, variants, **own)


def run(opened, start=0):
    return opened.run(lambda amount=1: None, start=start)


def logits_of(model, document):
    with torch.no_grad():
        return model(torch.tensor([document.ids]), use_cache=False).logits[0, :-1].double().log_softmax(-1)


def reference(folder, documents, drop, *, own_code=False):
    """Loss and divergence per document of a whole model with sublayers bypassed, one document at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=own_code).eval()
    family = architecture_of(json.loads((Path(folder) / "config.json").read_text()))
    found = []
    for document in documents:
        base = logits_of(model, document)
        with bypassed(model, drop, family):
            pruned = logits_of(model, document)
        targets = torch.tensor(document.ids[1:])[:, None]
        loss, kl = -pruned.gather(1, targets).mean(), (base.exp() * (base - pruned)).sum(-1).mean()
        found.append((float(-base.gather(1, targets).mean()), float(loss), float(kl)))
    return [tuple(column) for column in zip(*found, strict=True)]


GONE = {"attn": ("attn",), "mlp": ("mlp",), "block": ("attn", "mlp")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("llama") / "base"
    write_base(made, LLAMA, random_tensors(LLAMA, seed=5))
    return made


def same(found, other, *, absolute=2e-6):
    assert found.base == pytest.approx(other.base, abs=absolute)
    assert found.of.keys() == other.of.keys()
    for variant in found.of:
        assert found.of[variant] == pytest.approx(other.of[variant], abs=absolute)
        assert found.divergence[variant] == pytest.approx(other.divergence[variant], abs=absolute)


@pytest.mark.parametrize("family", ["llama", "mistral", *FAMILIES])
def test_a_loss_is_that_of_the_model_without_the_sublayer(family, tmp_path):
    config = {"llama": LLAMA, "mistral": MISTRAL, **FAMILIES}[family]
    tmp_path = tmp_path / "base"
    write_base(tmp_path, config, family_tensors(config))
    layers = config["num_hidden_layers"]
    variants = [Variant(layer, kind) for layer in (0, layers // 2, layers - 1) for kind in GONE]
    found = run(made(tmp_path, variants))
    for variant in variants:
        gone = dict.fromkeys(GONE[variant.kind], (variant.layer,))
        base, loss, kl = reference(tmp_path, calibration().documents, plan(layers, **gone))
        assert found.base == pytest.approx(base, abs=NEAR)
        assert found.of[variant] == pytest.approx(loss, abs=NEAR)
        assert found.divergence[variant] == pytest.approx(kl, abs=NEAR)
        assert max(kl) > 4 * NEAR


def test_batches_and_chunks_change_nothing(folder, monkeypatch):
    one, eight = run(made(folder, batch_size=1)), run(made(folder, batch_size=8))
    same(one, eight)
    monkeypatch.setattr(leave_one_out, "TOKENS_AT_ONCE", 1)
    monkeypatch.setattr(leave_one_out, "LOSS_LOGIT_BYTES", 4 * 256 * 7)
    monkeypatch.setattr(rooms, "available_bytes", lambda: 300_000)
    monkeypatch.setattr(rooms, "device_bytes", lambda device: 300_000)
    small = made(folder, batch_size=2)
    same(one, run(small))
    assert len(small._rooms.chunks) > 1


def test_runs_of_layers_are_counted_and_few(folder):
    for kind, most in (("attn", LAYERS / 2 + 2), ("mlp", LAYERS / 2 + 1), ("block", LAYERS / 2 + 1)):
        opened = made(folder, [Variant(layer, kind) for layer in range(LAYERS)])
        run(opened)
        own = LAYERS if kind == "attn" else 0
        assert opened.layer_runs == LAYERS + LAYERS * (LAYERS - 1) / 2 + own
        assert opened.layer_runs <= most * LAYERS


def test_weights_are_read_once_for_all_variants(folder, monkeypatch):
    read = []
    really = streaming.read_ahead

    def counted(loads, **how):
        read.append(len(loads))
        return really(loads, **how)

    monkeypatch.setattr(streaming, "read_ahead", counted)
    run(made(folder))
    assert read == [LAYERS]


@pytest.mark.parametrize("metric", ["max_abs", "pon"])
def test_a_narrower_mlp_loses_what_the_written_one_does(folder, tmp_path, metric):
    base = BaseCheckpoint(name="tiny", commit=None, folder=str(folder), config=LLAMA, files=())
    kept = LLAMA["intermediate_size"] // 2, LLAMA["intermediate_size"] - 5
    found = run(made(folder, [Variant(2, "width", width) for width in kept], width_metric=metric))
    for number, width in enumerate(kept):
        before = (LLAMA["intermediate_size"],) * LAYERS
        widths = WidthPlan(before=before, kept=(*before[:2], width, *before[3:]), metric=metric)
        narrow = plan(LAYERS).model_copy(update={"widths": widths, "layout": "pruned"})
        out = written(base, narrow, tmp_path / f"{number}")
        loss, _, _ = reference(out, calibration().documents, plan(LAYERS), own_code=True)
        assert found.of[Variant(2, "width", width)] == pytest.approx(loss, abs=2e-6)
        whole = made(folder, (), width_metric=metric)
        whole.narrow(2, width)
        assert run(whole).base == pytest.approx(loss, abs=2e-6)


def test_a_run_from_a_higher_layer_on_finds_what_a_fresh_one_does(folder, monkeypatch):
    for levels in (4, 2, 0):
        monkeypatch.setattr(rooms, "_spread", lambda layers, n=levels: iter([tuple(range(1, 1 + n))]))
        opened = made(folder, in_rounds=True)
        run(opened)
        opened.bypass("attn", 3)
        before = opened.layer_runs
        found = run(opened, start=3)
        again, fresh = opened.layer_runs - before, made(folder, [v for v in ALL if v != Variant(3, "attn")])
        fresh.bypass("attn", 3)
        same(found, run(fresh))
        assert again == fresh.layer_runs if not levels else again < fresh.layer_runs


def test_where_not_even_one_batch_has_room_nothing_is_kept_for_later_rounds(folder, monkeypatch):
    expected = run(made(folder))
    monkeypatch.setattr(rooms, "available_bytes", lambda: 0)
    monkeypatch.setattr(rooms, "device_bytes", lambda device: 0)
    same(run(made(folder, in_rounds=True, batch_size=64)), expected)


def test_broken_weights_are_named(tmp_path):
    tensors = random_tensors(LLAMA, seed=5)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.inf
    write_base(tmp_path / "base", LLAMA, tensors)
    with pytest.raises(ScoringError, match="not a finite number"):
        run(made(tmp_path / "base"))


def test_a_document_of_one_token_predicts_nothing(folder):
    found = run(made(folder, [Variant(0, "attn")], documents=calibration(lengths=(1, 9, 8, 1))))
    assert found.predicted == (0, 8, 7, 0)
    assert found.base[0] == found.base[3] == 0.0
    assert found.rise(Variant(0, "attn"))[0] == 0.0
