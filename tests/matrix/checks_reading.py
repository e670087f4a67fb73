"""Checks of loading, saving and everything that is built on the Auto classes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from cases import DTYPE, FEW, AbsentError, Case, MismatchError, check, close, greedy, prompt, same
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

IDS = prompt()
TEXT = "Paris is the capital of"
LAYER_KEYS = ("dropped_attn_layers", "dropped_mlp_layers", "mlp_intermediate_sizes", "block_configs")


@check("load: no missing or unexpected keys")
def loaded(case: Case) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(
        case.folder, trust_remote_code=case.trust, output_loading_info=True, **{DTYPE: torch.float32}
    )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        same(sorted(map(str, info[key])), [], key)
    same({str(parameter.device) for parameter in model.parameters()}, {"cpu"}, "devices")


@check("loud failure without trust")
def refused(case: Case) -> None:
    if not case.trust:
        return
    for auto in (AutoConfig, AutoModel, AutoModelForCausalLM):
        for options in ({}, {"trust_remote_code": False}):
            if not _raises(auto, case.folder, options):
                raise MismatchError(f"{auto.__name__} loads without trust ({options})")


def _raises(auto: Any, folder: str, options: dict[str, bool]) -> bool:
    try:
        auto.from_pretrained(folder, **options)
    except (ValueError, OSError, KeyError) as error:
        return "trust_remote_code" in str(error)
    return False


@check("stock class by its name fails", drops=FEW)
def called_by_name(case: Case) -> None:
    """The Auto classes refuse, but whoever names the class must not get random weights in the holes either."""
    if not case.trust:
        return
    stock = type(case.stock())
    with tempfile.TemporaryDirectory() as again:
        case.load().save_pretrained(again)
        for folder in (case.folder, again):
            try:
                stock.from_pretrained(folder)
            except Exception:
                continue
            raise MismatchError(f"{stock.__name__} loads {'the copy' if folder == again else 'it'}")


@check("AutoTokenizer without trust", drops=FEW)
def tokenizer(case: Case) -> None:
    found = AutoTokenizer.from_pretrained(case.folder, trust_remote_code=False)
    same(found.decode(found(TEXT).input_ids), TEXT, "text")
    same(found(TEXT).input_ids, AutoTokenizer.from_pretrained(case.base)(TEXT).input_ids, "tokens")


@check("AutoModel", drops=FEW)
@torch.no_grad()
def inner(case: Case) -> None:
    model, info = case.load(AutoModel, output_loading_info=True)
    if info["missing_keys"]:
        # Seen with Gemma 3 on 4.53, whose decoder looks for its weights under another prefix than they have.
        raise AbsentError("AutoModel does not find the weights that AutoModelForCausalLM finds")
    found = model(IDS).last_hidden_state
    close(found, case.reference().model(IDS).last_hidden_state, "hidden states")


@check("pipeline", drops=FEW)
def pipeline(case: Case) -> None:
    pipe = transformers.pipeline("text-generation", model=case.folder, trust_remote_code=case.trust)
    found = pipe(TEXT, do_sample=False, max_new_tokens=8)[0]["generated_text"]
    words = AutoTokenizer.from_pretrained(case.base)
    ids = words(TEXT, return_tensors="pt").input_ids
    new = greedy(case.reference(dtype=pipe.model.dtype), ids, max_new_tokens=8)[0]
    same(found, words.decode([*ids[0].tolist(), *new]), "text")


@check("save_pretrained, then load")
@torch.no_grad()
def round_trip(case: Case) -> None:
    model, before = case.load(), json.loads((Path(case.folder) / "config.json").read_text())
    with tempfile.TemporaryDirectory() as parent:
        again = Path(parent) / "again"
        model.save_pretrained(again)
        after = json.loads((again / "config.json").read_text())
        code = sorted(path.name for path in Path(case.folder).glob("*.py"))
        same(sorted(path.name for path in again.glob("*.py")), code, "code")
        for key in (
            "model_type",
            "architectures",
            "dropped_attn_layers",
            "dropped_mlp_layers",
            "mlp_intermediate_sizes",
        ):
            if key in before:
                same(after.get(key), before[key], key)
        same(sorted(after.get("auto_map", ())), sorted(before.get("auto_map", ())), "auto_map")
        found = AutoModelForCausalLM.from_pretrained(
            str(again), trust_remote_code=case.trust, **{DTYPE: torch.float32}
        ).eval()
        close(found(IDS).logits, model(IDS).logits, "logits", tolerance=0)


@check("device_map auto, disk offload", drops=FEW)
@torch.no_grad()
def offloaded(case: Case) -> None:
    whole = sum(parameter.numel() * parameter.element_size() for parameter in case.load().parameters())
    with tempfile.TemporaryDirectory() as offload:
        model = case.load(device_map="auto", max_memory={"cpu": whole * 4 // 5}, offload_folder=offload)
        same({str(device) for device in model.hf_device_map.values()}, {"cpu", "disk"}, "devices")
        close(model(IDS).logits, case.reference()(IDS).logits, "logits")
        same(greedy(model, IDS), greedy(case.reference(), IDS, use_cache=False), "greedy")
