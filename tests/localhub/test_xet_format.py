import contextlib
import hashlib
import struct

import lz4.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubprune.localhub.checks import RefusedError
from hubprune.localhub.large_files import XetStore
from hubprune.localhub.xet_format import (
    SHARD_TAG,
    XetFormatError,
    dedup_shard,
    merkle_hex,
    parse_shard,
    parse_xorb,
    unpack_chunk,
)

BOOKEND = b"\xff" * 32 + bytes(16)
XORB, FILE = (bytes([n]) * 32 for n in (1, 2))
# As the hashes of Xet are written: four numbers, each the other way round.
SHA256 = struct.pack("<4Q", *struct.unpack(">4Q", hashlib.sha256(b"hello world").digest()))


def packed(content: bytes, scheme: int = 0) -> bytes:
    if scheme == 2:
        content = b"".join(content[lane::4] for lane in range(4))
    body = lz4.frame.compress(content) if scheme else content
    return bytes([0]) + len(body).to_bytes(3, "little") + bytes([scheme]) + len(content).to_bytes(3, "little") + body


def shard(*, start=0, end=2, size=11, chunks=2, sha256=SHA256) -> bytes:
    """One file made of one term: the chunks `hello ` and `world`."""
    verified_with_metadata = (1 << 31) | (1 << 30)
    return b"".join(
        [
            SHARD_TAG + struct.pack("<QQ", 2, 0),
            FILE + struct.pack("<IIQ", verified_with_metadata, 1, 0),
            XORB + struct.pack("<4I", 0, size, start, end),
            bytes(48),
            sha256 + bytes(16),
            BOOKEND,
            XORB + struct.pack("<4I", 0, chunks, 11, 27),
            *(bytes([7 + n]) * 32 + bytes(16) for n in range(chunks)),
            BOOKEND,
        ]
    )


@pytest.fixture
def store(tmp_path):
    store = XetStore(tmp_path)
    assert store.put_xorb(merkle_hex(XORB), packed(b"hello ") + packed(b"world", 1))
    return store


def test_a_shard_is_read_whole():
    parsed = parse_shard(shard())
    (file,) = parsed.files
    assert (file.file_hash, file.sha256, file.size) == (merkle_hex(FILE), merkle_hex(SHA256), 11)
    assert list(parsed.chunk_hashes) == [merkle_hex(XORB)]
    assert parsed.dedup_keys() == {merkle_hex(bytes([7]) * 32)}


@pytest.mark.parametrize(("last", "shared"), [(0, True), (1024, True), (7 << 10, True), (1, False), (512, False)])
def test_a_chunk_is_shared_where_its_hash_ends_in_a_multiple_of_1024(last, shared):
    chunk = bytes([8]) * 24 + struct.pack("<Q", last)
    parsed = parse_shard(shard().replace(bytes([8]) * 32, chunk))
    assert (merkle_hex(chunk) in parsed.dedup_keys()) == shared


def test_the_answer_for_deduplication_is_a_shard_without_files():
    answer = parse_shard(dedup_shard(parse_shard(shard()).xorb_section))
    assert answer.files == ()
    assert answer.chunk_hashes == parse_shard(shard()).chunk_hashes


@pytest.mark.parametrize("scheme", [0, 1, 2])
@given(content=st.binary(min_size=1, max_size=500))
def test_a_chunk_unpacks_to_what_was_packed(scheme, content):
    xorb = packed(b"before") + packed(content, scheme)
    _, chunk = parse_xorb(xorb)
    assert unpack_chunk(xorb[chunk.offset :], chunk)[: len(content)] == content


def test_a_chunk_that_unpacks_to_more_than_it_says_is_refused():
    bomb = lz4.frame.compress(bytes(1 << 20))
    xorb = bytes([0]) + len(bomb).to_bytes(3, "little") + bytes([1]) + (10).to_bytes(3, "little") + bomb
    (chunk,) = parse_xorb(xorb)
    with pytest.raises(XetFormatError, match="a chunk of 10 bytes"):
        unpack_chunk(xorb, chunk)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: SHARD_TAG + bytes(16) + tail))
def test_junk_is_no_shard(junk):
    with pytest.raises(XetFormatError):
        parse_shard(junk)


@given(st.data())
def test_a_damaged_shard_is_read_or_refused(data):
    damaged = bytearray(shard())
    for at in data.draw(st.lists(st.integers(48, len(damaged) - 1), max_size=5)):
        damaged[at] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(damaged)))
    with contextlib.suppress(XetFormatError):
        parse_shard(bytes(damaged[:length])).dedup_keys()


@given(st.binary(max_size=200))
def test_junk_is_no_xorb_unless_it_reads_as_one(junk):
    try:
        chunks = parse_xorb(junk)
    except XetFormatError:
        return
    assert chunks[-1].offset + chunks[-1].packed_bytes <= len(junk)


@pytest.mark.parametrize("change", [{"end": 3}, {"start": 2}, {"size": 12}, {"start": 1, "end": 1}])
def test_a_shard_has_to_fit_its_xorbs(store, change):
    with pytest.raises(RefusedError) as error:
        store.put_shard(shard(**change))
    assert error.value.status == 400


def test_a_file_that_is_not_what_its_sha256_says_is_refused(store):
    with pytest.raises(RefusedError, match="does not match its SHA-256"):
        store.put_shard(shard(sha256=bytes([3]) * 32))
    assert store.by_sha256(merkle_hex(bytes([3]) * 32)) is None


def test_a_shard_with_an_unknown_xorb_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="is unknown"):
        XetStore(tmp_path).put_shard(shard())


def test_a_file_is_found_by_both_of_its_hashes_and_put_together(store):
    store.put_shard(shard())
    recipe = store.by_sha256(merkle_hex(SHA256))
    assert recipe is store.by_hash(merkle_hex(FILE))
    assert b"".join(store.content(recipe)) == b"hello world"


@pytest.mark.parametrize(
    ("start", "end", "skip", "chunks"), [(0, 11, 0, (0, 2)), (7, 9, 1, (1, 2)), (3, 6, 3, (0, 1)), (5, 7, 5, (0, 2))]
)
def test_a_range_of_a_file_needs_only_its_own_chunks(store, start, end, skip, chunks):
    store.put_shard(shard())
    found_skip, (span,) = store.spans(store.by_hash(merkle_hex(FILE)), start, end)
    assert (found_skip, (span.start, span.end)) == (skip, chunks)


def test_another_store_on_the_same_folder_sees_new_files(store, tmp_path):
    other = XetStore(tmp_path)
    store.put_shard(shard())
    assert other.by_sha256(merkle_hex(SHA256)) == store.by_sha256(merkle_hex(SHA256))


def test_a_chunk_that_another_server_was_told_of_is_found(store, tmp_path):
    other = XetStore(tmp_path)
    other.put_shard(shard())
    assert parse_shard(store.dedup_answer(merkle_hex(bytes([7]) * 32))).chunk_hashes.keys() == {merkle_hex(XORB)}
    with pytest.raises(RefusedError, match="No chunk of this hash"):
        store.dedup_answer(merkle_hex(bytes([8]) * 32))
