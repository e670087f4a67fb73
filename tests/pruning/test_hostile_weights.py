"""Weights come from strangers: what is broken or hostile gets one clear error and leaves nothing behind."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import safetensors
from bases import LLAMA, parts, plan, random_tensors, raw_file, write_base, write_tensors
from hypothesis import given
from hypothesis import strategies as st

from hubprune.core.artifacts import BaseCheckpoint
from hubprune.core.config import check_config, read_config
from hubprune.core.errors import CheckpointError, HubpruneError, UnsupportedFormatError
from hubprune.core.files import staged_folder
from hubprune.core.weights import INDEX_NAME, SINGLE_NAME, open_weights, read_shard
from hubprune.pruning.checkpoint import write_checkpoint

SMALL = {**LLAMA, "num_hidden_layers": 2, "hidden_size": 4, "intermediate_size": 4, "vocab_size": 8}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NORM = "model.norm.weight"


def refused(folder: Path, config=SMALL) -> HubpruneError:
    """The error that pruning the folder ends with; nothing may be left of the attempt."""
    out = folder.parent / "out" / "pruned"
    base = BaseCheckpoint(name="tiny", commit=None, folder=str(folder), config=config, files=())
    with pytest.raises(HubpruneError) as caught, staged_folder(out) as staged:
        write_checkpoint(base, plan(config["num_hidden_layers"], attn=[0]), staged, advance=lambda _: None)
    assert list(out.parent.iterdir()) == []
    return caught.value


@pytest.fixture
def single(tmp_path):
    """A valid base of one file."""
    return Path(write_base(tmp_path / "base", SMALL).folder)


@pytest.fixture
def sharded(tmp_path):
    """A valid base of two shards and an index."""
    return Path(write_base(tmp_path / "base", SMALL, shards=2).folder)


def change_header(path, change):
    header, data = parts(path)
    change(header)
    path.write_bytes(raw_file(header, data))


def entry(name, **changes):
    """A change to one tensor's entry."""
    return lambda header: header[name].update(changes)


def moved(begin, end):
    """A change to a tensor's offsets, relative to what they are."""

    def change(header):
        offsets = header[NORM]["data_offsets"]
        header[NORM]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

    return change


HEADERS = {
    "overlap": (moved(-16, -16), "overlaps another tensor"),
    "hole": (moved(4, 4), "leaves a hole before it"),
    "too few bytes": (moved(0, -4), r"has 12 bytes for shape \[4\] in F32"),
    "backwards": (entry(NORM, data_offsets=[16, 0]), r"has the offsets \[16, 0\]"),
    "one offset": (entry(NORM, data_offsets=[16]), r"has the offsets \[16\]"),
    "float offset": (entry(NORM, data_offsets=[0.0, 16.0]), "has the offsets"),
    "negative offset": (entry(NORM, data_offsets=[-16, 0]), "has the offsets"),
    "huge offset": (entry(NORM, data_offsets=[2**63, 2**63 + 16]), "has the offsets"),
    "negative shape": (entry(NORM, shape=[-2, -2]), r"has the shape \[-2, -2\]"),
    "bool shape": (entry(NORM, shape=[4, True]), r"has the shape \[4, True\]"),
    "shape is text": (entry(NORM, shape="4"), "has the shape '4'"),
    "shape too large to multiply": (entry(NORM, shape=[2**62, 2**62]), "bytes for shape"),
    "unknown dtype": (entry(NORM, dtype="F33"), "has the unknown dtype 'F33'"),
    "dtype is a list": (entry(NORM, dtype=["F32"]), "has the unknown dtype"),
    "extra key": (entry(NORM, code="x"), "entry of unknown form"),
    "missing key": (lambda h: h[NORM].pop("shape"), "entry of unknown form"),
    "entry is a number": (lambda h: h.update({NORM: 3}), "entry of unknown form"),
    "metadata of numbers": (lambda h: h.update(__metadata__={"format": 1}), "not a map of strings"),
    "metadata is a list": (lambda h: h.update(__metadata__=["pt"]), "not a map of strings"),
    "bytes that nobody owns": (lambda h: h.pop(NORM), "16 bytes that its header does not describe"),
    "more than there is": (
        lambda h: h.update(z={"dtype": "U8", "shape": [9], "data_offsets": [h[NORM]["data_offsets"][1]] * 2}),
        "has 0 bytes for shape",
    ),
}


@pytest.mark.parametrize(("change", "message"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_refused(single, change, message):
    change_header(single / SINGLE_NAME, change)
    error = refused(single)
    assert isinstance(error, CheckpointError)
    assert SINGLE_NAME in error.message
    assert re.search(message, error.message)


def test_a_header_that_describes_more_than_the_file_has_is_refused(single):
    path = single / SINGLE_NAME
    path.write_bytes(path.read_bytes()[:-1])
    assert re.search(r"is truncated: its header describes (\d+) bytes, the file has \d+", refused(single).message)


BYTES = {
    "empty": (b"", "is no safetensors file: it has 0 bytes"),
    "seven bytes": (b"\x01" * 7, "it has 7 bytes"),
    "length only": (struct.pack("<Q", 2), "header of 2 bytes, file of 8"),
    "header longer than the file": (struct.pack("<Q", 100) + b"{}", "header of 100 bytes, file of 10"),
    "absurd length": (b"\xff" * 8 + b"{}", "header of 18446744073709551615 bytes"),
    "cut inside the header": (raw_file({"a": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}})[:20], "truncated"),
    "no JSON": (raw_file(b"{'a': 1}"), "is no valid JSON"),
    "JSON list": (raw_file(b"[]"), "is no JSON object"),
    "UTF-16": (raw_file("{}".encode("utf-16")), "is no valid JSON"),
    "no UTF-8": (raw_file(b'{"\xff": 1}'), "is no valid JSON"),
    "very deep": (raw_file(b'{"a":' + b"[" * 100_000), "is no valid JSON"),
    "number of 5000 digits": (raw_file(b'{"a": ' + b"1" * 5000 + b"}"), "is no valid JSON"),
    "the same tensor twice": (
        raw_file(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[0],'
            b'"data_offsets":[1,1]}}',
            b"x",
        ),
        "has the key 'a' twice",
    ),
    "a key of an entry twice": (
        raw_file(b'{"a":{"dtype":"U8","shape":[2],"shape":[1],"data_offsets":[0,1]}}', b"x"),
        "has the key 'shape' twice",
    ),
    "no tensors": (raw_file({}), r"has no model.layers.0.\w+ to drop"),
}


@pytest.mark.parametrize(("content", "message"), BYTES.values(), ids=BYTES)
def test_a_file_that_is_no_safetensors_file_is_refused(single, content, message):
    (single / SINGLE_NAME).write_bytes(content)
    error = refused(single)
    assert isinstance(error, CheckpointError)
    assert re.search(message, error.message)


def change_index(folder, change):
    path = folder / INDEX_NAME
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def mapped(name, shard):
    """A change of one tensor's shard in the index."""
    return lambda index: index["weight_map"].__setitem__(name, shard)


INDEXES = {
    "missing file": (mapped(NORM, "gone.safetensors"), "names the shard 'gone.safetensors', which does not exist"),
    "parent folder": (mapped(NORM, "../secret.safetensors"), "outside its folder or of another kind: '../secret"),
    "absolute path": (mapped(NORM, "/etc/x.safetensors"), "outside its folder or of another kind"),
    "subfolder": (mapped(NORM, "sub/x.safetensors"), "outside its folder or of another kind"),
    "backslash": (mapped(NORM, "..\\x.safetensors"), "outside its folder or of another kind"),
    "null byte": (mapped(NORM, "x\0.safetensors"), "outside its folder or of another kind"),
    "newline": (mapped(NORM, "x.safetensors\n"), "outside its folder or of another kind"),
    "other kind": (mapped(NORM, "config.json"), "outside its folder or of another kind"),
    "number": (mapped(NORM, 1), "not a map of strings"),
    "wrong shard": (mapped(NORM, FIRST), "the shards disagree, first about 'model.norm.weight'"),
    "tensor that is in no shard": (mapped("more", SECOND), "the shards disagree, first about 'more'"),
    "tensor that is in no index": (lambda index: index["weight_map"].pop(NORM), "the shards disagree"),
    "empty weight_map": (lambda index: index.update(weight_map={}), "has no weight_map"),
    "no weight_map": (lambda index: index.pop("weight_map"), "has no weight_map"),
    "weight_map is a list": (lambda index: index.update(weight_map=["a"]), "not a map of strings"),
}


@pytest.mark.parametrize(("change", "message"), INDEXES.values(), ids=INDEXES)
def test_an_index_that_lies_is_refused(sharded, change, message):
    (sharded.parent / "secret.safetensors").write_bytes(raw_file({}))
    change_index(sharded, change)
    error = refused(sharded)
    assert isinstance(error, CheckpointError)
    assert re.search(message, error.message)


@pytest.mark.parametrize("key", ["weight_map", NORM])
def test_a_key_that_an_index_has_twice_is_refused(sharded, key):
    path = sharded / INDEX_NAME
    value = json.dumps(json.loads(path.read_text())["weight_map"]) if key == "weight_map" else f'"{FIRST}"'
    text = path.read_text()
    place = text.index(f'"{key}"')
    path.write_text(f'{text[:place]}"{key}": {value}, {text[place:]}')
    assert f"has the key {key!r} twice" in refused(sharded).message


def test_the_same_tensor_in_two_shards_is_refused(sharded):
    header, data = parts(sharded / FIRST)
    header[NORM] = {"dtype": "U8", "shape": [1], "data_offsets": [len(data), len(data) + 1]}
    (sharded / FIRST).write_bytes(raw_file(header, data + b"x"))
    assert "hold the same tensor twice" in refused(sharded).message


def test_a_shard_that_is_a_folder_is_refused(sharded):
    (sharded / SECOND).unlink()
    (sharded / SECOND).mkdir()
    assert "does not exist" in refused(sharded).message


def test_pickled_weights_are_refused_with_the_way_to_convert_them(single):
    (single / SINGLE_NAME).rename(single / "pytorch_model.bin")
    error = refused(single)
    assert isinstance(error, UnsupportedFormatError)
    assert "pickled weights (pytorch_model.bin)" in error.message
    assert "convert" in (error.hint or "").lower()


def test_a_folder_without_weights_is_refused(single):
    (single / SINGLE_NAME).unlink()
    assert "holds neither model.safetensors nor model.safetensors.index.json" in refused(single).message


@pytest.mark.parametrize("part", ["self_attn.", "input_layernorm."])
def test_a_sublayer_without_tensors_cannot_be_dropped(single, part):
    kept = {n: t for n, t in random_tensors(SMALL).items() if not n.startswith(f"model.layers.0.{part}")}
    write_tensors(single, kept)
    assert f"has no model.layers.0.{part[:-1]} to drop" in refused(single).message


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("NaN", "nan, which is no number of JSON, under 'odd'"),
        ("-Infinity", "-inf, which is no number of JSON, under 'odd'"),
        ("1e999", "inf, which is no number of JSON, under 'odd'"),
        ("[1, [2, NaN]]", "nan, which is no number of JSON, under 'odd'"),
        ('{"deep": [NaN]}', "nan, which is no number of JSON, under 'deep'"),
        (r'"\ud800"', "half of a surrogate pair, which is no text, under 'odd'"),
        (r'["\udc00"]', "half of a surrogate pair, which is no text, under 'odd'"),
        (r'{"\ud800": 1}', "half of a surrogate pair, which is no text, under"),
    ],
)
def test_a_config_with_what_only_some_readers_take_for_json_is_refused(tmp_path, value, told):
    (tmp_path / "config.json").write_text('{"odd": ' + value + "}")
    with pytest.raises(CheckpointError) as error:
        read_config(tmp_path)
    assert told in error.value.message


def test_a_whole_surrogate_pair_is_text(tmp_path):
    (tmp_path / "config.json").write_text(r'{"odd": "\ud83d\ude00"}')
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        read_config(tmp_path)


def test_a_config_with_a_key_twice_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"num_hidden_layers": 2, "num_hidden_layers": 3}')
    with pytest.raises(CheckpointError, match="'num_hidden_layers' twice"):
        read_config(tmp_path)


@pytest.mark.parametrize("value", [0, -1, True, "2", 2.0, None])
def test_a_config_without_a_usable_number_of_layers_is_refused(value):
    config = {"num_hidden_layers": value, "hidden_size": 4, "num_attention_heads": 1}
    with pytest.raises(CheckpointError, match=f"num_hidden_layers={value!r}"):
        check_config(config, where="config.json")


# ---- whatever the bytes ------------------------------------------------------------------------------------------

VALID = raw_file(
    {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [0], "data_offsets": [8, 8]},
        "c": {"dtype": "U8", "shape": [], "data_offsets": [8, 9]},
    },
    b"123456789",
)


def accepted(content: bytes) -> bool:
    """Whether our reader takes a file; nothing but a CheckpointError may come out of it otherwise."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(content)
        try:
            read_shard(path)
        except CheckpointError:
            return False
        return True


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_but_checkpoint_error(content):
    assert not accepted(content)


edits = st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=3)


@given(edits)
def test_a_mutated_file_is_refused_or_is_one_that_the_safetensors_library_takes_too(changes):
    content = bytearray(VALID)
    for place, value in changes:
        content[place] = value
    if accepted(bytes(content)):
        safetensors.deserialize(bytes(content))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**65) | st.floats() | st.text(max_size=3) | st.just("F32"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
entries = st.fixed_dictionaries({"dtype": values, "shape": values, "data_offsets": values})


@given(
    st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), values | entries, max_size=3), st.binary(max_size=9)
)
def test_any_json_header_is_refused_or_is_one_that_the_safetensors_library_takes_too(header, data):
    content = raw_file(json.dumps(header).encode(), data)
    if accepted(content):
        safetensors.deserialize(content)


@given(st.binary(max_size=100) | values.map(lambda value: json.dumps({"weight_map": value}).encode()))
def test_any_index_raises_nothing_but_checkpoint_error(content):
    with TemporaryDirectory() as folder:
        (Path(folder) / INDEX_NAME).write_bytes(content)
        with pytest.raises(CheckpointError):
            open_weights(Path(folder))
