"""Decide, from a checkpoint's headers and small files alone, everything that its GGUF file will hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubprune.core.architectures import NEMOTRON_NAS, architecture_of
from hubprune.core.config import CONFIG_NAME
from hubprune.core.errors import CheckpointError, UnsupportedArchitectureError
from hubprune.core.structure import Structure, read_structure
from hubprune.core.weights import open_weights
from hubprune.exporting.artifact import Outtype
from hubprune.exporting.hyperparameters import check_layers, read_hyperparameters
from hubprune.exporting.tensors import gguf_architecture, lay_out, plan_tensors
from hubprune.exporting.vocabulary import read_vocabulary
from hubprune.exporting.writing import GgufContent

EXPORTABLE = ("llama", "mistral")
"""Families whose layers are what llama.cpp's architectures `llama` and `deci` compute."""


def read_layers(config: Mapping[str, Any], *, name: str) -> Structure:
    """Read which sublayers a checkpoint has, after a check that its family can be exported.

    Args:
        config: the parsed config.json.
        name: how error messages call the checkpoint.

    Raises:
        UnsupportedArchitectureError: another family.
        CheckpointError: config.json is broken.
    """
    hint = f"GGUF export writes {', '.join(EXPORTABLE)}, pruned or not, and {NEMOTRON_NAS} as hubprune writes it."
    try:
        family = architecture_of(config, name=name).model_type
    except UnsupportedArchitectureError as error:
        raise UnsupportedArchitectureError(error.message, hint=hint) from error
    if family not in EXPORTABLE:
        raise UnsupportedArchitectureError(f"{name} is of the family {family}.", hint=hint)
    check_layers(config, where=f"config.json of {name}")
    try:
        return read_structure(config, name=name)
    except (TypeError, ValueError, OverflowError, KeyError, ZeroDivisionError) as error:
        raise CheckpointError(f"config.json of {name} does not say what layers there are ({error!r:.80}).") from error


def plan_content(folder: Path, config: Mapping[str, Any], *, name: str, outtype: Outtype) -> GgufContent:
    """Plan the file of a checkpoint.

    Args:
        folder: the checkpoint.
        config: its parsed config.json.
        name: what the model is called.
        outtype: type of the matrices.

    Raises:
        UnsupportedArchitectureError: llama.cpp does not compute what this model does.
        UnsupportedFormatError: its tokenizer or its weights cannot be written.
        CheckpointError: a file is broken.
    """
    structure = read_layers(config, name=name)
    sizes = read_hyperparameters(config, structure.architecture, where=f"{folder / CONFIG_NAME}")
    slots = lay_out(structure, name=name)
    tensors = plan_tensors(open_weights(folder), sizes, slots, family=structure.architecture, outtype=outtype)
    return GgufContent(
        name=name,
        architecture=gguf_architecture(slots),
        outtype=outtype,
        sizes=sizes,
        slots=slots,
        vocabulary=read_vocabulary(folder, config, size=tensors[0].shape[0]),
        tensors=tensors,
    )
