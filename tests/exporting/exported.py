"""Checkpoints to export, and a short way to export them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from bases import LLAMA, plan, random_tensors, write_base, write_tensors
from safetensors.torch import load_file

from hubprune.core.console import Reporter
from hubprune.core.requests import ExportRequest
from hubprune.hub.session import HubSession
from hubprune.pruning.checkpoint import write_checkpoint
from hubprune.workflows.export import export_gguf

SESSION = HubSession(endpoint="http://127.0.0.1:9")
LAYERS = LLAMA["num_hidden_layers"]
DROPS = {
    "full": {},
    "attention in the middle": {"attn": [2]},
    "attention of the first": {"attn": [0]},
    "attention of the last": {"attn": [4]},
    "attention of the first two": {"attn": [0, 1]},
    "MLP in the middle": {"mlp": [2]},
    "MLP of the first": {"mlp": [0]},
    "MLP of the last": {"mlp": [4]},
    "both kinds": {"attn": [1, 4], "mlp": [0, 3]},
    "a block": {"attn": [2], "mlp": [2]},
    "the first block and the next attention": {"attn": [0, 1], "mlp": [0]},
    "all but one attention": {"attn": [0, 1, 3, 4]},
}
"""Drop sets of a base of five layers."""


def export(folder, out, **options):
    """Export without a word."""
    request = ExportRequest(str(folder), out=out, **options)
    return export_gguf(request, session=SESSION, reporter=Reporter(quiet=True))


def pruned(base, folder, **drops):
    """Write a pruned checkpoint of a base."""
    folder.mkdir(parents=True)
    write_checkpoint(base, plan(base.config["num_hidden_layers"], **drops), folder, advance=lambda _: None)
    return folder


def with_widths(base, folder, widths):
    """Write a checkpoint with MLPs of the given widths, cut from a base; 0 leaves one out."""
    tensors = load_file(Path(base.folder) / "model.safetensors")
    for layer, width in enumerate(widths):
        for part in ("gate", "up", "down"):
            name = f"model.layers.{layer}.mlp.{part}_proj.weight"
            tensors[name] = (tensors[name][:, :width] if part == "down" else tensors[name][:width]).contiguous()
        if not width:
            gone = (f"model.layers.{layer}.mlp.", f"model.layers.{layer}.post_")
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(gone)}
    missing = [layer for layer, width in enumerate(widths) if not width]
    config = {
        **base.config,
        "model_type": f"pruned_{base.config['model_type']}",
        "intermediate_size": None,
        "mlp_intermediate_sizes": list(widths),
        "dropped_attn_layers": [],
        "dropped_mlp_layers": missing,
    }
    shutil.copytree(base.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "config.json").write_text(json.dumps(config))
    write_tensors(folder, tensors)
    return folder


def base(folder, make=random_tensors, **changes):
    """Write a random Llama with some keys of its config.json changed, or left out where they are None."""
    config = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}
    tensors = make(config)
    if "head_dim" in changes:
        resize_heads(tensors, config)
    return write_base(folder, config, tensors)


def resize_heads(tensors, config):
    """Replace the attentions' matrices by ones for heads of any size."""
    made = torch.Generator().manual_seed(2)
    size, heads = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"q_proj": (heads, size), "k_proj": (kv, size), "v_proj": (kv, size), "o_proj": (size, heads)}
    for name in list(tensors):
        if shape := shapes.get(name.split(".")[-2]):
            tensors[name] = torch.randn(shape, generator=made) / shape[1] ** 0.5


def nemotron_nas(base, folder, **drops):
    """Write a pruned checkpoint of a base in the layout that other runtimes read."""
    folder.mkdir(parents=True)
    made = plan(base.config["num_hidden_layers"], **drops).model_copy(update={"layout": "nemotron-nas"})
    write_checkpoint(base, made, folder, advance=lambda _: None)
    return folder


def biased(config, *, seed=1):
    """Random weights with a bias at every projection."""
    made, tensors = torch.Generator().manual_seed(seed), random_tensors(config)
    for name in [n for n in tensors if "_proj.weight" in n]:
        tensors[name.replace(".weight", ".bias")] = torch.randn(tensors[name].shape[0], generator=made) / 5
    return tensors
