"""A healed folder: trained matrices are new, all else is the base's, and whatever cannot be healed says so at once."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import partial

import pytest
from bases import LLAMA, write_base
from safetensors.torch import load_file

from hubprune.core.console import Reporter
from hubprune.core.errors import (
    BaseNotFoundError,
    CalibrationError,
    EvaluationError,
    HealingError,
    HubpruneError,
    RecipeError,
    VerificationError,
)
from hubprune.core.requests import HealRequest, PruneRequest, VerifyRequest
from hubprune.healing import training
from hubprune.pruning import loading, verify
from hubprune.workflows import heal as workflow
from hubprune.workflows import healed
from hubprune.workflows import prune as pruning
from hubprune.workflows import verify as checking
from hubprune.workflows.heal import training as heals


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, a pruned folder of it, and documents."""
    folder = tmp_path_factory.mktemp("patient")
    write_base(folder / "base", LLAMA)
    rows = [{"text": " ".join(f"word{(n * k) % 17}" for k in range(3 + n % 4))} for n in range(1, 60)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def in_process(monkeypatch, tmp_path):
    """Compare in this process, and keep nothing elsewhere."""
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(verify, "NEW_TOKENS", 2)
    monkeypatch.setattr(
        verify, "_in_fresh_process", lambda action, request, answer, **_: loading._ACTIONS[action][1](request)
    )


@pytest.fixture
def pruned(place, tmp_path):
    out = tmp_path / "pruned"
    pruning.prune(PruneRequest(str(place / "base"), out=out, attn_layers=(1, 3)), reporter=Reporter(quiet=True))
    return out


def heal(place, pruned, out, **options):
    asked = {"steps": 4, "held_out": 6, "base": str(place / "base"), "data": str(place / "texts.jsonl"), **options}
    return workflow.heal(HealRequest(str(pruned), out=out, **asked), reporter=Reporter(quiet=True))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_was_trained_is_new_and_all_else_is_as_it_was(place, pruned, tmp_path, method):
    done = heal(place, pruned, tmp_path / "healed", method=method)
    before, after = (load_file(folder / "model.safetensors") for folder in (pruned, tmp_path / "healed"))
    assert list(before) == list(after)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert done.record.steps == 4
    assert done.record.shares_weights == (method == "lora")
    if method == "lora":
        assert changed == {name for name in before if ".layers." in name and before[name].dim() == 2}
    else:
        assert "model.norm.weight" in changed
    for path in pruned.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            assert (tmp_path / "healed" / path.name).read_bytes() == path.read_bytes()
    one, other = (json.loads((folder / "config.json").read_text()) for folder in (pruned, tmp_path / "healed"))
    assert other.pop("hubprune") == {**one.pop("hubprune"), "healed": method}
    assert one == other
    kept = json.loads((tmp_path / "healed" / healed.RECORD).read_text())
    assert kept["curve"][-1]["held_out"] == done.record.after.model_dump()
    assert kept["data"]["mix"] == "texts.jsonl"
    seen = checking.check(
        VerifyRequest(str(tmp_path / "healed"), base=str(place / "base")), reporter=Reporter(quiet=True)
    )
    assert all(check.passed for check in seen.checks)
    told = "untrained tensors are the base's" if method == "lora" else "tensors are those that were trained"
    assert any(check.name.startswith(told) for check in seen.checks)


def test_verification_finds_what_no_training_changes(place, pruned, tmp_path):
    from safetensors.torch import save_file

    out = tmp_path / "healed"
    heal(place, pruned, out)
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"] += 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    seen = checking.check(VerifyRequest(str(out), base=str(place / "base")), reporter=Reporter(quiet=True))
    failed = {check.name for check in seen.checks if not check.passed}
    assert "untrained tensors are the base's, byte for byte" in failed


def test_a_healing_that_was_interrupted_goes_on(place, pruned, tmp_path, monkeypatch):
    whole = heal(place, pruned, tmp_path / "whole")
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "another"))
    stop = training.end_if_interrupted
    steps = iter(range(100))

    def interrupt():
        if next(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "end_if_interrupted", interrupt)
    with pytest.raises(KeyboardInterrupt):
        heal(place, pruned, tmp_path / "healed")
    assert not (tmp_path / "healed").exists()
    monkeypatch.setattr(training, "end_if_interrupted", stop)
    again = heal(place, pruned, tmp_path / "healed")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "healed")]
    assert weights[0] == weights[1]
    assert again.record.curve == whole.record.curve


def test_minutes_are_as_many_steps_when_it_goes_on_and_no_checkpoint_is_left_at_the_end(
    place, pruned, tmp_path, monkeypatch
):
    def healed(out):
        return heal(place, pruned, tmp_path / out, steps=None, minutes=0.1).record

    monkeypatch.setattr(training, "seconds_per_step", lambda *_: 2.0)
    first = healed("first")
    monkeypatch.setattr(training, "seconds_per_step", lambda *_: 1.0)
    assert first.planned_steps == healed("again").planned_steps == 3
    assert list((tmp_path / "home" / "healing").iterdir()) == []
    assert first.seconds > 0


def test_a_step_that_processes_cannot_share_is_refused_with_one_that_they_can(place, pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "world_size", lambda: 3)
    with pytest.raises(RecipeError, match="no equal parts for 3 processes") as caught:
        heal(place, pruned, tmp_path / "healed")
    assert "--batch-size 9" in str(caught.value.hint)


def test_documents_that_were_held_out_are_not_trained_on(place, pruned, tmp_path):
    done = heal(place, pruned, tmp_path / "healed", steps=20)
    record = done.record
    assert record.held_out_documents == 6
    assert record.data.documents == 59 - 6


# ---- what cannot be healed -------------------------------------------------------------------------------------------


def without(folder, copy, **keys):
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config["hubprune"].update(keys.pop("hubprune", {}))
    (copy / "config.json").write_text(json.dumps({**config, **keys}))
    return copy


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "Heal the checkpoint that it was made of"),
        ({"hubprune": {"healed": "lora"}}, "with more --steps"),
    ],
    ids=["quantized", "healed before"],
)
def test_what_cannot_be_trained_is_refused_with_what_to_do(place, pruned, tmp_path, keys, told):
    with pytest.raises(HubpruneError) as caught:
        heal(place, without(pruned, tmp_path / "other", **keys), tmp_path / "healed")
    assert told in str(caught.value.hint)
    assert not (tmp_path / "healed").exists()


BAD = {
    "adapters of all weights": ({"method": "full", "adapter": "x"}, RecipeError, "--adapter is for --method lora"),
    "two amounts": ({"tokens": 100}, RecipeError, "--steps and --tokens exclude each other"),
    "no such method": ({"method": "magic"}, RecipeError, "There is no --method"),
    "no such loss": ({"loss": "magic"}, RecipeError, "There is no --loss"),
    "no such mix": ({"data": "magic"}, RecipeError, "There is no calibration mix"),
    "no such file": ({"data": "magic.jsonl"}, RecipeError, "does not exist"),
    "no such benchmark": ({"tasks": "no_such_task"}, EvaluationError, "There is no benchmark"),
    "no such base": ({"base": None}, BaseNotFoundError, "Its base was the local folder"),
}


@pytest.mark.parametrize(("options", "kind", "told"), BAD.values(), ids=BAD)
def test_bad_options_are_one_error_and_leave_nothing(place, pruned, tmp_path, options, kind, told):
    with pytest.raises(kind, match=told):
        heal(place, pruned, tmp_path / "healed", **options)
    assert not (tmp_path / "healed").exists()


def test_texts_without_a_text_column_are_named_with_the_columns_that_there_are(place, pruned, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"words": "a b c"}\n{"words": "d e f"}\n')
    with pytest.raises(CalibrationError, match="has no text column 'text'") as caught:
        heal(place, pruned, tmp_path / "healed", data=str(tmp_path / "rows.jsonl"))
    assert "words" in str(caught.value.hint)


def test_too_little_memory_is_told_before_anything_is_loaded(place, pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(heals, "available_bytes", lambda: 1000)
    with pytest.raises(HealingError, match="are free"):
        heal(place, pruned, tmp_path / "healed")


def test_a_loss_that_is_no_number_leaves_no_folder(place, pruned, tmp_path):
    with pytest.raises(HubpruneError, match="is nan"):
        heal(place, pruned, tmp_path / "healed", learning_rate=1e38, steps=30)
    assert not (tmp_path / "healed").exists()


def test_a_foreign_modeling_file_is_never_run(place, pruned, tmp_path):
    [code] = pruned.glob("modeling_*.py")
    code.write_text(code.read_text() + "\nx = 1\n")
    with pytest.raises(VerificationError, match="would not write"):
        heal(place, pruned, tmp_path / "healed")


# ---- the adapters alone ----------------------------------------------------------------------------------------------


MOVED = {"attn_layers": (0,), "mlp_layers": (0, 2)}


@pytest.mark.parametrize("gone", [{"attn_layers": (1, 3)}, MOVED], ids=["layers stay", "layers move"])
def test_peft_puts_the_adapters_on_the_pruned_folder_which_then_computes_as_the_merged_one(place, tmp_path, gone):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    pruned = tmp_path / "pruned"
    pruning.prune(PruneRequest(str(place / "base"), out=pruned, **gone), reporter=Reporter(quiet=True))
    heal(place, pruned, tmp_path / "healed", adapter=tmp_path / "adapter", learning_rate=0.01)
    load = partial(AutoModelForCausalLM.from_pretrained, trust_remote_code=True, dtype=torch.float32)
    before, merged = load(pruned).eval(), load(tmp_path / "healed").eval()
    ids = torch.arange(3, 15).reshape(2, 6)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing adapter keys|unexpected keys).*")
        known, plain = merged(ids).logits, before(ids).logits
        told = PeftModel.from_pretrained(before, tmp_path / "adapter").eval()(ids).logits
    assert (plain - known).abs().max() > 1e-3
    assert (told - known).abs().max() < 1e-5


def test_all_linear_finds_the_matrices_that_are_left(place, pruned):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(pruned, trust_remote_code=True)
    names = {n for n, m in model.named_modules() if "layers" in n and type(m).__name__ == "Linear"}
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    assert {*adapted.targeted_module_names} == names
