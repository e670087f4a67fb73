"""Files and folders appear completely or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hubprune.core import files
from hubprune.core.errors import DiskSpaceError, RecipeError
from hubprune.core.files import list_files, move_folder, staged_folder, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- staged folders ----------------------------------------------------------------------------------------------


def test_a_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "out"
    with staged_folder(target) as staged:
        (staged / "a").write_text("1")
        assert not target.exists()
        assert staged.parent == target.parent
    assert names(target) == ["a"]
    assert names(target.parent) == ["out"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out") as staged:
        (staged / "a").touch()
    assert names(tmp_path / "out") == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_ends_the_block_leaves_nothing(tmp_path, error):
    def fail(folder):
        (folder / "a").write_text("1")
        raise error

    with pytest.raises(error), staged_folder(tmp_path / "out") as staged:
        fail(staged)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told(tmp_path, number):
    with (
        pytest.raises(DiskSpaceError, match=r"The disk is full: .*out was not written"),
        staged_folder(tmp_path / "out"),
    ):
        raise OSError(number, "full")
    assert names(tmp_path) == []


def test_other_failures_of_the_disk_keep_their_traceback(tmp_path):
    with pytest.raises(OSError, match="broken"), staged_folder(tmp_path / "out"):
        raise OSError(errno.EIO, "broken")
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_exists_is_never_overwritten(tmp_path, kind):
    target = tmp_path / "out"
    inside = target if kind == "file" else target / "a"
    inside.parent.mkdir(exist_ok=True)
    inside.write_text("mine")
    with pytest.raises(RecipeError, match="exists already") as caught, staged_folder(target):
        pytest.fail("the block must not run")
    assert "--out" in caught.value.hint
    assert inside.read_text() == "mine"
    assert names(tmp_path) == ["out"]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="Cannot write to"), staged_folder(tmp_path / "file" / "sub" / "out"):
        pytest.fail("the block must not run")


def test_what_a_killed_process_left_is_swept_up_and_what_a_running_one_writes_is_not(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    gone, host = dead.stdout.strip(), re.sub(r"\W", "_", socket.gethostname())
    left = [tmp_path / f".out.partial-{host}-{pid}-x" for pid in (gone, os.getpid())]
    foreign = (f".other.partial-{host}-{gone}-x", f".out.partial-elsewhere-{gone}-x", ".out.partial-notes")
    other = [tmp_path / name for name in foreign]
    for folder in (*left, *other):
        folder.mkdir()
        (folder / "a").touch()
    with staged_folder(tmp_path / "out"):
        pass
    assert [folder.exists() for folder in (*left, *other)] == [False, True, True, True, True]


def test_everything_that_killed_processes_left_in_a_folder_is_swept_up_and_nothing_else(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    gone, host = dead.stdout.strip(), re.sub(r"\W", "_", socket.gethostname())
    left = [f".load.partial-{host}-{gone}-x", f".*.partial-{host}-{gone}-x", f".a.json.partial-{host}-{gone}-tmp"]
    kept = [f".load.partial-{host}-{os.getpid()}-x", f".load.partial-elsewhere-{gone}-x", f"x.partial-{host}-{gone}-x"]
    for name in (*left, *kept):
        (tmp_path / name).mkdir() if not name.endswith("tmp") else (tmp_path / name).touch()
    (tmp_path / f".out.partial-{host}-{gone}-link").symlink_to(tmp_path / kept[2])
    files.sweep(tmp_path)
    assert names(tmp_path) == sorted(kept)


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "a-b." * 60])
def test_the_longest_names_leave_room_for_host_and_process(tmp_path, monkeypatch, name):
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 63)
    with staged_folder(tmp_path / name) as staged:
        (staged / "a").touch()
    write_atomically(tmp_path / name / name, "x")
    assert names(tmp_path / name) == sorted(["a", name])


def test_short_names_of_long_ones_differ_and_leave_room_for_a_key():
    assert files.short_name("Llama-3.2-3B-attn-drop-3") == "Llama-3.2-3B-attn-drop-3"
    long = [files.short_name("é" * 100 + end) for end in "ab"]
    assert long[0] != long[1]
    assert max(len(os.fsencode(name)) for name in long) <= files.LONGEST_LABEL


def test_a_published_folder_is_an_ordinary_one(tmp_path):
    before = os.umask(0o022)
    try:
        with staged_folder(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


# ---- moving ------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "a").write_text("1")
    return tmp_path / "source"


@pytest.fixture(params=["same", "other"])
def file_system(request, monkeypatch, source):
    """Moving within one file system, and to another one."""
    if request.param == "other":
        rename = Path.replace

        def replace(self, target):
            if self == source:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return rename(self, target)

        monkeypatch.setattr(Path, "replace", replace)
    return request.param


def test_a_folder_is_moved(tmp_path, source, file_system):
    move_folder(source, tmp_path / "new" / "out")
    assert (tmp_path / "new" / "out" / "sub" / "a").read_text() == "1"
    assert names(tmp_path) == ["new"]
    assert names(tmp_path / "new") == ["out"]


def test_a_place_that_no_folder_can_take_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "volume")
    (tmp_path / "volume").mkdir()
    with pytest.raises(RecipeError, match="cannot be replaced"):
        files.check_new_folder(tmp_path / "volume")
    (tmp_path / "volume").rmdir()
    for target in (Path(), tmp_path):
        with pytest.raises(RecipeError, match="cannot be replaced"):
            files.check_new_folder(target)
    files.check_new_folder(tmp_path / "out")


def test_a_move_never_overwrites(tmp_path, source, file_system):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(RecipeError, match="exists already"):
        move_folder(source, tmp_path / "out")
    assert (source / "sub" / "a").exists()


def test_a_move_to_a_full_disk_keeps_the_source(tmp_path, source, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def elsewhere(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(files.shutil, "copytree", full)
    monkeypatch.setattr(Path, "replace", elsewhere)
    with pytest.raises(DiskSpaceError):
        move_folder(source, tmp_path / "out")
    assert names(tmp_path) == ["source"]
    assert (source / "sub" / "a").exists()


# ---- files -------------------------------------------------------------------------------------------------------


def test_a_text_replaces_the_old_one_at_once(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_atomically(path, "old")
    write_atomically(path, "Ä")
    assert path.read_bytes() == "Ä".encode()
    assert names(path.parent) == ["a.json"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_files_are_listed_with_the_hashes_of_the_hub_and_of_git(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"hello\n")
    (tmp_path / "a").write_bytes(b"")
    seen = []
    first, second = list_files(tmp_path, advance=seen.append)
    assert (first.path, first.size, second.path, second.size) == ("a", 0, "sub/b", 6)
    # What `git hash-object` prints for these contents.
    assert first.git_oid == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert second.git_oid == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert second.sha256 == hashlib.sha256(b"hello\n").hexdigest()
    assert sum(seen) == 6


def test_large_files_are_hashed_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READ_BYTES", 10)
    (tmp_path / "a").write_bytes(bytes(range(35)))
    seen = []
    assert list_files(tmp_path, advance=seen.append)[0].sha256 == hashlib.sha256(bytes(range(35))).hexdigest()
    assert seen == [10, 10, 10, 5]
