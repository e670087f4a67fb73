"""Large files: git's pointers to them, the store of whole files by their SHA-256, and the store of Xet's chunks."""

import hashlib
import re
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune.localhub import checks, xet_format
from hubprune.localhub.checks import RefusedError
from hubprune.localhub.xet_format import Chunk, FileRecipe, Shard, XetFormatError

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
        with checks.replacing(self.path(sha256)) as file:
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
        with checks.replacing(self.path(sha256) if part is None else self._part(sha256, part)) as file:
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


@dataclass(frozen=True)
class Span:
    """The chunks of one term that hold some of the wanted bytes."""

    xorb: str
    start: int
    end: int
    """One past the last chunk."""
    chunks: tuple[Chunk, ...]

    def describe(self) -> dict[str, Any]:
        """Return the term of a reconstruction."""
        unpacked = sum(chunk.unpacked_bytes for chunk in self.chunks)
        return {"hash": self.xorb, "unpacked_length": unpacked, "range": {"start": self.start, "end": self.end}}

    def locate(self, url: str) -> dict[str, Any]:
        """Return where the packed bytes of the span can be fetched, both ends included."""
        first, last = self.chunks[0], self.chunks[-1]
        packed = {"start": first.offset, "end": last.offset + last.packed_bytes - 1}
        return {"range": {"start": self.start, "end": self.end}, "url": url, "url_range": packed}


class XetStore:
    """Xorbs and shards in a folder, with an index of the shards in memory.

    The index is read from the shards at the start. Another server on the same folder may add to it, so the folder is
    looked at again before anything is said to be missing.
    """

    def __init__(self, folder: Path) -> None:
        self._xorbs, self._shards = folder / "xorbs", folder / "shards"
        for place in (self._xorbs, self._shards):
            place.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._seen_at = -1  # when the folder of shards had last changed, in nanoseconds
        self._files: dict[str, FileRecipe] = {}
        self._by_sha256: dict[str, FileRecipe] = {}
        self._dedup: dict[str, str] = {}  # chunk -> name of the shard that describes it
        self._chunks: dict[str, tuple[Chunk, ...]] = {}
        self._load_new_shards()

    def put_xorb(self, xorb: str, data: bytes) -> bool:
        """Store a xorb and say whether it was new."""
        path = self.xorb_path(xorb)
        if path.exists():
            return False
        try:
            self._chunks[xorb] = xet_format.parse_xorb(data)
        except XetFormatError as error:
            raise RefusedError(400, f"Not a xorb: {error}") from error
        checks.write_bytes(path, data)
        return True

    def put_shard(self, data: bytes) -> None:
        """Store a shard whose files are made of chunks that are all here."""
        try:
            shard = xet_format.parse_shard(data)
            for file in shard.files:
                xet_format.check_recipe(file, [self._chunks_of(term.xorb) for term in file.terms])
                if file.sha256 is None or file.sha256 in self._by_sha256:
                    continue
                checksum = hashlib.sha256()
                for block in self.content(file):
                    checksum.update(block)
                if checksum.hexdigest() != file.sha256:  # whoever else has that file would get this one
                    raise XetFormatError("the content of a file does not match its SHA-256")
        except XetFormatError as error:
            raise RefusedError(400, f"Not a valid shard: {error}") from error
        name = f"{hashlib.sha256(data).hexdigest()}.mdb"
        checks.write_bytes(self._shards / name, data)
        self._register(name, shard)

    def stored_bytes(self) -> int:
        """Return the bytes of all xorbs, as the clients packed them."""
        return sum(path.stat().st_size for path in self._xorbs.iterdir())

    def by_sha256(self, sha256: str) -> FileRecipe | None:
        """Return the recipe of the file with this SHA-256, None when it did not come through Xet."""
        if sha256 not in self._by_sha256:
            self._load_new_shards()
        return self._by_sha256.get(sha256)

    def by_hash(self, file_hash: str) -> FileRecipe:
        """Return the recipe of the file with this Xet hash."""
        if file_hash not in self._files:
            self._load_new_shards()
        if file_hash not in self._files:
            raise RefusedError(404, "No file of this hash")
        return self._files[file_hash]

    def dedup_answer(self, chunk: str) -> bytes:
        """Return a shard that says which xorb holds the chunk, and what else that xorb holds."""
        if chunk not in self._dedup:
            self._load_new_shards()
        if chunk not in self._dedup:
            raise RefusedError(404, "No chunk of this hash is shared")
        shard = xet_format.parse_shard((self._shards / self._dedup[chunk]).read_bytes())
        return xet_format.dedup_shard(shard.xorb_section)

    def xorb_path(self, xorb: str) -> Path:
        """Return where the xorb is, or would be."""
        return self._xorbs / xorb

    def spans(self, recipe: FileRecipe, start: int, end: int) -> tuple[int, list[Span]]:
        """Find the chunks that hold the bytes from `start` to before `end`.

        Also returns how many bytes of the first chunk come before `start`.
        """
        skip, at = 0, 0
        spans: list[Span] = []
        for term in recipe.terms:
            wanted: list[tuple[int, Chunk]] = []
            for number, chunk in enumerate(self._chunks_of(term.xorb)[term.start : term.end], term.start):
                if at < end and at + chunk.unpacked_bytes > start:
                    skip = start - at if not spans and not wanted else skip
                    wanted.append((number, chunk))
                at += chunk.unpacked_bytes
            if wanted:
                first, last = wanted[0][0], wanted[-1][0]
                spans.append(Span(term.xorb, first, last + 1, tuple(chunk for _, chunk in wanted)))
        return skip, spans

    def content(self, recipe: FileRecipe) -> Iterator[bytes]:
        """Yield the file's content, term by term."""
        for term in recipe.terms:
            yield self._unpack(term.xorb, self._chunks_of(term.xorb)[term.start : term.end])

    def first_bytes(self, recipe: FileRecipe, count: int) -> bytes:
        """Return the beginning of a file, unpacking no more chunks than it takes."""
        _, spans = self.spans(recipe, 0, min(count, recipe.size))
        return b"".join(self._unpack(span.xorb, span.chunks) for span in spans)[:count]

    def _unpack(self, xorb: str, chunks: Sequence[Chunk]) -> bytes:
        with self.xorb_path(xorb).open("rb") as file:
            file.seek(chunks[0].offset)
            return b"".join(xet_format.unpack_chunk(file.read(chunk.packed_bytes), chunk) for chunk in chunks)

    def _chunks_of(self, xorb: str) -> tuple[Chunk, ...]:
        if xorb not in self._chunks:
            try:
                self._chunks[xorb] = xet_format.parse_xorb(self.xorb_path(xorb).read_bytes())
            except FileNotFoundError as error:
                raise XetFormatError(f"xorb {xorb} is unknown") from error
        return self._chunks[xorb]

    def _load_new_shards(self) -> None:
        if (changed_at := self._shards.stat().st_mtime_ns) == self._seen_at:
            return
        for path in sorted(self._shards.glob("*.mdb")):
            if path.name not in self._known:
                self._register(path.name, xet_format.parse_shard(path.read_bytes()))
        self._seen_at = changed_at

    def _register(self, name: str, shard: Shard) -> None:
        with self._lock:
            self._known.add(name)
            for file in shard.files:
                self._files[file.file_hash] = file
                if file.sha256 is not None:
                    self._by_sha256[file.sha256] = file
            for chunk in shard.dedup_keys():
                self._dedup.setdefault(chunk, name)
