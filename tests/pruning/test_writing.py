"""A pruned checkpoint holds exactly the base's bytes without the dropped sublayers, or it does not exist."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import safetensors
import torch
from bases import LLAMA, parts, plan, random_tensors, write_base, write_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hubprune.core import weights
from hubprune.core.architectures import ARCHITECTURES
from hubprune.core.errors import CheckpointError, DiskSpaceError
from hubprune.core.files import staged_folder
from hubprune.core.privacy import is_carried
from hubprune.core.weights import INDEX_NAME, SINGLE_NAME, open_weights, read_shard
from hubprune.pruning.checkpoint import carry_files, take_inventory, write_checkpoint, write_weights

ATTN = ("self_attn.", "input_layernorm.")
MLP = ("mlp.", "post_attention_layernorm.")
TINY = {**LLAMA, "num_hidden_layers": 4, "hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 6}
TINY["vocab_size"] = 8


def reference(tensors, layers, *, attn, mlp):
    """Delete and rename in Python what the writer leaves out and renames."""
    kept = [i for i in range(layers) if not (i in attn and i in mlp)]
    found = {}
    for name, tensor in tensors.items():
        if not name.startswith("model.layers."):
            found[name] = tensor
            continue
        number, rest = name.removeprefix("model.layers.").split(".", 1)
        gone = (int(number) in attn and rest.startswith(ATTN)) or (int(number) in mlp and rest.startswith(MLP))
        if not gone:
            found[f"model.layers.{kept.index(int(number))}.{rest}"] = tensor
    return found


def bits(tensors):
    """Tensors in a form in which equal means bit for bit, dtype and shape included."""
    return {
        n: (t.dtype, tuple(t.shape), t.contiguous().view(torch.uint8).numpy().tobytes()) for n, t in tensors.items()
    }


def load_folder(folder):
    """Load all tensors with the safetensors library, following the index where there is one."""
    index = Path(folder) / INDEX_NAME
    if not index.is_file():
        return load_file(Path(folder) / SINGLE_NAME)
    weight_map = json.loads(index.read_text())["weight_map"]
    loaded = {file: load_file(Path(folder) / file) for file in set(weight_map.values())}
    return {name: loaded[file][name] for name, file in weight_map.items()}


def pruned(base_folder, folder, *, layers=4, attn=(), mlp=()):
    """Write the weights of a plan and return the folder."""
    folder.mkdir(exist_ok=True)
    weights = open_weights(Path(base_folder))
    drop = plan(layers, attn=attn, mlp=mlp)
    write_weights(weights, drop, ARCHITECTURES["llama"], folder, advance=lambda _: None)
    return folder


# ---- what is written ---------------------------------------------------------------------------------------------

layer_sets = st.sets(st.integers(0, 3))
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@settings(max_examples=60)
@given(layer_sets, layer_sets, st.integers(1, 6), dtypes, st.randoms(use_true_random=False))
def test_any_drop_leaves_the_same_tensors_as_deleting_and_renaming_them(attn, mlp, shards, dtype, random):
    tensors = random_tensors(TINY, dtype=dtype)
    names = list(tensors)
    random.shuffle(names)
    with TemporaryDirectory() as place:
        base = Path(place) / "base"
        base.mkdir()
        write_tensors(base, {name: tensors[name] for name in names}, shards=shards)
        out = pruned(base, Path(place) / "out", attn=attn, mlp=mlp)
        assert bits(load_folder(out)) == bits(reference(tensors, 4, attn=attn, mlp=mlp))
        if (out / INDEX_NAME).is_file():
            named = set(json.loads((out / INDEX_NAME).read_text())["weight_map"].values())
            assert named == {path.name for path in out.glob("*.safetensors")}


stored = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(["float64", "bfloat16", "int8", "bool"]), st.lists(st.integers(0, 3), max_size=3)),
    max_size=5,
)


@given(stored, st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), min_size=1, max_size=2))
def test_our_reader_finds_what_the_safetensors_library_wrote(described, metadata):
    tensors = {name: torch.ones(shape).to(getattr(torch, dtype)) for name, (dtype, shape) in described.items()}
    with TemporaryDirectory() as place:
        path = Path(place) / "x.safetensors"
        save_file(tensors, path, metadata=metadata)
        shard, content = read_shard(path), path.read_bytes()
        ours = {t.name: (t.dtype, list(t.shape), content[t.begin : t.end]) for t in shard.tensors}
        theirs = {n: (v["dtype"], v["shape"], bytes(v["data"])) for n, v in safetensors.deserialize(content)}
        assert ours == theirs
        assert (shard.metadata or {}) == (metadata or {})


def test_a_base_without_drops_is_written_byte_for_byte(llama, tmp_path):
    pruned(llama.folder, tmp_path / "out", layers=5)
    assert (tmp_path / "out" / SINGLE_NAME).read_bytes() == (Path(llama.folder) / SINGLE_NAME).read_bytes()


def test_tensor_order_and_metadata_stay_those_of_the_base(tmp_path):
    (tmp_path / "base").mkdir()
    write_tensors(tmp_path / "base", random_tensors(TINY), metadata={"format": "pt", "note": "Ä"})
    out = pruned(tmp_path / "base", tmp_path / "out", attn=[1])
    before, after = (list(parts(f / SINGLE_NAME)[0]) for f in (tmp_path / "base", out))
    assert after == [name for name in before if not name.startswith(tuple(f"model.layers.1.{p}" for p in ATTN))]
    assert parts(out / SINGLE_NAME)[0]["__metadata__"] == {"format": "pt", "note": "Ä"}


def test_data_begins_at_a_multiple_of_eight_bytes(llama, tmp_path):
    for layer in range(5):
        out = pruned(llama.folder, tmp_path / str(layer), layers=5, attn=[layer])
        content = (out / SINGLE_NAME).read_bytes()
        assert int.from_bytes(content[:8], "little") % 8 == 0


def test_dropped_bytes_are_in_no_file(tmp_path):
    tensors = random_tensors(TINY)
    secret = tensors["model.layers.2.self_attn.q_proj.weight"].numpy().tobytes()
    base = write_base(tmp_path / "base", TINY, tensors)
    out = pruned(base.folder, tmp_path / "out", attn=[2])
    assert secret in (Path(base.folder) / SINGLE_NAME).read_bytes()
    assert all(secret not in path.read_bytes() for path in out.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_are_never_cast(tmp_path, dtype):
    tensors = random_tensors(TINY, dtype=dtype)
    base = write_base(tmp_path / "base", TINY, tensors)
    loaded = load_folder(pruned(base.folder, tmp_path / "out", attn=[0]))
    assert {tensor.dtype for tensor in loaded.values()} == {dtype}


# ---- shards ------------------------------------------------------------------------------------------------------


def test_the_index_tells_the_bytes_and_the_shard_of_every_tensor(tmp_path):
    tensors = random_tensors(TINY)
    base = write_base(tmp_path / "base", TINY, tensors, shards=3)
    out = pruned(base.folder, tmp_path / "out", attn=[0, 3])
    index = json.loads((out / INDEX_NAME).read_text())
    left = reference(tensors, 4, attn=[0, 3], mlp=[])
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in left.values())}
    assert index["weight_map"].keys() == left.keys()
    for name, shard in index["weight_map"].items():
        assert name in parts(out / shard)[0]


def test_shards_keep_their_names_and_order_and_those_without_drops_their_bytes(tmp_path):
    base = Path(write_base(tmp_path / "base", TINY, shards=3).folder)
    gone = tuple(f"model.layers.3.{part}" for part in ATTN)
    out = pruned(base, tmp_path / "out", attn=[3])
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert sorted(path.name for path in out.glob("*.safetensors")) == shards
    touched = 0
    for name in shards:
        before, after = (list(parts(folder / name)[0]) for folder in (base, out))
        assert after == [tensor for tensor in before if not tensor.startswith(gone)]
        touched += before != after
        assert (before == after) == ((base / name).read_bytes() == (out / name).read_bytes())
    assert 0 < touched < len(shards)


def test_a_total_of_parameters_in_the_index_follows_the_drop(tmp_path):
    base = Path(write_base(tmp_path / "base", TINY, shards=2).folder)
    index = json.loads((base / INDEX_NAME).read_text())
    index["metadata"]["total_parameters"] = 1
    (base / INDEX_NAME).write_text(json.dumps(index))
    out = pruned(base, tmp_path / "out", attn=[1])
    found = json.loads((out / INDEX_NAME).read_text())["metadata"]
    assert found["total_parameters"] * 4 == found["total_size"]


def test_a_shard_that_is_left_empty_goes_and_the_others_are_renumbered(tmp_path):
    tensors = random_tensors(TINY)
    attn = [name for name in tensors if name.startswith(tuple(f"model.layers.1.{part}" for part in ATTN))]
    rest = [name for name in tensors if name not in attn]
    base = tmp_path / "base"
    base.mkdir()
    weight_map = {}
    for number, names in enumerate([rest[:5], attn, rest[5:]], start=1):
        file = f"model-{number:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names}, base / file)
        weight_map |= dict.fromkeys(names, file)
    (base / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    out = pruned(base, tmp_path / "out", attn=[1])
    assert sorted(path.name for path in out.iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        INDEX_NAME,
    ]
    assert bits(load_folder(out)) == bits(reference(tensors, 4, attn=[1], mlp=[]))


# ---- tied weights ------------------------------------------------------------------------------------------------

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("held", [{EMBEDDING}, {HEAD}, {EMBEDDING, HEAD}], ids=["embedding", "head", "both"])
def test_of_tied_weights_a_checkpoint_keeps_what_the_base_holds(tmp_path, held):
    tensors = random_tensors(TINY)
    tensors = {n: t for n, t in tensors.items() if n not in {HEAD, EMBEDDING} - held}
    config = {**TINY, "tie_word_embeddings": True}
    base = write_base(tmp_path / "base", config, tensors)
    out = pruned(base.folder, tmp_path / "out", attn=[1])
    assert load_folder(out).keys() & {HEAD, EMBEDDING} == held
    written = take_inventory(
        open_weights(Path(base.folder)),
        out,
        plan=plan(4, attn=[1]),
        config=config,
        architecture=ARCHITECTURES["llama"],
        advance=lambda _: None,
    )
    # Attention: q and o of 4 x 4, k and v of 4 x 4 (two KV heads of size 2), and a norm of 4.
    assert written.base_parameters - written.parameters == 4 * 16 + 4
    once = sum(t.numel() for n, t in tensors.items() if n != HEAD) + (TINY["vocab_size"] * 4 if held == {HEAD} else 0)
    assert written.base_parameters == once


def test_the_inventory_counts_bytes_and_the_growth_of_the_cache(tmp_path):
    config = {**TINY, "torch_dtype": "bfloat16"}
    base = write_base(tmp_path / "base", config, random_tensors(TINY, dtype=torch.bfloat16))
    out = pruned(base.folder, tmp_path / "out", attn=[0])
    written = take_inventory(
        open_weights(Path(base.folder)),
        out,
        plan=plan(4, attn=[0]),
        config=config,
        architecture=ARCHITECTURES["llama"],
        advance=lambda _: None,
    )
    assert written.weight_bytes == 2 * written.parameters
    assert written.dtypes == ("BF16",)
    # Keys and values of two KV heads of size 2, at two bytes each, in four and in three layers.
    assert (written.base_kv_bytes_per_token, written.kv_bytes_per_token) == (2 * 2 * 2 * 2 * 4, 2 * 2 * 2 * 2 * 3)
    assert [file.path for file in written.files] == [SINGLE_NAME]


# ---- files beside the weights ------------------------------------------------------------------------------------


def test_tokenizer_and_licence_files_come_along_unchanged_and_nothing_else_does(tmp_path):
    base = write_base(tmp_path / "base", TINY)
    folder, out = Path(base.folder), tmp_path / "out"
    carried = {
        "generation_config.json": b'{"temperature":0.6}',
        "special_tokens_map.json": b"{ }",
        "chat_template.jinja": b"{{ x }}\r\n",
        "additional_chat_templates/tool_use.jinja": b"{{ y }}\n\n",
        "LICENSE.txt": b"terms",
        "NOTICE": b"notice",
        "USE_POLICY.md": b"policy",
    }
    left = {"README.md": b"card", "modeling_own.py": b"code", "pytorch_model.bin": b"\x80", "training_args.json": b""}
    left |= dict.fromkeys(("tokenizer.py", "tokenizer.pyc", "vocab.so", "LICENSE.pyd"), b"code")
    for name, content in {**carried, **left}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    out.mkdir()
    write_checkpoint(base, plan(4, attn=[1]), out, advance=lambda _: None)
    carried |= {name: (folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    assert {name: (out / name).read_bytes() for name in carried} == carried
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        *carried, "config.json", "model.safetensors", "modeling_pruned_llama.py",
    }  # fmt: skip


NOT_CARRIED = [
    "tokenizer.pkl", "tokenizer.bin", "vocab.pth", "vocab.PY", "tokenizer.So", "LICENSE.exe", "NOTICE.so",
    "license.BAT", "tokenizer", "chat_template.sh", "chat_templates/tool.py", "chat_templates/deeper/tool.jinja",
    "docs/LICENSE",
]  # fmt: skip
CARRIED = [
    "tokenizer.json", "tokenizer.model.v3", "vocab.txt", "vocab.bpe", "a.tiktoken", "License", "LICENSE-2.0",
    "notice.MD", "LICENSE.pdf", "chat_templates/tool.jinja", "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
]  # fmt: skip


@pytest.mark.parametrize("name", NOT_CARRIED)
def test_what_a_program_could_run_or_unpickle_is_never_carried(name):
    assert not is_carried(name)


@pytest.mark.parametrize("name", CARRIED)
def test_texts_and_vocabularies_are_carried_however_their_names_are_spelled(name):
    assert is_carried(name)


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json"])
def test_a_link_out_of_a_base_is_not_followed(tmp_path, name):
    base = write_base(tmp_path / "base", TINY)
    (tmp_path / "secret").write_text("of this machine")
    path = Path(base.folder, name)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=f"{name} is a link that leads out of its folder"):
        carry_files(Path(base.folder), tmp_path)


def test_links_within_a_base_and_into_the_blobs_of_the_cache_are_followed(tmp_path):
    repo = tmp_path / "models--me--tiny"
    (repo / "blobs").mkdir(parents=True)
    (repo / "blobs" / "a1").write_text("terms")
    snapshot, out = repo / "snapshots" / "c0", tmp_path / "out"
    snapshot.mkdir(parents=True)
    (snapshot / "LICENSE").symlink_to(Path("../../blobs/a1"))
    (snapshot / "NOTICE").symlink_to(snapshot / "LICENSE")
    out.mkdir()
    carry_files(snapshot, out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"LICENSE": "terms", "NOTICE": "terms"}
    assert not any(path.is_symlink() for path in out.iterdir())


def test_whole_layers_alone_need_no_modeling_file(llama, tmp_path):
    write_checkpoint(llama, plan(5, attn=[1, 2], mlp=[1, 2]), tmp_path, advance=lambda _: None)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_and_folder_follow_the_umask(llama, tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with staged_folder(tmp_path / "out") as staged:
            write_checkpoint(llama, plan(5, attn=[1]), staged, advance=lambda _: None)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {mode}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask


# ---- how bytes are copied ----------------------------------------------------------------------------------------


def copied(base, folder, monkeypatch, copy):
    """The weight file that comes out when the kernel copies like `copy`."""
    monkeypatch.setattr(os, "copy_file_range", copy)
    return (pruned(base.folder, folder, layers=5, attn=[1, 3], mlp=[2]) / SINGLE_NAME).read_bytes()


def test_a_file_system_without_kernel_copies_gives_the_same_file(llama, tmp_path, monkeypatch):
    by_kernel, calls = os.copy_file_range, []

    def unable(*_, **__):
        calls.append(1)
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def halfway(source, target, count, *, offset_src):
        if len(calls) > 5:
            return unable()
        calls.append(1)
        return by_kernel(source, target, min(count, 999), offset_src=offset_src)

    expected = copied(llama, tmp_path / "kernel", monkeypatch, by_kernel)
    assert copied(llama, tmp_path / "buffered", monkeypatch, unable) == expected
    calls.clear()
    assert copied(llama, tmp_path / "mixed", monkeypatch, halfway) == expected
    assert len(calls) > 5


def test_progress_adds_up_to_the_bytes_that_were_copied(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "COPY_BYTES", 1000)
    seen = []
    write_checkpoint(llama, plan(5, attn=[1]), tmp_path, advance=seen.append)
    assert sum(seen) == open_weights(tmp_path).size()
    assert max(seen) <= 1000


def test_a_base_that_shrinks_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    base = write_base(tmp_path / "base", TINY)
    monkeypatch.setattr(weights, "COPY_BYTES", 64)
    path = Path(base.folder) / SINGLE_NAME
    with pytest.raises(CheckpointError, match="became shorter"), staged_folder(tmp_path / "out") as staged:
        write_checkpoint(base, plan(4, attn=[1]), staged, advance=lambda _: os.truncate(path, 2500))
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def test_a_full_disk_is_told_and_leaves_nothing(llama, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(DiskSpaceError, match="The disk is full"), staged_folder(tmp_path / "out") as staged:
        write_checkpoint(llama, plan(5, attn=[1]), staged, advance=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(llama, tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "out") as staged:
        write_checkpoint(llama, plan(5, attn=[1]), staged, advance=interrupt)
    assert list(tmp_path.iterdir()) == []
