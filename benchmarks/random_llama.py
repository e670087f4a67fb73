"""Write Llama checkpoints of random weights, of any size, in little memory and without torch."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

Shapes = dict[str, tuple[int, ...]]
BLOCK_NUMBERS = 2**18
VOCABULARY = {"<unk>": 0, "<s>": 1, "</s>": 2}


@dataclass(frozen=True)
class Dtype:
    """A dtype, and how random bits become numbers in it; patterns are the little-endian bytes of one number."""

    config_name: str
    random_bits: bytes
    """Pattern of the bits that stay random: sign and mantissa."""
    exponent: bytes
    """Pattern of the exponent, with which a number is plus or minus 2^-6 to 2^-5."""
    one: bytes
    """The number 1."""

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return len(self.one)


DTYPES = {
    "BF16": Dtype("bfloat16", *(struct.pack("<H", bits) for bits in (0x807F, 121 << 7, 127 << 7))),
    "F32": Dtype("float32", *(struct.pack("<I", bits) for bits in (0x807FFFFF, 121 << 23, 127 << 23))),
}


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    dtype: str
    """As safetensors spells it."""
    tied: bool = True
    """Whether the head is the embedding."""

    def config(self) -> dict[str, Any]:
        """The config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied,
            "torch_dtype": DTYPES[self.dtype].config_name,
            "vocab_size": self.vocab_size,
        }

    def tensors(self) -> Shapes:
        """Name and shape of every tensor."""
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for number in range(self.num_hidden_layers):
            shapes |= self._layer(f"model.layers.{number}.")
        head: Shapes = {} if self.tied else {"lm_head.weight": (self.vocab_size, self.hidden_size)}
        return {**shapes, "model.norm.weight": (self.hidden_size,), **head}

    def _layer(self, prefix: str) -> Shapes:
        hidden, wide = self.hidden_size, self.intermediate_size
        keys = hidden // self.num_attention_heads * self.num_key_value_heads
        shapes: Shapes = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, hidden),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (wide, hidden),
            "mlp.up_proj.weight": (wide, hidden),
            "mlp.down_proj.weight": (hidden, wide),
        }
        return {prefix + name: shape for name, shape in shapes.items()}

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(map(_count, self.tensors().values()))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return self.parameters * DTYPES[self.dtype].size

    def __str__(self) -> str:
        size = f"{self.parameters / 1e6:,.0f} M parameters in {DTYPES[self.dtype].config_name}"
        return f"random Llama of {self.num_hidden_layers} layers, {size}, {self.weight_bytes / 1e9:.2f} GB"


def write_llama(folder: Path, shape: LlamaShape, *, shards: int, seed: int = 0) -> None:
    """Write a checkpoint into a new folder: sharded weights with their index, config.json, a tokenizer of three tokens.

    The weights are what a checkpoint of that shape holds, the same ones for a seed each time; norms are 1.
    """
    folder.mkdir()
    _write_json(folder / "config.json", shape.config())
    _write_tokenizer(folder)
    source, weight_map = random.Random(seed), dict[str, str]()
    for number, part in enumerate(_split(shape.tensors(), shards), start=1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        weight_map |= dict.fromkeys(part, name)
        with (folder / name).open("wb") as file:
            _write_shard(file, part, shape.dtype, source)
    index = {"metadata": {"total_size": shape.weight_bytes}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _count(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1] if len(shape) == 2 else shape[0]


def _split(tensors: Shapes, shards: int) -> Iterator[Shapes]:
    """Yield `shards` runs of consecutive tensors with about the same number of weights."""
    total, done, part = sum(map(_count, tensors.values())), 0, Shapes()
    for name, shape in tensors.items():
        part[name] = shape
        before, done = done, done + _count(shape)
        if done * shards // total > before * shards // total:
            yield part
            part = {}


def _write_shard(file: BinaryIO, tensors: Shapes, dtype: str, source: random.Random) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        end = offset + _count(shape) * DTYPES[dtype].size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for shape in tensors.values():
        for block in _blocks(shape, DTYPES[dtype], source):
            file.write(block)


def _blocks(shape: tuple[int, ...], dtype: Dtype, source: random.Random) -> Iterator[bytes]:
    """Yield the bytes of a matrix of random numbers, or of a norm of ones."""
    if len(shape) == 1:
        yield dtype.one * shape[0]
        return
    for begin in range(0, _count(shape), BLOCK_NUMBERS):
        yield _random_numbers(min(BLOCK_NUMBERS, _count(shape) - begin), dtype, source)


def _random_numbers(count: int, dtype: Dtype, source: random.Random) -> bytes:
    """Make the bytes of `count` random numbers, by arithmetic on one long integer that holds them all."""
    size = count * dtype.size
    bits = source.getrandbits(8 * size) & _repeated(dtype.random_bits, count) | _repeated(dtype.exponent, count)
    return bits.to_bytes(size, "little")


@cache
def _repeated(pattern: bytes, count: int) -> int:
    return int.from_bytes(pattern * count, "little")


def _write_tokenizer(folder: Path) -> None:
    model = {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "<unk>"}
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    rest: dict[str, Any] = {**dict.fromkeys(parts), "added_tokens": []}
    _write_json(folder / "tokenizer.json", {"version": "1.0", **rest, "model": model})
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
