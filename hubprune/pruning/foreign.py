"""Read what others wrote who pruned a model: its weights, and what config.json says of the layers of its base.

llm-drop   `drop_attn_list` and `drop_mlp_list` in config.json, layer numbers or one boolean per layer; the tensors of
           what was dropped are still in the files, and code in the repo skips them with their norms: of LLM-Drop, the
           code of arXiv:2406.15786
anymodel   `block_configs` beside a stock `model_type`: attention or MLP `no_op`, an MLP's own `intermediate_size`; of
           NVIDIA's ModelOpt (puzzletron), whose patcher takes norms out with their sublayers
fewer      a stock config.json with fewer layers or neurons than the base has, as optipfair, mergekit and hand-written
           scripts leave it: nothing says which ones they are, so `matching` finds them by their values

Code that such a repo ships is never run, and nothing but config.json and safetensors is read of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import AdoptedForm, SublayerKind
from hubprune.core.config import Structure
from hubprune.core.errors import CheckpointError, UnsupportedFormatError
from hubprune.core.strict import parse_json
from hubprune.core.weights import INDEX_NAME, Weights, open_weights, pickled_weights, read_shard

LISTS: Mapping[SublayerKind, str] = {"attn": "drop_attn_list", "mlp": "drop_mlp_list"}
BLOCKS = "block_configs"
LOOKED_FOR = (
    "Looked for: drop_attn_list or drop_mlp_list in config.json (LLM-Drop), block_configs with no_op or a narrower ffn "
    "(ModelOpt), and fewer layers or narrower MLPs than the base has (optipfair, mergekit)."
)
SHARD_PATH = re.compile(r"([\w.-]+/)?[\w.-]+\.safetensors", re.ASCII)
"""A shard, which ModelOpt puts one folder deeper."""
COMPUTES: Mapping[str, Any] = {
    "hidden_size": None, "num_attention_heads": None, "num_key_value_heads": None, "head_dim": None, "vocab_size": None,
    "rms_norm_eps": None, "hidden_act": None, "sliding_window": None, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
"""Keys of config.json that the same weights compute something else by, each with what its absence means, if known."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a config.json says of the layers of a base, in the base's numbers."""

    form: AdoptedForm
    no_attn: frozenset[int] = frozenset()
    no_mlp: frozenset[int] = frozenset()


def open_theirs(folder: Path) -> Weights:
    """Open the weights of a folder that another tool wrote, whose index may lead one folder deeper.

    Raises:
        UnsupportedFormatError: they are pickled, which is never opened.
        CheckpointError: a file is missing, broken or elsewhere.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        if not any(folder.glob("*.safetensors")) and (pickles := sorted(p.name for p in folder.glob("*.bin"))):
            raise pickled_weights(str(folder), pickles[0])
        return open_weights(folder)
    index = parse_json(path.read_bytes(), where=str(path))
    listed = index.get("weight_map")
    paths = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    if not any("/" in name for name in paths):
        return open_weights(folder)
    for name in paths:
        inside = SHARD_PATH.fullmatch(name) and (folder / name).resolve().is_relative_to(folder.resolve())
        if not inside or not (folder / name).is_file():
            raise CheckpointError(f"{path} names the shard {name!r}, which is not in its folder.")
    return Weights(folder, tuple(read_shard(folder / name) for name in paths), {})


def read_claims(config: Mapping[str, Any], base: Structure, base_config: Mapping[str, Any], *, name: str) -> Claims:
    """Read what a config.json says of the base's layers; `fewer` where it says nothing.

    Raises:
        CheckpointError: a list or block does not fit the layers.
        UnsupportedFormatError: a block is something else than Llama's, or absent.
    """
    layers = base.num_hidden_layers
    if any(config.get(key) for key in LISTS.values()):
        _require_all_layers(config, layers, name)
        listed = {kind: _dropped(config, key, layers, name) for kind, key in LISTS.items()}
        return Claims(form="llm-drop", no_attn=listed["attn"], no_mlp=listed["mlp"])
    blocks = config.get(BLOCKS)
    if blocks is None:
        return Claims(form="fewer")
    if not isinstance(blocks, list) or len(blocks) != config["num_hidden_layers"]:
        raise CheckpointError(
            f"config.json of {name}: {BLOCKS} does not hold one entry for each of its {config['num_hidden_layers']} "
            "layers."
        )
    _require_all_layers(config, layers, name)
    heads = base_config.get("num_key_value_heads") or base_config["num_attention_heads"]
    gone: dict[str, set[int]] = {"attention": set(), "ffn": set()}
    for layer, block in enumerate(blocks):
        for part in gone:
            if _is_absent(block, part, heads=heads, where=f"{BLOCKS}[{layer}] of {name}"):
                gone[part].add(layer)
    return Claims(form="anymodel", no_attn=frozenset(gone["attention"]), no_mlp=frozenset(gone["ffn"]))


def _require_all_layers(config: Mapping[str, Any], layers: int, name: str) -> None:
    if config["num_hidden_layers"] != layers:
        raise CheckpointError(
            f"config.json of {name} has {config['num_hidden_layers']} layers, and the base {layers}: what it says of "
            "layers by their numbers means nothing there.",
            hint="Name the base that it was made of with --base.",
        )


def _dropped(config: Mapping[str, Any], key: str, layers: int, name: str) -> frozenset[int]:
    """Read a list of layer numbers, or of one boolean per layer."""
    values = config.get(key) or []
    wrong = f"config.json of {name}: {key}={json.dumps(values)[:120]}"
    if not isinstance(values, list) or len({type(value) for value in values}) > 1:
        raise CheckpointError(f"{wrong} is neither a list of layers nor one of booleans.")
    if values and isinstance(values[0], bool):
        if len(values) != layers:
            raise CheckpointError(f"{wrong} has {len(values)} booleans, and the model {layers} layers.")
        return frozenset(layer for layer, dropped in enumerate(values) if dropped)
    if any(type(value) is not int or not 0 <= value < layers for value in values):
        raise CheckpointError(f"{wrong} names a layer that is not there: they are 0 to {layers - 1}.")
    return frozenset(values)


def _is_absent(block: Any, part: str, *, heads: int, where: str) -> bool:
    """Tell whether a sublayer is absent in a block; it is as in the base, but perhaps narrower, where it is not."""
    told = block.get(part) if isinstance(block, Mapping) else None
    if not isinstance(told, Mapping):
        raise CheckpointError(f"{where} says nothing of its {part}.")
    if told.get("no_op"):
        return True
    odd = [key for key in ("replace_with_linear", "sparsify", "mamba", "llama4", "moe") if told.get(key)]
    if block.get("parallel_blocks"):
        odd.append("parallel_blocks")
    if part == "attention" and told.get("num_key_value_heads") not in (None, heads):
        odd.append(f"num_key_value_heads={told['num_key_value_heads']!r:.20}")
    if odd:
        raise UnsupportedFormatError(
            f"{where} has an {part} with {odd[0]}, which hubprune does not write.",
            hint="Adopted are sublayers that are absent, and MLPs with fewer neurons.",
        )
    return False


def check_same_model(config: Mapping[str, Any], base: Mapping[str, Any], *, name: str, base_name: str) -> None:
    """Refuse a config.json by which the base's own weights would compute something else.

    Raises:
        CheckpointError: it is of another model, with the key that differs.
    """
    theirs, ours = (_computing(values) for values in (config, base))
    if wrong := [key for key in theirs.keys() & ours.keys() if theirs[key] != ours[key]]:
        key = min(wrong)
        raise CheckpointError(
            f"config.json of {name} has {key}={theirs[key]!r:.60}, and that of {base_name} {ours[key]!r:.60}.",
            hint="Name the base that it was made of with --base.",
        )


def _computing(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what counts of a config.json, however the version of transformers that wrote it spells it."""
    found = {key: config.get(key, absent) for key, absent in COMPUTES.items()}
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {key: value for key, value in rope.items() if key != "rope_theta"}
    found["model_type"], found["rope_theta"] = config["model_type"], config.get("rope_theta", rope.get("rope_theta"))
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, Mapping) else scaling
    found["rope_type"], found["factor"] = kind, scaling.get("factor") if isinstance(scaling, Mapping) else None
    return {key: value for key, value in found.items() if value is not None}
