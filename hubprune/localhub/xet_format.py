"""The two binary formats of the Xet protocol: xorbs, which hold chunks, and shards, which say how files are made.

Both come from clients, so every length is checked before it is used; what does not fit raises `XetFormatError`.
The formats are described at https://huggingface.co/docs/xet (xorb and shard).
"""

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

import lz4.frame

SHARD_TAG = b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9")
_BOOKEND = b"\xff" * 32
_RECORD_BYTES = 48
_SHARD_FOOTER_BYTES = 200
_HAS_VERIFICATION = 1 << 31
_HAS_METADATA = 1 << 30
# One chunk in so many, chosen by its hash, is offered to every client for deduplication.
_GLOBAL_DEDUP_MODULUS = 1024

_XORB_FOOTER = b"XETBLOB"
_CHUNK_HEADER_BYTES = 8
_MAX_CHUNK_BYTES = 1 << 20  # the client cuts at 128 KiB
_STORED, _LZ4, _GROUPED_LZ4 = 0, 1, 2


class XetFormatError(ValueError):
    """The bytes are not what they should be; the text says where."""


@dataclass(frozen=True)
class Chunk:
    """Where a chunk lies in its xorb."""

    offset: int
    packed_bytes: int
    """With the header of 8 bytes."""
    unpacked_bytes: int
    scheme: int
    """0 stored, 1 LZ4, 2 LZ4 after grouping every fourth byte."""


@dataclass(frozen=True)
class Term:
    """A run of chunks of one xorb: the part of a file that they hold."""

    xorb: str
    start: int
    end: int
    """One past the last chunk."""
    unpacked_bytes: int


@dataclass(frozen=True)
class FileRecipe:
    """How a file is put together from chunks."""

    file_hash: str
    sha256: str | None
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return sum(term.unpacked_bytes for term in self.terms)


@dataclass(frozen=True)
class Shard:
    """The content of a shard, as far as a server needs it."""

    files: tuple[FileRecipe, ...]
    chunk_hashes: dict[str, tuple[bytes, ...]]
    """Xorb -> hashes of its chunks, in order; only the xorbs that came with this shard."""
    xorb_section: bytes
    """The records behind `chunk_hashes`, verbatim."""

    def dedup_keys(self) -> set[str]:
        """Return the chunks by which other clients may find this shard: one in 1024, and the first of every file."""
        every = (chunk for chunks in self.chunk_hashes.values() for chunk in chunks)
        keys = {merkle_hex(c) for c in every if struct.unpack_from("<Q", c, 24)[0] % _GLOBAL_DEDUP_MODULUS == 0}
        for first in (file.terms[0] for file in self.files if file.terms):
            chunks = self.chunk_hashes.get(first.xorb, ())
            keys |= {merkle_hex(chunk) for chunk in chunks[first.start : first.start + 1]}
        return keys


def merkle_hex(raw: bytes) -> str:
    """Return a hash as it stands in addresses: four little-endian 64-bit numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


class _Records:
    """Reads fixed records of 48 bytes one after the other."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self.offset = offset

    def next(self) -> bytes:
        """Return the record that stands here, and go on to the next."""
        record = self._data[self.offset : self.offset + _RECORD_BYTES]
        if len(record) < _RECORD_BYTES:
            raise XetFormatError(f"the shard ends inside the record at byte {self.offset}")
        self.offset += _RECORD_BYTES
        return record

    def take(self, count: int) -> list[bytes]:
        """Return the next `count` records."""
        # Checked first, so that a made-up count cannot ask for gigabytes.
        if count * _RECORD_BYTES > len(self._data) - self.offset:
            raise XetFormatError(f"the shard has no room for {count} records at byte {self.offset}")
        return [self.next() for _ in range(count)]


def parse_shard(data: bytes) -> Shard:
    """Read a shard: a header, records of files, records of xorbs, each list closed by a bookend."""
    if data[:32] != SHARD_TAG:
        raise XetFormatError("this is not a shard")
    records = _Records(data, _RECORD_BYTES)
    files = []
    while (head := records.next())[:32] != _BOOKEND:
        flags, count = struct.unpack_from("<II", head, 32)
        terms = []
        for record in records.take(count):
            _, size, start, end = struct.unpack_from("<4I", record, 32)
            terms.append(Term(merkle_hex(record[:32]), start, end, size))
        if flags & _HAS_VERIFICATION:
            records.take(count)
        sha256 = merkle_hex(records.next()[:32]) if flags & _HAS_METADATA else None
        files.append(FileRecipe(merkle_hex(head[:32]), sha256, tuple(terms)))
    section_start = records.offset
    chunk_hashes = {}
    while (head := records.next())[:32] != _BOOKEND:
        (count,) = struct.unpack_from("<I", head, 36)
        chunk_hashes[merkle_hex(head[:32])] = tuple(record[:32] for record in records.take(count))
    return Shard(tuple(files), chunk_hashes, data[section_start : records.offset])


def dedup_shard(xorb_section: bytes, *, valid_seconds: int = 86400) -> bytes:
    """Wrap records of xorbs into a shard without files: the answer to a question for global deduplication."""
    body = SHARD_TAG + struct.pack("<QQ", 2, _SHARD_FOOTER_BYTES) + _BOOKEND + bytes(16) + xorb_section
    now, end = int(time.time()), len(body)
    # Version, start of files and of xorbs, then three lookup tables, all empty, each as position and count.
    footer = struct.pack("<9Q", 1, _RECORD_BYTES, 2 * _RECORD_BYTES, end, 0, end, 0, end, 0)
    footer += bytes(32)  # no key: the chunk hashes stand there in clear
    footer += struct.pack("<12Q", now, now + valid_seconds, *[0] * 9, end)
    return body + footer


def parse_xorb(data: bytes) -> tuple[Chunk, ...]:
    """Find the chunks of a xorb, which may end with a footer."""
    chunks, at = [], 0
    while at < len(data) and not data.startswith(_XORB_FOOTER, at):
        header = data[at : at + _CHUNK_HEADER_BYTES]
        if len(header) < _CHUNK_HEADER_BYTES or header[0] != 0:
            raise XetFormatError(f"no chunk begins at byte {at} of the xorb")
        packed = _CHUNK_HEADER_BYTES + int.from_bytes(header[1:4], "little")
        chunk = Chunk(at, packed, int.from_bytes(header[5:8], "little"), header[4])
        if at + packed > len(data) or chunk.unpacked_bytes > _MAX_CHUNK_BYTES or chunk.scheme > _GROUPED_LZ4:
            raise XetFormatError(f"the chunk at byte {at} of the xorb does not fit")
        chunks.append(chunk)
        at += packed
    if not chunks:
        raise XetFormatError("the xorb holds no chunk")
    return tuple(chunks)


def unpack_chunk(packed: bytes, chunk: Chunk) -> bytes:
    """Return the content of a chunk, given its packed bytes with their header."""
    content = packed[_CHUNK_HEADER_BYTES:]
    if chunk.scheme != _STORED:
        try:
            # One byte more than promised is enough to see that the promise is broken.
            content = lz4.frame.LZ4FrameDecompressor().decompress(content, max_length=chunk.unpacked_bytes + 1)
        except RuntimeError as error:
            raise XetFormatError(f"a chunk cannot be unpacked: {error}") from error
    if len(content) != chunk.unpacked_bytes:
        raise XetFormatError(f"a chunk of {chunk.unpacked_bytes} bytes unpacks to {len(content)}")
    if chunk.scheme != _GROUPED_LZ4:
        return content
    # Bytes 0, 4, 8, ... come first, then 1, 5, 9, ... and so on.
    mixed, at = bytearray(len(content)), 0
    for lane in range(4):
        count = len(range(lane, len(content), 4))
        mixed[lane::4] = content[at : at + count]
        at += count
    return bytes(mixed)


def check_recipe(recipe: FileRecipe, chunks_of: Sequence[tuple[Chunk, ...]]) -> None:
    """Raise unless every term of the recipe, given the chunks of its xorb, is made of chunks that are there."""
    for term, chunks in zip(recipe.terms, chunks_of, strict=True):
        if not 0 <= term.start < term.end <= len(chunks):
            raise XetFormatError(f"xorb {term.xorb} has no chunks {term.start} to {term.end}")
        held = sum(chunk.unpacked_bytes for chunk in chunks[term.start : term.end])
        if held != term.unpacked_bytes:
            raise XetFormatError(f"a term of {term.unpacked_bytes} bytes is made of chunks of {held}")
