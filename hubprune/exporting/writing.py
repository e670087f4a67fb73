"""Write a checkpoint as a GGUF file: decide what it will hold, check that there is room, and write it.

What it holds is decided from headers and small files alone, so that whatever cannot be exported is refused in a moment.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.core.artifacts import PLAIN_TYPES, Outtype, PlainType
from hubprune.core.config import CONFIG_NAME, Structure, read_structure
from hubprune.core.console import size
from hubprune.core.errors import (
    CheckpointError,
    DiskSpaceError,
    MissingDependencyError,
    RecipeError,
    UnsupportedFormatError,
)
from hubprune.core.extras import install
from hubprune.core.files import scratch_prefix, sweep
from hubprune.core.weights import Weights, open_weights
from hubprune.exporting import sentencepiece
from hubprune.exporting.families import UNEVEN, GgufFamily, family_of
from hubprune.exporting.hyperparameters import Hyperparameters, Rope, check_layers, read_hyperparameters
from hubprune.exporting.layers import LayerSlot, lay_out, layer_notes
from hubprune.exporting.quantizing import quantized_bytes
from hubprune.exporting.tensors import GgufTensor, encoded_blocks, plan_tensors, weigh
from hubprune.exporting.vocabulary import Vocabulary, open_tokenizer, read_byte_level

if TYPE_CHECKING:
    from gguf import GGUFWriter

OVERHEAD_BYTES = 64 * 2**20
"""Room for metadata, which is mostly the tokenizer."""
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


@dataclass(frozen=True, kw_only=True)
class GgufContent:
    """Everything that a file will hold."""

    name: str
    architecture: str
    """Of llama.cpp."""
    outtype: Outtype
    plain: PlainType
    """The type that is written; another than `outtype` where llama.cpp's quantizer makes that of it."""
    family: GgufFamily
    sizes: Hyperparameters
    rms_norm_eps: float
    slots: tuple[LayerSlot, ...]
    vocabulary: Vocabulary
    tensors: tuple[GgufTensor, ...]
    notes: tuple[str, ...] = ()

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors that are written."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def disk_bytes(self) -> int:
        """Bytes that making the file takes, those of the plain one before a quantization included."""
        return self.data_bytes + quantized_bytes(self.tensors, self.outtype)


def read_layers(config: Mapping[str, Any], *, name: str) -> Structure:
    """Read from config.json which sublayers a checkpoint has, after a check that its family can be exported.

    Raises:
        UnsupportedArchitectureError: another family.
        CheckpointError: config.json is broken.
    """
    family_of(config, name=name)
    check_layers(config, where=f"config.json of {name}")
    try:
        return read_structure(config, name=name)
    except (TypeError, ValueError, OverflowError, KeyError, ZeroDivisionError) as error:
        raise CheckpointError(f"config.json of {name} does not say what layers there are ({error!r:.80}).") from error


def plan_content(folder: Path, config: Mapping[str, Any], *, name: str, outtype: Outtype) -> GgufContent:
    """Plan the file of a checkpoint with this config.json; `name` is what the model is called in the file.

    Raises:
        UnsupportedArchitectureError: llama.cpp does not compute what this model does.
        UnsupportedFormatError: its tokenizer or its weights cannot be written.
        CheckpointError: a file is broken.
    """
    structure, family = read_layers(config, name=name), family_of(config, name=name)
    sizes = read_hyperparameters(config, structure.architecture, family, where=f"{folder / CONFIG_NAME}")
    uneven = family.uneven and sizes.rope.dimensions == sizes.head_dim
    architecture, slots = lay_out(structure, family, config, uneven=uneven, name=name)
    weighed = weigh(sizes, family, architecture, layers=len(slots))
    weights = open_weights(folder)
    plain = _plain_type(weights, outtype)
    tensors = plan_tensors(
        weights, sizes, slots, weighed,
        core=structure.architecture, family=family, architecture=architecture, outtype=plain,
    )  # fmt: skip
    vocabulary = read_vocabulary(folder, config, size=tensors[0].shape[0])
    return GgufContent(
        name=name, architecture=architecture, outtype=outtype, plain=plain, family=family, sizes=sizes,
        rms_norm_eps=weighed.rms_norm_eps, slots=slots, vocabulary=vocabulary, tensors=tensors,
        notes=(*sizes.notes, *layer_notes(architecture, slots), *vocabulary.notes),
    )  # fmt: skip


def _plain_type(weights: Weights, outtype: Outtype) -> PlainType:
    """Return the type that is written: what the quantizer reads holds every value as the checkpoint does."""
    for plain in PLAIN_TYPES:
        if plain == outtype:
            return plain
    stored = {entry.dtype for _, entry in weights}
    exact: Mapping[str, PlainType] = {"F16": "f16", "BF16": "bf16"}
    return exact.get(stored.pop(), "f32") if len(stored) == 1 else "f32"


def read_vocabulary(folder: Path, config: Mapping[str, Any], *, size: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint: tokenizer.json, which transformers runs, else SentencePiece's own file.

    Special tokens may be named in config.json too.  The embedding has `size` rows; those without a token are filled.

    Raises:
        CheckpointError: the files are broken or do not fit the embedding.
        UnsupportedFormatError: llama.cpp would cut texts in another way.
    """
    files = open_tokenizer(folder, config, size=size)
    if files.tokenizer:
        return sentencepiece.read_pieces(files) if sentencepiece.fits(files) else read_byte_level(files)
    if (folder / sentencepiece.FILE).is_file():
        return sentencepiece.read_model(files)
    message = f"{folder} has neither tokenizer.json nor tokenizer.model."
    raise UnsupportedFormatError(message, hint="A GGUF file holds the tokenizer too.")


def check_writer() -> None:
    """Raise MissingDependencyError unless the package that writes the format is installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("Export needs the package gguf.", hint=install("gguf")) from error


def check_target(target: Path) -> None:
    """Raise RecipeError unless a file can be made there and none is there yet."""
    if target.exists() or target.is_symlink():
        raise RecipeError(f"{target} exists already.", hint="Choose another --out, or remove it.")
    there = next(p for p in target.absolute().parents if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise RecipeError(f"Cannot write to {there}.", hint="Choose another --out.")


def check_space(folder: Path, *, needed: int) -> None:
    """Raise DiskSpaceError unless so many bytes, and some for metadata, are free."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if (free := shutil.disk_usage(there).free) < needed + OVERHEAD_BYTES:
        raise DiskSpaceError(f"The export takes {size(needed)}; {there} has {size(free)} free.")


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield the path of a temporary file beside `target` that becomes `target` when the block ends well.

    Raises:
        RecipeError: something came to be at `target` in the meantime, or its folder cannot be written.
        DiskSpaceError: the disk filled up.
    """
    check_target(target)
    sweep(target.parent, name=target.name)
    is_new = not target.parent.exists()
    staged = target.with_name(f"{scratch_prefix(target.name)}file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield staged
        check_target(target)
        staged.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(f"The disk is full: {target} was not written.") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENAMETOOLONG):
            raise RecipeError(f"Cannot write {target}: {error.strerror}.", hint="Choose another --out.") from error
        raise
    finally:
        staged.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):  # it holds the file
                target.parent.rmdir()


def write_gguf(content: GgufContent, path: Path, *, advance: Callable[[int], object]) -> None:
    """Write a GGUF file, which the caller makes appear atomically; `advance` is told the tensor bytes of each piece.

    Raises:
        CheckpointError: a source file holds NaN, or became shorter.
        UnsupportedFormatError: a value does not fit the type.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, content.architecture)
    try:
        _add_metadata(writer, content)
        _add_tokenizer(writer, content.vocabulary)
        for tensor in content.tensors:
            kind = GGMLQuantizationType[tensor.encoding]
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        # The package's own method wants each tensor whole; an embedding of float32 values can be gigabytes.
        assert writer.fout is not None
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        for tensor in content.tensors:
            written = 0
            for block in encoded_blocks(tensor):
                file.write(block)
                written += len(block)
                advance(len(block))
            assert written == tensor.size, tensor.name
            writer.write_padding(file, written)
    finally:
        writer.close()


def _add_metadata(writer: GGUFWriter, content: GgufContent) -> None:
    """Write the sizes; where layers differ, as one number per layer."""
    from gguf import LlamaFileType

    sizes, slots = content.sizes, content.slots
    writer.add_name(content.name)
    writer.add_file_type(LlamaFileType[FILE_TYPES[content.plain]])
    writer.add_quantization_version(2)
    writer.add_context_length(sizes.context_length)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_block_count(len(slots))
    writer.add_layer_norm_rms_eps(content.rms_norm_eps)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_vocab_size(len(content.vocabulary.tokens))
    _add_rope(writer, sizes.rope)
    if content.architecture == UNEVEN:
        writer.add_head_count([0 if slot.attention == "none" else sizes.num_heads for slot in slots])
        writer.add_head_count_kv([sizes.num_kv_heads if slot.attention == "full" else 0 for slot in slots])
        writer.add_feed_forward_length([slot.mlp_width for slot in slots])
        return
    writer.add_head_count(sizes.num_heads)
    writer.add_head_count_kv(sizes.num_kv_heads)
    writer.add_feed_forward_length(slots[0].mlp_width)
    for name, number in sizes.numbers.items():
        getattr(writer, f"add_{name}")(number)
    if content.family.slides:
        sliding = [slot.source is not None and sizes.slides[slot.source] for slot in slots]
        window = sizes.window
        if window is None and sizes.rope.local_theta is None:  # Gemma 2 aborts where nothing slides
            sliding, window = [True] * len(slots), sizes.context_length
        writer.add_sliding_window_pattern(sliding)
        if window is not None:
            writer.add_sliding_window(window)


def _add_rope(writer: GGUFWriter, rope: Rope) -> None:
    from gguf import RopeScalingType

    writer.add_rope_dimension_count(rope.dimensions)
    writer.add_rope_freq_base(rope.theta)
    if rope.local_theta is not None:
        writer.add_rope_freq_base_swa(rope.local_theta)
    if rope.kind in ("linear", "yarn", "longrope"):
        writer.add_rope_scaling_type(RopeScalingType(rope.kind))
    if rope.linear_factor is not None:
        writer.add_rope_scaling_factor(rope.linear_factor)
    if rope.original_context is not None:
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
    if rope.attention_factor is not None:
        writer.add_rope_scaling_attn_factors(rope.attention_factor)


def _add_tokenizer(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([int(kind) for kind in vocabulary.types])
    if vocabulary.scores is not None:
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.merges is not None:
        writer.add_token_merges(list(vocabulary.merges))
    for name, number in vocabulary.special_ids.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
