"""Make the bases, and of each the folders that hubprune publishes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from cases import FEW
from kinds import END, Drop, Kind
from safetensors.torch import load_file, save_file
from tokenizers_of import write_words
from transformers import AutoConfig, AutoModelForCausalLM

from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import BaseCheckpoint, DroppedSublayer, DropPlan
from hubprune.pruning.checkpoint import write_checkpoint
from hubprune.pruning.tokenizer_files import TEXTS, load_tokenizer, token_ids

WEIGHTS = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def make_folders(kinds: list[Kind], root: Path) -> Path:
    """Write bases and published folders below a folder, and return the file that lists them for `inside.py`."""
    cases = [case for kind in kinds for case in _cases(kind, root / kind.label)]
    path = root / "cases.json"
    path.write_text(json.dumps(cases, indent=1))
    return path


def _cases(kind: Kind, folder: Path) -> list[dict]:
    base = write_base(kind, folder / f"{kind.label}-base")
    return [_case(kind, base, name, drop, folder) for name, drop in kind.drops.items()]


def _case(kind: Kind, base: BaseCheckpoint, name: str, drop: Drop, folder: Path) -> dict:
    plan = plan_of(kind, drop)
    # transformers names the copied code after the folder: each needs a name of its own.
    published = folder / f"{kind.label}-{name.replace(' ', '-')}"
    if drop == Drop():
        published = Path(base.folder)
    else:
        published.mkdir()
        write_checkpoint(base, plan, published, advance=lambda _: None)
        narrow(published, plan, drop, width=kind.config["intermediate_size"])
    layers = kind.config["num_hidden_layers"]
    return {
        "kind": kind.label, "drops": name, "folder": str(published), "base": base.folder,
        "trust": "auto_map" in json.loads((published / "config.json").read_text()),
        "zeroed": outputs(kind, drop), "narrowed": narrowed(kind, drop),
        "cached": [layer for layer in range(layers) if layer not in drop.attn],
        "slots": used_slots(kind, plan), "layers": layers,
        "saved": saved_again(published) if drop.attn and name in FEW and not kind.words else "",
        "texts": TEXTS, "ids": token_ids(load_tokenizer(base.folder)), "for_words": kind.words is not None,
    }  # fmt: skip


def saved_again(folder: Path) -> str:
    """Save a published folder with the transformers of this process, the newest, as somebody who trained it would."""
    again = folder.with_name(f"{folder.name}-saved")
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).save_pretrained(again)
    return str(again)


def plan_of(kind: Kind, drop: Drop) -> DropPlan:
    """Return the plan that drops it by hand."""
    dropped = [DroppedSublayer(kind="attn", layer=layer) for layer in drop.attn]
    dropped += [DroppedSublayer(kind="mlp", layer=layer) for layer in drop.mlp]
    return DropPlan(
        selected_by="hand",
        num_hidden_layers=kind.config["num_hidden_layers"],
        dropped=tuple(dropped),
        layout=kind.layout if dropped else "stock",
    )


def used_slots(kind: Kind, plan: DropPlan) -> int:
    """Return how many slots a cache has up to the last that is used: attentions of a kind take that kind's first."""
    kinds = architecture_of(kind.config).attention_kinds(kind.config)
    published, gone = [kinds[layer] for layer in plan.published_numbers], plan.published_layers("attn")
    left = [one for layer, one in enumerate(published) if layer not in gone]
    return 1 + max([i for i, one in enumerate(published) if one == this][left.count(this) - 1] for this in set(left))


def outputs(kind: Kind, drop: Drop) -> list[str]:
    """Name the projections of the base that write what is dropped into the residual stream."""
    family = architecture_of(kind.config)
    attn = [f"{family.layers_prefix}{layer}.{family.attn_output}" for layer in drop.attn]
    return attn + [f"{family.layers_prefix}{layer}.{family.mlp_output}" for layer in drop.mlp]


def narrowed(kind: Kind, drop: Drop) -> list[tuple[str, int]]:
    """Name the MLPs' output projections that lose neurons, with what they keep."""
    family = architecture_of(kind.config)
    return [(f"{family.layers_prefix}{layer}.{family.mlp_output}", width) for layer, width in drop.widths.items()]


def write_base(kind: Kind, folder: Path) -> BaseCheckpoint:
    """Write a base with a config.json as published ones have it, random weights, and a tokenizer of bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(kind.config, indent=2))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    save_file(random_weights(model), folder / WEIGHTS, metadata={"format": "pt"})
    if kind.words:
        write_words(kind.words, folder)
    else:
        write_tokenizer(folder)
    return BaseCheckpoint(name="tiny", commit=None, folder=str(folder), config=dict(kind.config), files=())


def random_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return weights with which every sublayer says something: an untrained model's hardly do."""
    made, weights = torch.Generator().manual_seed(0), {}
    tied = HEAD if model.config.tie_word_embeddings else None
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=made)
        # Norms stay near what they start as, which is one or, in some families, zero.
        weights[name] = tensor + noise / 10 if tensor.dim() == 1 else noise / math.sqrt(tensor.shape[-1])
    # A logit of zero is never the largest: no row ends before it has said as much as it may.
    weights[EMBEDDING if tied else HEAD][END] = 0
    weights.pop(tied, None)
    return weights


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose tokens are the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {char: number for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n')


def narrow(folder: Path, plan: DropPlan, drop: Drop, *, width: int) -> None:
    """Keep the first neurons of some MLPs of a published folder, and say so in its config.json."""
    if not drop.widths:
        return
    config, numbers = json.loads((folder / "config.json").read_text()), plan.published_numbers
    widths = [0 if i in drop.mlp else drop.widths.get(i, width) for i in numbers]
    tensors = load_file(folder / WEIGHTS)
    for layer, kept in drop.widths.items():
        prefix = f"model.layers.{numbers[layer]}.mlp"
        for name in ("gate_proj", "up_proj"):
            tensors[f"{prefix}.{name}.weight"] = tensors[f"{prefix}.{name}.weight"][:kept].clone()
        tensors[f"{prefix}.down_proj.weight"] = tensors[f"{prefix}.down_proj.weight"][:, :kept].clone()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for block, kept in zip(config.get("block_configs", ()), widths, strict=False):
        block["ffn"]["ffn_mult"] = 1.5 * kept / config["hidden_size"] if kept else None
    said = {} if "block_configs" in config else {"mlp_intermediate_sizes": widths}
    (folder / "config.json").write_text(json.dumps({**config, **said}, indent=2))
