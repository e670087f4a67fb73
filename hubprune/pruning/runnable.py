"""Make a base loadable: one that was pruned before needs a modeling file, and only our own is ever run.

What a pruned repo ships is foreign code, whoever published it.  So its weights are taken as they are, and config.json
and modeling file are written anew beside links to them, as this version of hubprune writes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import BaseCheckpoint
from hubprune.core.config import layout_keys, stock_config, write_json
from hubprune.core.files import staged_folder
from hubprune.core.structure import Structure, read_structure
from hubprune.core.weights import INDEX_NAME, Weights, open_weights
from hubprune.pruning import modeling
from hubprune.pruning.checkpoint import carry_files


@dataclass(frozen=True)
class Runnable:
    """A model folder, and whether the code in it may be run."""

    folder: Path
    own_code: bool = False
    """True where this version of hubprune wrote the folder's modeling file; False for folders without one."""
    tensor_names: Mapping[str, str | None] = field(default_factory=dict)
    """Name of a tensor in the files -> in the model, as in `BaseCheckpoint`."""

    def weights(self) -> Weights:
        """Open its weights as the model calls them, without what it does not use."""
        return open_weights(self.folder).used(self.tensor_names)

    def tokenizer(self) -> Any:
        """Load its tokenizer, which never runs code."""
        from transformers import AutoConfig, AutoTokenizer

        # With the config at hand, it does not look for one whose code it may not run, and complain.
        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=self.own_code)
        return AutoTokenizer.from_pretrained(self.folder, config=config, trust_remote_code=False)


def make_runnable(base: BaseCheckpoint, folder: Path) -> Runnable:
    """Return a folder that transformers can load a base from without running code that is not ours.

    Args:
        base: the base, downloaded.
        folder: where to write what a base that was pruned before needs; taken as it is where it exists.

    Raises:
        CheckpointError: its config.json does not say which sublayers it has, or its weights cannot be read.
    """
    source = Path(base.folder or "")
    structure = read_structure(base.config, name=base.name)
    if structure.layout == "stock":
        return Runnable(source, tensor_names=base.tensor_names)
    if not folder.is_dir() or not all(path.exists() for path in folder.rglob("*")):  # a link may have lost its target
        shutil.rmtree(folder, ignore_errors=True)
        with staged_folder(folder) as staged:
            carry_files(source, staged)
            link_model(base.config, structure, source, staged)
    return Runnable(folder, own_code=True, tensor_names=base.tensor_names)


def link_model(config: Mapping[str, Any], structure: Structure, source: Path, folder: Path) -> None:
    """Link a checkpoint's weights into a folder, beside a config.json and, where it needs one, a modeling file of ours.

    Raises:
        CheckpointError: its weights cannot be read.
    """
    for shard in open_weights(source).shards:
        (folder / shard.path.name).symlink_to(shard.path.resolve())
    if (source / INDEX_NAME).is_file():
        shutil.copyfile(source / INDEX_NAME, folder / INDEX_NAME)
    keys, family = stock_config(config, structure), structure.architecture
    if structure.layout != "stock":
        keys |= layout_keys("pruned", keys, structure)
        (folder / family.modeling_file("pruned")).write_text(modeling.render(family), encoding="utf-8")
    write_json(keys, folder)
