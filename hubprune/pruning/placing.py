"""Where two models are compared: device, dtype, and how much of their weights stays in memory.

transformers takes weights where they are in the files, mapped into memory, if they are used in their own dtype on the
CPU.  So a model of any size can be run there: each layer is let go as soon as it was used, and what the memory has no
room to keep is read from disk again in the next pass.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hubprune.core import devices, memory
from hubprune.core.config import read_config
from hubprune.core.console import size
from hubprune.core.neutral import load_with_report
from hubprune.core.weights import open_weights

SMALL_BYTES = 2**28
"""Models that take at most this in float32 are compared in it, and write as many tokens as they are asked for."""
FEW_TOKENS, FEWEST_TOKENS = 5, 3
"""New tokens of larger models, and of those that are read from disk for each: a KV cache is filled, then used twice."""
WORK_BYTES = 3 * 10**8
"""Room for states, logits and what libraries take."""
DEVICE_SHARE, CAST_SHARE = 0.9, 0.5
"""Share of a device's free memory that weights may fill, and of the machine's that copies in another dtype may."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where two models are compared, and how much of their weights is there to stay."""

    device: str
    dtype: str
    weight_bytes: int
    free_bytes: int
    room_bytes: int
    """For weights that are mapped."""
    read_bytes: int = 0
    """What of them is read from disk in every pass."""
    why: str = ""

    @property
    def most_tokens(self) -> int:
        """How many new tokens a text is worth."""
        if self.read_bytes:
            return FEWEST_TOKENS
        small = self.dtype == "float32" and self.weight_bytes <= SMALL_BYTES
        return sys.maxsize if small else FEW_TOKENS

    @property
    def told(self) -> str:
        """All of it in a line."""
        whole, free = size(self.weight_bytes), size(self.free_bytes)
        taken = f"{whole} of {free} free" if not self.read_bytes else (
            f"{free} free: {size(self.read_bytes)} of {whole} are read from disk in every pass"
        )  # fmt: skip
        return f"verifying on {self.device} in {self.dtype}{self.why}, {taken}"


def find_place(folder: Path, *, device: str, dtype: str) -> Place:
    """Choose device and dtype: in float32 where that is little, else in the dtype of the files or what `auto` is there.

    A removed sublayer adds exactly zero in any, so the tolerance is the same; for neurons see `comparing.narrow`.  What
    a GPU has no room for is computed on the CPU, which takes the weights where they are in the files.
    """
    config = devices.with_dtype(read_config(folder, quantized=True), folder)
    tensors = [tensor for _, tensor in open_weights(folder)]
    device, stored = devices.resolve_device(device), devices.stored_dtype(config)

    def taken(dtype: str, *, only_cast: bool = False) -> int:
        cast = (t for t in tensors if not only_cast or devices.STORED.get(t.dtype) != dtype)
        return sum(t.parameters for t in cast) * devices.COMPUTE_BITS[dtype] // 8

    def wished(place: str) -> str:
        small = taken("float32") <= SMALL_BYTES
        return "float32" if small else devices.resolve_dtype(dtype, config, device=place)

    why = ""
    if device != "cpu":
        there, free = wished(device), memory.device_bytes(device)
        if taken(there) + WORK_BYTES <= DEVICE_SHARE * free:
            return Place(device=device, dtype=there, weight_bytes=taken(there), free_bytes=free, room_bytes=0)
        why = f", since {device} has {size(free)} free"
    free = memory.available_bytes()
    here = next((d for d in (wished("cpu"), stored) if taken(d, only_cast=True) <= CAST_SHARE * free), stored)
    copied, whole = taken(here, only_cast=True), taken(here)
    room = max(0, free - copied - WORK_BYTES)
    return Place(
        device="cpu", dtype=here, weight_bytes=whole, free_bytes=free, room_bytes=room,
        read_bytes=max(0, whole - copied - room), why=why,
    )  # fmt: skip


def load_there(folder: str, place: Place, *, layers: str, own_code: bool) -> tuple[Any, Any]:
    """Load a model as a reader would, and what transformers says of the keys; `layers` names its decoder layers."""
    import torch

    where = {} if place.device == "cpu" else {"device_map": {"": place.device}}
    model, report = load_with_report(folder, dtype=getattr(torch, place.dtype), own_code=own_code, **where)
    if place.device == "cpu" and place.weight_bytes > SMALL_BYTES:
        modules = [*model.get_submodule(layers), model.get_output_embeddings()]
        let_go_after_use(modules, Path(folder), room_bytes=place.room_bytes)
    return model, report


def let_go_after_use(modules: Sequence[Any], folder: Path, *, room_bytes: int) -> None:
    """Take weights that are mapped from a folder's files out of this process's memory whenever their module was used.

    The page cache keeps them for the next pass, so long as they fit into the room; of the others it is told that they
    are not needed any more, lest they push out the first.  Nothing is lost: what is asked for again is in the files.
    Linux only; elsewhere the kernel finds out by itself.
    """
    if sys.platform != "linux":
        return
    files, kept = _mapped_files(folder), 0
    pieces = [_pieces(module, files) for module in modules]
    for module, own, following in zip(modules, pieces, [*pieces[1:], []], strict=True):
        taken = sum(end - begin for begin, end, _, _ in own)
        kept += taken
        if 2 * taken <= room_bytes:
            module.register_forward_pre_hook(partial(_advise, following, mmap.MADV_WILLNEED))
        module.register_forward_hook(partial(_advise, own, mmap.MADV_DONTNEED, forget=kept > room_bytes))


Piece = tuple[int, int, int, int]
"""First address, the one behind the last, descriptor of the file, offset in it; all at the borders of pages."""


def _mapped_files(folder: Path) -> list[Piece]:
    """Return where this process has mapped a folder's files of weights."""
    # In the cache of the Hub's client they are links to files that are called after their hash.
    weights, found = {str(path.resolve()) for path in folder.glob("*.safetensors")}, []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, _, offset, _, _, *path = line.split(maxsplit=5)
        if path and path[0] in weights:
            begin, end = (int(number, 16) for number in addresses.split("-"))
            found.append((begin, end, os.open(path[0], os.O_RDONLY), int(offset, 16)))
    return found


def _pieces(module: Any, files: Sequence[Piece]) -> list[Piece]:
    """Return what of the mapped files the parameters of a module are, whole pages; others of its parameters are none.

    Only what is known to be mapped may be let go: any other memory would be lost.
    """
    pieces, page = [], mmap.PAGESIZE
    for parameter in module.parameters():
        first, last = parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes
        for begin, end, file, offset in files:
            if begin <= first and last <= end:
                first, last = first // page * page, min(end, -(-last // page) * page)
                pieces.append((first, last, file, offset + first - begin))
    return pieces


def _advise(pieces: Sequence[Piece], advice: int, *_: Any, forget: bool = False) -> None:
    libc = ctypes.CDLL(None)
    for begin, end, file, offset in pieces:
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice)
        if forget:
            os.posix_fadvise(file, offset, end - begin, os.POSIX_FADV_DONTNEED)
