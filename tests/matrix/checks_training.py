"""Checks of training: gradients, gradient checkpointing, LoRA, heads for classification."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cases import FEW, AbsentError, Case, MismatchError, check, close, prompt, same
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

IDS = prompt()


@check("training step lowers the loss", drops=FEW)
def trained(case: Case) -> None:
    model, reference = case.load().train(), case.reference().train()
    before = _gradients(model)
    _gradients(reference)
    # The way back to the embedding leads through every layer.
    mine, theirs = (one.get_input_embeddings().weight.grad for one in (model, reference))
    close(mine, theirs, "gradient of the embedding")
    _step(model)
    _lower(_loss(model), before)


@check("gradient checkpointing, reentrant", drops=FEW)
def reentrant(case: Case) -> None:
    _checkpointed(case, use_reentrant=True)


@check("gradient checkpointing, not reentrant", drops=FEW)
def not_reentrant(case: Case) -> None:
    _checkpointed(case, use_reentrant=False)


def _checkpointed(case: Case, *, use_reentrant: bool) -> None:
    plain, model = case.load().train(), case.load().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    same(model.is_gradient_checkpointing, True, "checkpointing")
    before = _gradients(model)
    _gradients(plain)
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        close(mine.grad, theirs.grad, f"gradient of {name}")
    _step(model)
    _lower(_loss(model), before)


def _loss(model: Any) -> Any:
    return model(IDS, labels=IDS).loss


def _gradients(model: Any) -> float:
    loss = _loss(model)
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    same(without, [], "parameters without a gradient")
    return float(loss)


def _step(model: Any) -> None:
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01).step()


def _lower(after: Any, before: float) -> None:
    if not float(after) < before:
        raise MismatchError(f"loss {float(after):.4f} after a step, {before:.4f} before")


@check("LoRA, all-linear", drops=FEW)
def lora_everywhere(case: Case) -> None:
    _lora(case, "all-linear")


@check("LoRA, named modules", drops=FEW)
def lora_named(case: Case) -> None:
    _lora(case, ["o_proj", "down_proj"])


def _lora(case: Case, target_modules: Any) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    options = LoraConfig(target_modules=target_modules, task_type="CAUSAL_LM", r=4, lora_dropout=0.0)
    model = get_peft_model(case.load(), options).train()
    before = _gradients(model)
    _step(model)
    _lower(_loss(model), before)
    model.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        expected = model(IDS).logits
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(case.load(), folder).eval()
        close(again(IDS).logits, expected, "logits after loading the adapter")
        merged = again.merge_and_unload()
        close(merged(IDS).logits, expected, "logits after merging", tolerance=1e-3)
        same(any("lora" in name for name, _ in merged.named_parameters()), False, "adapters are left")
        merged.save_pretrained(f"{folder}/merged")
        found = replace(case, folder=f"{folder}/merged", zeroed=(), narrowed=()).load()
        close(found(IDS).logits, merged(IDS).logits, "logits after saving and loading what was merged", tolerance=0)


@check("heads for classification", drops=FEW)
def classified(case: Case) -> None:
    padded = IDS.repeat(2, 1)
    padded[1, -6:] = 0
    batch = {"input_ids": padded, "attention_mask": (padded != 0).long()}
    for auto, labels in (
        (AutoModelForSequenceClassification, torch.tensor([0, 2])),
        (AutoModelForTokenClassification, padded % 3),
    ):
        options = {"num_labels": 3, "pad_token_id": 0}
        try:
            reference = case.reference(auto, **options)
        except ValueError as error:
            raise AbsentError(f"the family has no {auto.__name__}") from error
        named = json.loads(Path(case.folder, "config.json").read_text()).get("auto_map")
        if named and auto.__name__ not in named:
            continue  # not every transformers that the file runs in has one, so it has none
        model = case.load(auto, **options)
        model.score.load_state_dict(reference.score.state_dict())  # it is not in the files, and random
        found, expected = model(**batch, labels=labels), reference(**batch, labels=labels)
        close(found.logits, expected.logits, f"logits of {auto.__name__}")
        close(found.loss, expected.loss, f"loss of {auto.__name__}")
        found.loss.backward()
        same([name for name, one in model.named_parameters() if one.grad is None], [], "parameters without a gradient")
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            again = replace(case, folder=folder).load(auto)
            close(again(**batch).logits, found.logits, f"logits of {auto.__name__}, saved and loaded", tolerance=0)
