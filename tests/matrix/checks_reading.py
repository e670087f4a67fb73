"""Checks of loading, saving and everything that is built on the Auto classes."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from cases import DTYPE, FEW, AbsentError, Case, MismatchError, check, close, greedy, prompt, same
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

IDS = prompt()
TEXT = "Paris is the capital of"
CHAT = [
    {"role": "user", "content": " How old is 2024? "},
    {"role": "assistant", "content": "Old."},
    {"role": "user", "content": "So?"},
]
LAYER_KEYS = ("dropped_attn_layers", "dropped_mlp_layers", "mlp_intermediate_sizes", "block_configs")
NUMBERED = ("dropped_attn_layers", "dropped_mlp_layers")


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


@check("too old: the version that it takes is named", drops=("first",), older=True)
def too_old(case: Case) -> None:
    try:
        case.load()
    except ImportError as error:
        if "needs transformers>=4." in str(error) and f"found {transformers.__version__}." in str(error):
            return
        raise MismatchError(f"it says: {error}") from error
    raise MismatchError("it loads")


@check("a wrong key in config.json is named", drops=("joint",))
def misspelled(case: Case) -> None:
    if not case.trust:
        return
    config = json.loads((Path(case.folder) / "config.json").read_text())
    for key in filter(config.__contains__, LAYER_KEYS):
        _refused_by_name(case, {key.upper() if name == key else name: value for name, value in config.items()}, key)


@check("a layer number out of range is named", drops=("joint",))
def out_of_range(case: Case) -> None:
    if not case.trust:
        return
    config = json.loads((Path(case.folder) / "config.json").read_text())
    for key in filter(config.__contains__, NUMBERED):
        _refused_by_name(case, {**config, key: [config["num_hidden_layers"]]}, key)
    if blocks := config.get("block_configs"):  # numbered by their order: one too many
        _refused_by_name(case, {**config, "block_configs": [*blocks, blocks[0]]}, "block_configs")


def _refused_by_name(case: Case, config: dict[str, Any], key: str) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(shutil.copytree(case.folder, Path(parent) / "changed"))
        (folder / "config.json").write_text(json.dumps(config))
        try:
            AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        except ValueError as error:
            same((str(error)[:12], key in str(error)), ("config.json:", True), f"the key in the error for {key}")
            return
    raise MismatchError(f"it loads with a wrong {key}")


@check("AutoTokenizer without trust", drops=FEW)
def tokenizer(case: Case) -> None:
    found = AutoTokenizer.from_pretrained(case.folder, trust_remote_code=False)
    same(found.decode(found(TEXT).input_ids), TEXT, "text")
    same(found(TEXT).input_ids, AutoTokenizer.from_pretrained(case.base)(TEXT).input_ids, "tokens")


@check("token ids of the base", of_words=True)
def token_ids(case: Case) -> None:
    """Both as their readers load them, with and without trust in the code.

    What transformers 4 cannot read since transformers 5 saved it, the result lets it read, with the newest's ids.
    """
    newest = [list(ids) for ids in case.ids]
    try:
        base = AutoTokenizer.from_pretrained(case.base)
    except Exception:  # it raises whatever comes of keys that it does not know
        base = None
    expected = newest if base is None else _ids(base, case.texts)
    for trust in {False, case.trust}:
        found = AutoTokenizer.from_pretrained(case.folder, trust_remote_code=trust)
        ids = _ids(found, case.texts)
        if expected != newest and (ids == newest or case.folder == case.base):
            # Some versions read the base itself otherwise than those before and after them.
            raise AbsentError("the base's own tokenizer has other ids here than with the newest transformers")
        for text, row, other in zip((*case.texts, *case.texts, "a chat"), ids, expected, strict=False):
            same(row, other, repr(text))
        same(len(ids), len(expected), "texts")
        if base is not None:
            same(sorted(found(TEXT)), sorted(base(TEXT)), "inputs")


def _ids(words: Any, texts: tuple[str, ...]) -> list[list[int]]:
    special = {"bos": words.bos_token or "", "eos": words.eos_token or ""}
    filled = [text.replace("{bos}", special["bos"]).replace("{eos}", special["eos"]) for text in texts]
    found = [list(words(text, add_special_tokens=added).input_ids) for added in (True, False) for text in filled]
    if words.chat_template:
        chat = words.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
        found.append(list(words(chat, add_special_tokens=False).input_ids))
    return found


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


@check("saved by the newest, loaded here", drops=FEW)
@torch.no_grad()
def saved_by_newest(case: Case) -> None:
    if not case.saved:
        return
    model, expected = replace(case, folder=case.saved).load(), case.reference()
    close(model(IDS).logits, expected(IDS).logits, "logits")
    same(greedy(model, IDS), greedy(expected, IDS, use_cache=False), "greedy")


@check("device_map auto, disk offload", drops=FEW)
@torch.no_grad()
def offloaded(case: Case) -> None:
    whole = sum(parameter.numel() * parameter.element_size() for parameter in case.load().parameters())
    with tempfile.TemporaryDirectory() as offload:
        model = case.load(device_map="auto", max_memory={"cpu": whole * 4 // 5}, offload_folder=offload)
        same({str(device) for device in model.hf_device_map.values()}, {"cpu", "disk"}, "devices")
        close(model(IDS).logits, case.reference()(IDS).logits, "logits")
        same(greedy(model, IDS), greedy(case.reference(), IDS, use_cache=False), "greedy")
