"""Large files by their SHA-256: git's pointers to them, and the store that holds them."""

import hashlib
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from hubprune.localhub import names
from hubprune.localhub.names import RefusedError

PART_BYTES = 32_000_000
"""Files above this size are uploaded in parts of it."""
POINTER_BYTES = 200
"""No pointer is as long as this, so larger blobs need not be looked at."""

# Files that go to the large file store whatever their size, as in the Hub's default .gitattributes.
_LARGE_SUFFIXES = (
    *(".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gguf", ".gz", ".h5", ".joblib", ".mlmodel", ".model"),
    *(".msgpack", ".npy", ".npz", ".onnx", ".ot", ".parquet", ".pb", ".pickle", ".pkl", ".pt", ".pth", ".rar"),
    *(".safetensors", ".tar", ".tflite", ".tgz", ".wasm", ".xz", ".zip", ".zst"),
)
_LARGE_BYTES = 10_000_000
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LARGE_SUFFIXES).encode()

_POINTER = re.compile(rb"version https://git-lfs.github.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d{1,15})\n")


@dataclass(frozen=True)
class Pointer:
    """What git keeps in place of a large file."""

    sha256: str
    size: int

    def encode(self) -> bytes:
        """Return the pointer file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


def parse_pointer(blob: bytes) -> Pointer | None:
    """Return the pointer that a blob holds, None for any other content."""
    match = _POINTER.fullmatch(blob)
    return Pointer(match[1].decode(), int(match[2])) if match else None


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Tell whether the Hub would keep a file out of git: by suffix, by size, or because it is binary.

    `sample` holds the file's first bytes.
    """
    return size >= _LARGE_BYTES or path.endswith(_LARGE_SUFFIXES) or b"\0" in sample


class LfsStore:
    """A folder of objects, each under its SHA-256; what does not match its name is not let in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Return where the object is, or would be."""
        return self._folder / sha256

    def size(self, sha256: str) -> int | None:
        """Return the object's size in bytes, None when it is not here."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def stored_bytes(self) -> int:
        """Return the bytes of all objects, those included that were put together from chunks for a download."""
        return sum(path.stat().st_size for path in self._folder.iterdir())

    def write(self, sha256: str, blocks: Iterable[bytes]) -> None:
        """Store an object, refusing one whose content does not match its name."""
        checksum = hashlib.sha256()
        with names.replacing(self.path(sha256)) as file:
            for block in blocks:
                checksum.update(block)
                file.write(block)
            if checksum.hexdigest() != sha256:
                raise RefusedError(400, "The content does not match its SHA-256")

    async def receive(self, sha256: str, blocks: AsyncIterator[bytes], *, part: int | None) -> str:
        """Store an object, or one part of it, as it comes in, and return its ETag.

        The checksum of a part is looked at when the parts are joined.
        """
        checksum = hashlib.sha256()
        with names.replacing(self.path(sha256) if part is None else self._part(sha256, part)) as file:
            async for block in blocks:
                checksum.update(block)
                file.write(block)
            if part is None and checksum.hexdigest() != sha256:
                raise RefusedError(400, "The content does not match its SHA-256")
        return f'"{checksum.hexdigest()[:32]}"'

    def join(self, sha256: str, numbers: list[int]) -> None:
        """Make an object of its uploaded parts, which have to be all there, numbered from 1."""
        if self.size(sha256) is not None:  # somebody else has just uploaded the same file
            return
        parts = [self._part(sha256, number) for number in numbers]
        if numbers != list(range(1, len(numbers) + 1)) or not all(part.exists() for part in parts):
            raise RefusedError(400, "Some parts of the file are missing")
        self.write(sha256, (part.read_bytes() for part in parts))
        for part in parts:
            part.unlink(missing_ok=True)

    def _part(self, sha256: str, number: int) -> Path:
        return self._folder / f"{sha256}.part{number:05d}"
