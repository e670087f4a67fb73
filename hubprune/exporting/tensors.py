"""The layers and tensors of a GGUF file, each with where its values come from, and the bytes of a tensor.

llama.cpp runs a Llama with uneven layers as architecture `deci`.  What it does not run is written as something that
it does and that computes the same:

    neither sublayer               the layer goes, the rest is renumbered
    attention without MLP          an MLP of 32 zero neurons: with a width of 0, the attention's result gets lost
    no attention in the first one  "linear attention" whose only matrix is zero: sizes are read from the first layer

Planning reads headers only; the values are read and encoded a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import GgufArchitecture, Outtype
from hubprune.core.config import Structure
from hubprune.core.errors import CheckpointError, UnsupportedArchitectureError, UnsupportedFormatError
from hubprune.core.weights import Shard, TensorEntry, Weights
from hubprune.exporting.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Block = NDArray[np.float32]


Encoding = Literal["F32", "F16", "BF16", "Q8_0"]
ENCODING: Mapping[Outtype, Encoding] = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
SOURCE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes per value of the types that are read."""
Q8_0_BLOCK = 32
"""Values that share a scale; a row of another length cannot be quantized and stays f16."""
ROW_BYTES = {"F32": (4, 1), "F16": (2, 1), "BF16": (2, 1), "Q8_0": (34, Q8_0_BLOCK)}
"""Bytes per so many values."""
ZERO_MLP_WIDTH = 32
"""Neurons of an MLP that stands in for none: one block of the quantized types."""
BLOCK_VALUES = 4 * 2**20
"""Values read at a time."""
LARGEST_F16 = 65504.0


@dataclass(frozen=True, kw_only=True)
class LayerSlot:
    """One layer of the file."""

    source: int
    """Its number in the checkpoint."""
    attention: Literal["full", "linear", "none"]
    """`linear` is the zero matrix that stands in for none."""
    has_mlp: bool
    mlp_width: int
    """Neurons in the file, also those of a zero MLP."""


def lay_out(structure: Structure, *, name: str) -> tuple[LayerSlot, ...]:
    """Return the layers of the file, in order.

    Raises:
        UnsupportedArchitectureError: no layer is left.
    """
    gone = structure.no_attn & structure.no_mlp
    kept = [layer for layer in range(structure.num_hidden_layers) if layer not in gone]
    if not kept:
        raise UnsupportedArchitectureError(f"{name} has no layer with a sublayer, which llama.cpp does not run.")
    return tuple(_slot(structure, layer, first=layer == kept[0]) for layer in kept)


def _slot(structure: Structure, layer: int, *, first: bool) -> LayerSlot:
    absent: Literal["linear", "none"] = "linear" if first else "none"
    has_mlp = layer not in structure.no_mlp
    return LayerSlot(
        source=layer,
        attention=absent if layer in structure.no_attn else "full",
        has_mlp=has_mlp,
        mlp_width=structure.mlp_widths[layer] if has_mlp else ZERO_MLP_WIDTH,
    )


def gguf_architecture(slots: Sequence[LayerSlot]) -> GgufArchitecture:
    """Return `llama` where all layers have both sublayers and MLPs of one width, else `deci`."""
    whole = all(slot.attention == "full" and slot.has_mlp for slot in slots)
    return "llama" if whole and len({slot.mlp_width for slot in slots}) == 1 else "deci"


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as in the checkpoint."""
    encoding: Encoding
    source: tuple[Shard, TensorEntry] | None = None
    values: tuple[float, ...] | None = None
    """Values where there is no source; None for zeros."""
    head_dim: int | None = None
    """Rows of one head where they change from transformers' order for RoPE to that of GGML."""

    @property
    def size(self) -> int:
        """Bytes."""
        size, block = ROW_BYTES[self.encoding]
        return math.prod(self.shape) * size // block


def plan_tensors(
    weights: Weights, sizes: Hyperparameters, slots: Sequence[LayerSlot], *, family: Architecture, outtype: Outtype
) -> tuple[GgufTensor, ...]:
    """List the tensors of the file in its order, after a check that they are exactly those of the checkpoint.

    Raises:
        CheckpointError: a tensor is missing or has another shape than config.json says.
        UnsupportedArchitectureError: the checkpoint has tensors that llama.cpp's Llama does not know.
        UnsupportedFormatError: a tensor is neither F32, F16 nor BF16.
    """
    planner = _Planner(weights, sizes, family, ENCODING[outtype])
    planned = tuple(planner.plan(slots))
    planner.check_all_used()
    return planned


class _Planner:
    def __init__(self, weights: Weights, sizes: Hyperparameters, family: Architecture, encoding: Encoding) -> None:
        self._folder, self._sizes, self._family, self._encoding = weights.folder, sizes, family, encoding
        self._entries = {tensor.name: (shard, tensor) for shard, tensor in weights}
        self._used: set[str] = set()

    def plan(self, slots: Sequence[LayerSlot]) -> Iterator[GgufTensor]:
        """Yield every tensor of the file in its order."""
        hidden, stored = self._sizes.hidden_size, self._entry(self._family.embedding)[1].shape
        if len(stored) != 2:
            raise CheckpointError(f"{self._folder}: {self._family.embedding} is no matrix: {list(stored)}.")
        vocabulary = stored[0]
        yield self._copied(self._family.embedding, "token_embd.weight", (vocabulary, hidden))
        for number, slot in enumerate(slots):
            source, name = f"{self._family.layers_prefix}{slot.source}.", f"blk.{number}."
            if slot.attention == "full":
                yield from self._attention(source, name)
            elif slot.attention == "linear":
                yield self._ones(f"{name}attn_norm.weight")
                yield self._zeros(f"{name}attn_output.weight", (hidden, hidden))
            yield from self._mlp(slot, source, name) if slot.has_mlp else self._zero_mlp(name)
        yield self._copied("model.norm.weight", "output_norm.weight", (hidden,))
        if self._sizes.tied:
            self._used.add(self._family.head)  # transformers passes over a stored copy too
        else:
            yield self._copied(self._family.head, "output.weight", (vocabulary, hidden))
        if (divisors := self._sizes.rope.frequency_divisors) is not None:
            yield GgufTensor(name="rope_freqs.weight", shape=(len(divisors),), encoding="F32", values=divisors)

    def check_all_used(self) -> None:
        """Raise UnsupportedArchitectureError where some parameter of the checkpoint went nowhere."""
        left = sorted(name for name in self._entries.keys() - self._used if self._family.is_parameter(name))
        if left:
            raise UnsupportedArchitectureError(
                f"{self._folder} has {len(left)} tensors that its config.json does not lead one to expect, the first "
                f"is {left[0]!r}."
            )

    def _attention(self, source: str, name: str) -> Iterator[GgufTensor]:
        hidden, head_dim = self._sizes.hidden_size, self._sizes.head_dim
        rows, kv_rows = self._sizes.num_heads * head_dim, self._sizes.num_kv_heads * head_dim
        yield self._copied(f"{source}input_layernorm.weight", f"{name}attn_norm.weight", (hidden,))
        yield from self._linear(f"{source}self_attn.q_proj", f"{name}attn_q", (rows, hidden), rotary=True)
        yield from self._linear(f"{source}self_attn.k_proj", f"{name}attn_k", (kv_rows, hidden), rotary=True)
        yield from self._linear(f"{source}self_attn.v_proj", f"{name}attn_v", (kv_rows, hidden))
        yield from self._linear(f"{source}self_attn.o_proj", f"{name}attn_output", (hidden, rows))

    def _mlp(self, slot: LayerSlot, source: str, name: str) -> Iterator[GgufTensor]:
        hidden, width = self._sizes.hidden_size, slot.mlp_width
        yield self._copied(f"{source}post_attention_layernorm.weight", f"{name}ffn_norm.weight", (hidden,))
        yield from self._linear(f"{source}mlp.gate_proj", f"{name}ffn_gate", (width, hidden))
        yield from self._linear(f"{source}mlp.up_proj", f"{name}ffn_up", (width, hidden))
        yield from self._linear(f"{source}mlp.down_proj", f"{name}ffn_down", (hidden, width))

    def _zero_mlp(self, name: str) -> Iterator[GgufTensor]:
        hidden = self._sizes.hidden_size
        yield self._ones(f"{name}ffn_norm.weight")
        yield self._zeros(f"{name}ffn_gate.weight", (ZERO_MLP_WIDTH, hidden))
        yield self._zeros(f"{name}ffn_up.weight", (ZERO_MLP_WIDTH, hidden))
        yield self._zeros(f"{name}ffn_down.weight", (hidden, ZERO_MLP_WIDTH))

    def _linear(self, source: str, name: str, shape: tuple[int, int], *, rotary: bool = False) -> Iterator[GgufTensor]:
        """Yield the matrix of a projection and its bias, if any; `rotary` where RoPE applies to its rows."""
        yield self._copied(f"{source}.weight", f"{name}.weight", shape, rotary=rotary)
        if source.split(".")[-2] in self._sizes.biased:  # transformers passes over all others
            yield self._copied(f"{source}.bias", f"{name}.bias", shape[:1], rotary=rotary)

    def _copied(self, source: str, name: str, shape: tuple[int, ...], *, rotary: bool = False) -> GgufTensor:
        entry = self._entry(source)
        if entry[1].shape != shape:
            message = f"{self._folder}: {source} has the shape {list(entry[1].shape)}, config.json says {list(shape)}."
            raise CheckpointError(message)
        if entry[1].dtype not in SOURCE_BYTES:
            hint = f"Export reads {', '.join(SOURCE_BYTES)}."
            raise UnsupportedFormatError(f"{self._folder}: {source} is stored as {entry[1].dtype}.", hint=hint)
        head_dim = self._sizes.head_dim if rotary else None
        return GgufTensor(name=name, shape=shape, encoding=self._encoding_for(shape), source=entry, head_dim=head_dim)

    def _ones(self, name: str) -> GgufTensor:
        hidden = self._sizes.hidden_size
        return GgufTensor(name=name, shape=(hidden,), encoding="F32", values=(1.0,) * hidden)

    def _zeros(self, name: str, shape: tuple[int, int]) -> GgufTensor:
        return GgufTensor(name=name, shape=shape, encoding=self._encoding_for(shape))

    def _encoding_for(self, shape: tuple[int, ...]) -> Encoding:
        if len(shape) == 1:
            return "F32"
        return "F16" if self._encoding == "Q8_0" and shape[1] % Q8_0_BLOCK else self._encoding

    def _entry(self, name: str) -> tuple[Shard, TensorEntry]:
        if name not in self._entries:
            raise CheckpointError(f"{self._folder} has no tensor {name!r}, which config.json leads one to expect.")
        self._used.add(name)
        return self._entries[name]


def encoded_blocks(tensor: GgufTensor) -> Iterator[bytes]:
    """Yield the bytes of a tensor, a few rows at a time.

    Raises:
        CheckpointError: the source holds NaN or infinity, or became shorter.
        UnsupportedFormatError: a value does not fit the type.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    for block in _blocks(tensor):
        if tensor.encoding == "F16" and block.size and float(np.abs(block).max()) > LARGEST_F16:
            message = f"{tensor.name} has values above {LARGEST_F16:g}, which f16 does not hold."
            raise UnsupportedFormatError(message, hint="Export with --outtype bf16.")
        whole = np.ascontiguousarray(block)
        yield bytes(quants.quantize(whole, GGMLQuantizationType[tensor.encoding]).tobytes())


def _blocks(tensor: GgufTensor) -> Iterator[Block]:
    """Yield the values as float32, [rows, columns]; a vector has one column."""
    import numpy as np

    columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    unit = tensor.head_dim or 1
    step = max(1, BLOCK_VALUES // (columns * unit)) * unit
    for first in range(0, tensor.shape[0], step):
        rows = min(step, tensor.shape[0] - first)
        if tensor.source is not None:
            block = _read(*tensor.source, first=first * columns, count=rows * columns).reshape(rows, columns)
            if d := tensor.head_dim:  # transformers rotates row i of a head with i + d/2, GGML row 2i with 2i + 1
                block = block.reshape(rows // d, 2, d // 2, columns).swapaxes(1, 2).reshape(rows, columns)
            yield block
        elif tensor.values is not None:
            yield np.array(tensor.values[first : first + rows], dtype=np.float32).reshape(rows, columns)
        else:
            yield np.zeros((rows, columns), dtype=np.float32)


def _read(shard: Shard, entry: TensorEntry, *, first: int, count: int) -> Block:
    import numpy as np

    size = SOURCE_BYTES[entry.dtype]
    with shard.path.open("rb") as file:
        file.seek(entry.begin + first * size)
        data = file.read(count * size)
    if len(data) != count * size:
        raise CheckpointError(f"{shard.path} became shorter while it was read.")
    if entry.dtype == "BF16":  # the upper half of a float32
        widened: Any = np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16
        values: Block = widened.view(np.float32)
    else:
        values = np.frombuffer(data, dtype="<f4" if entry.dtype == "F32" else "<f2").astype(np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{shard.path}: tensor {entry.name!r} holds NaN or infinity.")
    return values
