"""The pass over the layers and what it measures, against whole models of transformers, for every family."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from bases import FAMILIES, LLAMA, family_tensors, random_tensors, write_base
from safetensors.torch import load_file

from hubprune.core.architectures import architecture_of
from hubprune.core.neutral import load_causal_lm
from hubprune.core.specs import QuantizationSpec
from hubprune.core.weights import SINGLE_NAME, open_weights
from hubprune.quantizing import layerwise
from hubprune.quantizing.divergence import compare_states
from hubprune.quantizing.layerwise import LayerPass, Source
from hubprune.quantizing.packing import decode
from hubprune.quantizing.schemes import find_matrices
from hubprune.quantizing.writing import write_decoded, write_weights

SPEC = QuantizationSpec(scheme="w4a16", group_size=16)
TEXTS = [[5, 9, 200, 31, 77, 3, 8, 120, 54, 12, 13], [250, 1, 17, 60, 60, 60], [4], list(range(40, 70))]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Several batches, of which some are padded."""
    monkeypatch.setattr(layerwise, "BATCH_TOKENS", 24)


def opened(folder, config):
    """Return what a pass needs of a base in a folder."""
    family, weights = architecture_of(config), open_weights(Path(folder))
    return (
        Source(folder=Path(folder), architecture=family),
        weights,
        find_matrices({tensor.name: tensor.shape for _, tensor in weights}, family),
    )


def run(folder, config, kept, *, spec=SPEC, calibration=(), notes=None):
    source, weights, matrices = opened(folder, config)
    going = LayerPass(source, matrices, spec, kept=kept, calibration=calibration, held_out=TEXTS)
    going.run(lambda amount=1, /: None, say=(notes if notes is not None else []).append)
    return going, compare_states(source, going.held_out, going.before, going.after), weights, matrices


def whole(folder, texts):
    """Log-probabilities of a whole model in transformers, for the texts that have a next token."""
    model = load_causal_lm(folder, dtype=torch.float32, own_code=False)
    with torch.inference_mode():
        return [model(torch.tensor([text])).logits[0, :-1].double().log_softmax(-1) for text in texts if len(text) > 1]


@pytest.mark.parametrize("name", ["llama", *FAMILIES])
def test_both_models_are_those_of_transformers(name, tmp_path):
    config = LLAMA if name == "llama" else FAMILIES[name]
    config = {key: value for key, value in config.items() if key != "auto_map"}
    tensors = random_tensors(config) if name == "llama" else family_tensors(config)
    base = write_base(tmp_path / "base", config, tensors, shards=2)
    going, seen, weights, matrices = run(base.folder, config, tmp_path / "kept", calibration=TEXTS[::-1])
    decoded = tmp_path / "decoded"
    decoded.mkdir()
    (tmp_path / "quantized").mkdir()
    write_weights(weights, matrices, SPEC, layers=going.files, folder=tmp_path / "quantized", advance=lambda _: None)
    write_decoded(weights, matrices, SPEC, quantized=tmp_path / "quantized", folder=decoded, dtype="float32")
    (decoded / "config.json").write_text((Path(base.folder) / "config.json").read_text())
    before, after = whole(base.folder, TEXTS), whole(decoded, TEXTS)
    count = sum(map(len, before))
    kl = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(before, after, strict=True)) / count
    targets = [torch.tensor(text[1:])[:, None] for text in TEXTS if len(text) > 1]
    nll = [-sum(float(p.gather(1, t).sum()) for p, t in zip(rows, targets, strict=True)) for rows in (before, after)]
    assert (seen.documents, seen.tokens) == (3, count)
    assert kl > 1e-7
    assert seen.kl == pytest.approx(kl, rel=1e-3, abs=1e-7)
    assert seen.perplexity == pytest.approx(math.exp(nll[0] / count), rel=1e-4)
    assert seen.quantized_perplexity == pytest.approx(math.exp(nll[1] / count), rel=1e-4)
    assert (
        seen.top1 == sum(int((p.argmax(-1) == q.argmax(-1)).sum()) for p, q in zip(before, after, strict=True)) / count
    )


def test_matrices_are_told_what_enters_them_now_and_what_did_before(tmp_path, monkeypatch):
    """The moments of every matrix, without padding, against whole models: the base, and what became of it so far."""
    base = write_base(tmp_path / "base", LLAMA, random_tensors(LLAMA))
    told = {}
    quantize = layerwise.gptq.gptq

    def noting(weight, scale, moments, spec, *, name, cross):
        told[name] = (moments.clone(), cross.clone())
        return quantize(weight, scale, moments, spec, name=name, cross=cross)

    monkeypatch.setattr(layerwise.gptq, "gptq", noting)
    going, *_ = run(base.folder, LLAMA, tmp_path / "kept", calibration=TEXTS)
    models = [load_causal_lm(base.folder, dtype=torch.float32, own_code=False) for _ in range(2)]
    became = {name: tensor for file in going.files for name, tensor in load_file(file).items()}
    _, _, matrices = opened(base.folder, LLAMA)
    order = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    order += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    for name in [f"model.layers.{number}.{part}" for number in range(5) for part in order]:
        rows = ([], [])
        for model, seen in zip(models, rows, strict=True):
            with model.get_submodule(name).register_forward_pre_hook(
                lambda _, given, seen=seen: seen.append(given[0][0])
            ):
                for text in TEXTS:
                    with torch.inference_mode():
                        model(torch.tensor([text]))
        before, now = map(torch.cat, rows)
        moments, cross = told[f"{name}.weight"]
        torch.testing.assert_close(moments, now.T @ now, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(cross, before.T @ now, rtol=1e-3, atol=1e-3)
        decoded = decode(became, SPEC, module=matrices[f"{name}.weight"].module, dtype=torch.float32)
        models[1].get_submodule(name).weight.data = decoded


def test_a_run_that_was_stopped_goes_on_behind_its_last_layer(tmp_path, monkeypatch):
    base = write_base(tmp_path / "base", LLAMA, random_tensors(LLAMA))
    straight, expected, *_ = run(base.folder, LLAMA, tmp_path / "straight", calibration=TEXTS)
    quantize, done = LayerPass._quantize, []

    def stopped(self, number, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(number)
        quantize(self, number, *rest)

    monkeypatch.setattr(LayerPass, "_quantize", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(base.folder, LLAMA, tmp_path / "kept", calibration=TEXTS)
    monkeypatch.setattr(LayerPass, "_quantize", lambda *a: (done.append(a[1]), quantize(*a)))
    notes = []
    again, seen, *_ = run(base.folder, LLAMA, tmp_path / "kept", calibration=TEXTS, notes=notes)
    assert notes == ["2 of 5 layers were quantized by an earlier run"]
    assert done == [0, 1, 2, 3, 4]
    assert seen == expected
    for one, other in zip(straight.files, again.files, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_everything_else_is_as_it_was_in_the_shards_that_it_was_in(tmp_path):
    base = write_base(tmp_path / "base", LLAMA, random_tensors(LLAMA, dtype=torch.bfloat16), shards=3)
    spec = QuantizationSpec(scheme="fp8", method="rtn")
    going, _, weights, matrices = run(base.folder, LLAMA, tmp_path / "kept", spec=spec)
    out = tmp_path / "out"
    out.mkdir()
    written = []
    write_weights(weights, matrices, spec, layers=going.files, folder=out, advance=written.append)
    assert sum(written) == open_weights(out).size()
    for shard in weights.shards:
        before, after = load_file(shard.path), load_file(out / shard.path.name)
        others = {name for name in before if name not in matrices}
        assert others == {name for name in after if name in before and name not in matrices}
        for name in others:
            assert torch.equal(before[name].view(torch.int16), after[name].view(torch.int16))
        for _, tensor in open_weights(out):
            assert tensor.begin % {"F8_E4M3": 1, "BF16": 2}[tensor.dtype] == 0
    assert open_weights(out).index_metadata["total_size"] == open_weights(out).size()
    assert not (out / SINGLE_NAME).exists()
