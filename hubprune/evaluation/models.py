"""Load a model folder for measuring, and let go of it again."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from hubprune.core.errors import EvaluationError
from hubprune.core.files import scratch_prefix
from hubprune.core.neutral import load_causal_lm
from hubprune.evaluation.placement import input_device, placement

__all__ = [
    "LoadedModel",
    "is_memory_error",
    "load_model",
    "memory_errors",
    "release_memory",
]

NO_MEMORY = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What torch says in a plain RuntimeError where memory ran out."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer."""

    model: Any
    tokenizer: Any
    device: str
    """What token ids go to: `cpu`, `cuda:0`, ..."""
    dtype: str
    """dtype of the weights by its short name: `bfloat16`."""

    @property
    def max_positions(self) -> int | None:
        """Tokens that the model has positions for, or None where its config gives no limit."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None


def load_model(folder: Path, *, device: str, dtype: str, trust_remote_code: bool) -> LoadedModel:
    """Load the causal language model and the tokenizer of a folder.

    `device` is a torch device, or `auto` for the first one, and for others as well where the model is larger; `dtype`
    is `auto` for the checkpoint's own, or a torch dtype by name.  `trust_remote_code` runs the modeling file in the
    folder: for folders that this package wrote.  Code that comes with a tokenizer is never run, since a pruned folder
    has its tokenizer files from the base, and neither are pickles read.

    Raises:
        EvaluationError: the device's memory is too small.
        RecipeError: this machine has no such device.
    """
    offload = tempfile.TemporaryDirectory(prefix=scratch_prefix("hubprune-offload"))
    link = Path(offload.name, "model")  # a folder's name becomes part of a module's, which is too long for some
    link.symlink_to(folder.resolve(), target_is_directory=True)
    with memory_errors(f"while loading {folder}", hint="Pass --dtype bfloat16, or --device cpu."):
        model = load_causal_lm(
            link,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            own_code=trust_remote_code,
            **placement(folder, device=device, dtype=dtype, offload_folder=str(Path(offload.name, "weights"))),
        )
    model.offload_folder = offload  # deleted with the model, which may read its weights from there
    # With the config at hand, it does not look for one whose code it may not run, and complain.
    tokenizer = AutoTokenizer.from_pretrained(link, config=model.config, trust_remote_code=False)
    if (tokenizer.pad_token_id or 0) >= model.get_input_embeddings().num_embeddings:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # rows are filled with it, and it had no embedding
    return LoadedModel(model, tokenizer, input_device(model), str(model.dtype).removeprefix("torch."))


@contextmanager
def memory_errors(when: str, *, hint: str) -> Iterator[None]:
    """Raise EvaluationError, with a hint, where memory runs out while the block runs."""
    try:
        yield
    except RuntimeError as error:
        if not is_memory_error(error):
            raise
        raise EvaluationError(f"The device ran out of memory {when}.", hint=hint) from error


def is_memory_error(error: RuntimeError) -> bool:
    """Tell whether an error of torch says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


def release_memory() -> None:
    """Give the memory of models that nobody refers to any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.mps.is_available():
        torch.mps.empty_cache()
