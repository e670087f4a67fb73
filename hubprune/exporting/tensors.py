"""The tensors of a GGUF file, each with where its values come from, and their bytes.

Planning reads headers only; the values are read and encoded a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import PlainType
from hubprune.core.errors import CheckpointError, UnsupportedArchitectureError, UnsupportedFormatError
from hubprune.core.weights import Shard, TensorEntry, Weights
from hubprune.exporting.families import UNEVEN, GgufFamily
from hubprune.exporting.hyperparameters import Hyperparameters
from hubprune.exporting.layers import LayerSlot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Block = NDArray[np.float32]


Encoding = Literal["F32", "F16", "BF16", "Q8_0"]
ENCODING: Mapping[PlainType, Encoding] = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
SOURCE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes per value of the types that are read."""
Q8_0_BLOCK = 32
"""Values that share a scale; a row of another length cannot be quantized and stays f16."""
ROW_BYTES = {"F32": (4, 1), "F16": (2, 1), "BF16": (2, 1), "Q8_0": (34, Q8_0_BLOCK)}
"""Bytes per so many values."""
BLOCK_VALUES = 4 * 2**20
"""Values read at a time."""
LARGEST_F16 = 65504.0


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of a tensor of the file: rows of one in the checkpoint, or zeros."""

    count: int
    source: tuple[Shard, TensorEntry] | None = None
    first: int = 0
    """Number of the first one in the checkpoint's tensor."""


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as in the checkpoint."""
    encoding: Encoding
    rows: tuple[Rows, ...] = ()
    """Where its rows come from, from top to bottom; shorter ones are filled up with zeros on the right."""
    values: tuple[float, ...] | None = None
    """Values of a vector without a source."""
    head_dim: int | None = None
    """Rows of one head where they change from transformers' order for RoPE to that of GGML."""
    added: float = 0.0
    """What every value is increased by."""
    factor: float = 1.0
    """What every value is then multiplied with."""

    @property
    def size(self) -> int:
        """Bytes."""
        size, block = ROW_BYTES[self.encoding]
        return math.prod(self.shape) * size // block


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """Constants of a family that are multiplied into tensors, since the architecture does not know them.

    Granite in `deci`: all hidden states are divided by the embedding's multiplier, which norms do not see once their
    epsilon is divided by its square; what sublayers add is divided likewise, and times the residual multiplier.
    """

    factors: Mapping[str, float]
    """Name of a tensor, without its layer -> what it is multiplied with."""
    rms_norm_eps: float


def weigh(sizes: Hyperparameters, family: GgufFamily, architecture: str, *, layers: int) -> Weighed:
    """Return what of a family's constants has to be multiplied into tensors."""
    if family.query_scalar is not None and sizes.query_scalar is not None:
        tensor, known_layers = family.query_scalar
        known = sizes.hidden_size // sizes.num_heads if layers == known_layers else sizes.head_dim
        return Weighed(factors={tensor: math.sqrt(known / sizes.query_scalar)}, rms_norm_eps=sizes.rms_norm_eps)
    if architecture != UNEVEN or not sizes.numbers:
        return Weighed(factors={}, rms_norm_eps=sizes.rms_norm_eps)
    scales = sizes.numbers
    residual = scales["residual_scale"] / scales["embedding_scale"]
    return Weighed(
        factors={
            "attn_q": scales["attention_scale"] * math.sqrt(sizes.head_dim), "attn_output": residual,
            "ffn_down": residual, "output_norm": 1 / scales["logit_scale"],
        },
        rms_norm_eps=sizes.rms_norm_eps / scales["embedding_scale"] ** 2,
    )  # fmt: skip


def plan_tensors(
    weights: Weights, sizes: Hyperparameters, slots: Sequence[LayerSlot], weighed: Weighed, *,
    core: Architecture, family: GgufFamily, architecture: str, outtype: PlainType,
) -> tuple[GgufTensor, ...]:  # fmt: skip
    """List the tensors of the file in its order, after a check that they are exactly those of the checkpoint.

    Raises:
        CheckpointError: a tensor is missing or has another shape than config.json says.
        UnsupportedArchitectureError: the checkpoint has tensors that llama.cpp's architecture does not know.
        UnsupportedFormatError: a tensor is neither F32, F16 nor BF16.
    """
    planner = _Planner(weights, sizes, core, family, architecture, ENCODING[outtype], weighed.factors)
    planned = tuple(planner.plan(slots))
    planner.check_all_used()
    return planned


class _Planner:
    def __init__(
        self, weights: Weights, sizes: Hyperparameters, core: Architecture, family: GgufFamily, architecture: str,
        encoding: Encoding, factors: Mapping[str, float],
    ) -> None:  # fmt: skip
        self._folder, self._sizes, self._core, self._family = weights.folder, sizes, core, family
        self._encoding, self._factors = encoding, factors
        self._uneven = architecture == UNEVEN
        self._entries = {tensor.name: (shard, tensor) for shard, tensor in weights}
        self._used: set[str] = set()
        self._q, self._kv = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim

    def plan(self, slots: Sequence[LayerSlot]) -> Iterator[GgufTensor]:
        """Yield every tensor of the file in its order."""
        hidden, stored = self._sizes.hidden_size, self._entry(self._core.embedding)[1].shape
        if len(stored) != 2:
            raise CheckpointError(f"{self._folder}: {self._core.embedding} is no matrix: {list(stored)}.")
        vocabulary = stored[0]
        yield self._matrix("token_embd.weight", (vocabulary, hidden), self._core.embedding)
        for number, slot in enumerate(slots):
            source, name = f"{self._core.layers_prefix}{slot.source}.", f"blk.{number}."
            if slot.attention == "full":
                yield from self._attention(source, name)
            elif slot.attention == "zero":
                yield from self._zero_attention(name)
            elif slot.attention == "linear":
                yield self._ones(f"{name}attn_norm.weight")
                yield self._zeros(f"{name}attn_output.weight", (hidden, hidden))
            yield from self._mlp(slot, source, name) if slot.has_mlp else self._zero_mlp(name, slot.mlp_width)
        yield self._norm("model.norm.weight", "output_norm.weight", hidden)
        if self._sizes.tied:
            self._used.add(self._core.head)  # transformers passes over a stored copy too
        if not self._sizes.tied or self._family.head == "own":
            head = self._core.embedding if self._sizes.tied else self._core.head
            yield self._matrix("output.weight", (vocabulary, hidden), head)
        for name, divisors in self._sizes.rope.factors.items():
            yield GgufTensor(name=f"{name}.weight", shape=(len(divisors),), encoding="F32", values=divisors)

    def check_all_used(self) -> None:
        """Raise UnsupportedArchitectureError where some parameter of the checkpoint went nowhere."""
        left = sorted(name for name in self._entries.keys() - self._used if self._core.is_parameter(name))
        if left:
            raise UnsupportedArchitectureError(
                f"{self._folder} has {len(left)} tensors that its config.json does not lead one to expect, the first "
                f"is {left[0]!r}."
            )

    def _attention(self, source: str, name: str) -> Iterator[GgufTensor]:
        hidden, q, kv = self._sizes.hidden_size, self._q, self._kv
        for stored, made in self._family.attn_norms:
            yield self._norm(f"{source}{stored}.weight", f"{name}{made}.weight", hidden)
        of, firsts = (q + 2 * kv, (0, q, q + kv)) if self._family.fused else (None, (0, 0, 0))
        rotary = self._uneven or self._family.interleaved
        for letter, rows, first in zip("qkv", (q, kv, kv), firsts, strict=True):
            stored = f"{source}self_attn.{'qkv' if self._family.fused else letter}_proj"
            turned = rotary and letter != "v"
            yield from self._linear(stored, f"{name}attn_{letter}", (rows, hidden), first=first, of=of, rotary=turned)
        for letter, size in self._qk_norms():
            yield self._norm(f"{source}self_attn.{letter}_norm.weight", f"{name}attn_{letter}_norm.weight", size)
        yield from self._linear(f"{source}self_attn.o_proj", f"{name}attn_output", (hidden, q))

    def _qk_norms(self) -> Iterator[tuple[str, int]]:
        if (kind := self._family.qk_norm) is not None:
            yield "q", self._sizes.head_dim if kind == "head" else self._q
            yield "k", self._sizes.head_dim if kind == "head" else self._kv

    def _zero_attention(self, name: str) -> Iterator[GgufTensor]:
        hidden = self._sizes.hidden_size
        yield from (self._ones(f"{name}{made}.weight") for _, made in self._family.attn_norms)
        yield from (self._ones(f"{name}attn_{letter}_norm.weight", size) for letter, size in self._qk_norms())
        for letter, rows in (("q", self._q), ("k", self._kv), ("v", self._kv)):
            yield self._zeros(f"{name}attn_{letter}.weight", (rows, hidden))
        yield self._zeros(f"{name}attn_output.weight", (hidden, self._q))

    def _mlp(self, slot: LayerSlot, source: str, name: str) -> Iterator[GgufTensor]:
        hidden, width, stored = self._sizes.hidden_size, slot.mlp_width, slot.stored_width
        for norm, made in self._family.mlp_norms:
            yield self._norm(f"{source}{norm}.weight", f"{name}{made}.weight", hidden)
        if self._family.fused:
            both = f"{source}mlp.gate_up_proj.weight"
            entry = self._checked(both, (2 * stored, hidden))
            gate, up = Rows(count=stored, source=entry), Rows(count=stored, source=entry, first=stored)
            if self._uneven:
                yield self._made(f"{name}ffn_gate.weight", (width, hidden), (gate,))
                yield self._made(f"{name}ffn_up.weight", (width, hidden), (up,))
            else:
                filled = Rows(count=width - stored)
                yield self._made(f"{name}ffn_up.weight", (2 * width, hidden), (gate, filled, up, filled))
        else:
            yield from self._linear(f"{source}mlp.gate_proj", f"{name}ffn_gate", (width, hidden), rows=stored)
            yield from self._linear(f"{source}mlp.up_proj", f"{name}ffn_up", (width, hidden), rows=stored)
        yield from self._linear(f"{source}mlp.down_proj", f"{name}ffn_down", (hidden, width), columns=stored)

    def _zero_mlp(self, name: str, width: int) -> Iterator[GgufTensor]:
        hidden = self._sizes.hidden_size
        yield from (self._ones(f"{name}{made}.weight") for _, made in self._family.mlp_norms)
        if self._family.fused and not self._uneven:
            yield self._zeros(f"{name}ffn_up.weight", (2 * width, hidden))
        else:
            yield self._zeros(f"{name}ffn_gate.weight", (width, hidden))
            yield self._zeros(f"{name}ffn_up.weight", (width, hidden))
        yield self._zeros(f"{name}ffn_down.weight", (hidden, width))

    def _linear(
        self, source: str, name: str, shape: tuple[int, int], *, first: int = 0, of: int | None = None,
        rows: int | None = None, columns: int | None = None, rotary: bool = False,
    ) -> Iterator[GgufTensor]:  # fmt: skip
        """Yield the matrix of a projection and its bias, if any.

        Args:
            source: its module in the checkpoint.
            name: its name in the file.
            shape: rows and columns in the file.
            first: its first row in the checkpoint's matrix.
            of: rows of that matrix, where it holds others too.
            rows: rows in the checkpoint, where there are fewer.
            columns: columns in the checkpoint, where there are fewer.
            rotary: whether RoPE applies to its rows, and rotates neighbours.
        """
        count = rows or shape[0]
        entry = self._checked(f"{source}.weight", (of or count, columns or shape[1]))
        found = Rows(count=count, source=entry, first=first)
        yield self._made(f"{name}.weight", shape, (found,), rotary=rotary)
        _, module, projection = source.rsplit(".", 2)
        if module in self._sizes.biased or projection in self._family.always_biased:  # transformers passes over others
            bias = Rows(count=count, source=self._checked(f"{source}.bias", (count,)))
            yield self._made(f"{name}.bias", shape[:1], (bias,), rotary=rotary)

    def _matrix(self, name: str, shape: tuple[int, int], source: str) -> GgufTensor:
        return self._made(name, shape, (Rows(count=shape[0], source=self._checked(source, shape)),))

    def _norm(self, source: str, name: str, size: int) -> GgufTensor:
        rows = (Rows(count=size, source=self._checked(source, (size,))),)
        return self._made(name, (size,), rows, added=self._family.norm_offset)

    def _made(
        self, name: str, shape: tuple[int, ...], rows: tuple[Rows, ...], *, rotary: bool = False, added: float = 0.0
    ) -> GgufTensor:
        missing = shape[0] - sum(part.count for part in rows)
        factor = self._factors.get(name.removesuffix(".weight").removesuffix(".bias").split(".")[-1], 1.0)
        encoding = self._encoding_for(shape)
        return GgufTensor(
            name=name, shape=shape, encoding="F16" if factor != 1 and encoding == "BF16" else encoding,
            rows=(*rows, Rows(count=missing)) if missing else rows,
            head_dim=self._sizes.head_dim if rotary else None, added=added, factor=factor,
        )  # fmt: skip

    def _checked(self, source: str, shape: tuple[int, ...]) -> tuple[Shard, TensorEntry]:
        entry = self._entry(source)
        if entry[1].shape != shape:
            message = f"{self._folder}: {source} has the shape {list(entry[1].shape)}, config.json says {list(shape)}."
            raise CheckpointError(message)
        if entry[1].dtype not in SOURCE_BYTES:
            hint = f"Export reads {', '.join(SOURCE_BYTES)}."
            raise UnsupportedFormatError(f"{self._folder}: {source} is stored as {entry[1].dtype}.", hint=hint)
        return entry

    def _ones(self, name: str, size: int | None = None) -> GgufTensor:
        size = size or self._sizes.hidden_size
        return GgufTensor(name=name, shape=(size,), encoding="F32", values=(1.0,) * size)

    def _zeros(self, name: str, shape: tuple[int, int]) -> GgufTensor:
        return GgufTensor(name=name, shape=shape, encoding=self._encoding_for(shape), rows=(Rows(count=shape[0]),))

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

    if tensor.values is not None:
        yield np.array(tensor.values, dtype=np.float32).reshape(-1, 1)
        return
    columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    unit = tensor.head_dim or 1
    step = max(1, BLOCK_VALUES // (columns * unit)) * unit
    for part in tensor.rows:
        for first in range(0, part.count, step):
            rows = min(step, part.count - first)
            block = np.zeros((rows, columns), dtype=np.float32)
            if part.source is not None:
                stored = part.source[1].shape[1] if len(tensor.shape) == 2 else 1
                start = (part.first + first) * stored
                block[:, :stored] = _read(*part.source, first=start, count=rows * stored).reshape(rows, stored)
                if tensor.added:
                    block += np.float32(tensor.added)
                if tensor.factor != 1:
                    block *= np.float32(tensor.factor)
            if d := tensor.head_dim:  # transformers rotates row i of a head with i + d/2, GGML row 2i with 2i + 1
                block = block.reshape(rows // d, 2, d // 2, columns).swapaxes(1, 2).reshape(rows, columns)
            yield block


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
