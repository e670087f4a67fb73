"""The memory that a run may take: control groups, what it was told, and what its processes hold already."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from hubprune.core import memory
from hubprune.core.console import Reporter
from hubprune.core.errors import RecipeError
from hubprune.core.memory import Group, at_most, available_bytes, device_bytes, parse_bytes

GB = 10**9


# ---- control groups ----------------------------------------------------------------------------------------------


def groups(tmp_path, membership, files):
    """The groups that a process of this membership finds in these files."""
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "membership").write_text(membership)
    return list(memory.limited_groups(groups=tmp_path / "groups", membership=tmp_path / "membership"))


def test_version_1_counts_the_whole_group_without_its_page_cache(tmp_path):
    stat = "inactive_file 1\nactive_file 2\nactive_anon 9\ntotal_inactive_file 300\ntotal_active_file 40\n"
    files = {"limit_in_bytes": "1000\n", "usage_in_bytes": "700\n", "stat": stat}
    files = {f"memory/job/memory.{name}": text for name, text in files.items()}
    assert groups(tmp_path, "4:cpu:/\n3:hugetlb,memory:/job\n", files) == [Group(limit=1000, held=360)]


def test_version_2_counts_the_whole_group_without_its_page_cache(tmp_path):
    stat = "anon 5\ninactive_anon 7\ninactive_file 300\nactive_file 40\n"
    files = {"job/memory.max": "1000\n", "job/memory.current": "700\n", "job/memory.stat": stat}
    assert groups(tmp_path, "0::/job\n", files) == [Group(limit=1000, held=360)]


def test_limits_of_the_groups_around_count_and_no_limit_does_not(tmp_path):
    files = {"a/b/memory.max": "max\n", "a/memory.max": "2000\n", "memory.max": "3000\n", "memory.current": "5\n"}
    assert groups(tmp_path, "0::/a/b\n", files) == [Group(limit=2000, held=0), Group(limit=3000, held=5)]


def test_a_path_of_the_host_leads_to_the_limit_of_the_container(tmp_path):
    files = {"memory/memory.limit_in_bytes": "1000\n"}
    assert groups(tmp_path, "3:memory:/docker/1f\n", files) == [Group(limit=1000, held=0)]


def test_a_machine_without_control_groups_has_no_limit(tmp_path):
    assert list(memory.limited_groups(groups=tmp_path / "none", membership=tmp_path / "none")) == []


# ---- what is available -------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """A machine with 50 GB free and no groups, until a test says otherwise."""
    found = SimpleNamespace(groups=[], available=50 * GB)
    monkeypatch.setattr(memory, "limited_groups", lambda: list(found.groups))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=found.available))
    return found


def test_what_is_available_is_the_tightest_of_machine_group_and_what_was_told(machine):
    assert available_bytes() == 50 * GB
    machine.groups = [Group(limit=60 * GB, held=20 * GB), Group(limit=2**62, held=0)]
    assert available_bytes() == 40 * GB
    own = psutil.Process().memory_info().rss
    with at_most(10 * GB):
        # Whatever else this process has started counts, too.
        assert 9 * GB - own < available_bytes() < 10.2 * GB - own
    assert available_bytes() == 40 * GB
    machine.groups = [Group(limit=GB, held=2 * GB)]
    assert available_bytes() == 0


def test_a_child_counts_what_its_parent_and_its_siblings_hold(machine):
    code = "import time; block = b'x' * 300_000_000; print('there', flush=True); time.sleep(60)"
    ask = "from hubprune.core.memory import available_bytes; print(available_bytes())"
    with at_most(3 * GB):
        alone = int(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout)
        own = psutil.Process().memory_info()
        assert alone < 3 * GB - (own.rss - own.shared)
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as sibling:
            sibling.stdout.readline()
            beside = int(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout)
            here = available_bytes()
            sibling.kill()
    assert alone - beside == pytest.approx(0.3 * GB, abs=0.1 * GB)
    assert available_bytes() - here > 40 * GB


@pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/smaps_rollup").is_file(), reason="Linux only")
def test_what_a_fork_shares_with_this_process_counts_once(machine):
    code = (
        "import os, time\nfrom hubprune.core.memory import at_most, available_bytes\n"
        "block = b'x' * 300_000_000\n"
        "with at_most(3 * 10**9):\n"
        "    alone = available_bytes()\n"
        "    child = os.fork() or time.sleep(60)\n"
        "    beside = available_bytes()\n"
        "    os.kill(child, 9)\n"
        "print(alone - beside)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert abs(int(told)) < 30_000_000


def test_a_limit_ends_with_its_block_and_an_outer_one_comes_back(monkeypatch):
    monkeypatch.delenv(memory.LIMIT, raising=False)
    with at_most(2 * GB):
        first = os.environ[memory.FIRST]
        with at_most(GB), at_most(None):
            assert memory.told_limit() == GB
            assert os.environ[memory.FIRST] == first == str(os.getpid())
        assert memory.told_limit() == 2 * GB
    assert memory.told_limit() is None
    assert memory.FIRST not in os.environ


def test_a_limit_of_the_environment_may_be_written_as_for_the_option(monkeypatch):
    monkeypatch.setenv(memory.LIMIT, "1.5GB")
    assert memory.told_limit() == 1_500_000_000


@pytest.mark.parametrize("told", ["5", "-3", "much"])
def test_a_limit_of_the_environment_that_is_none_is_called_by_its_name(monkeypatch, told):
    monkeypatch.setenv(memory.LIMIT, told)
    with pytest.raises(RecipeError, match=f"^{memory.LIMIT} '?{told}") as caught:
        memory.available_bytes()
    assert f"{memory.LIMIT}=8GB" in caught.value.hint


def test_the_limit_holds_for_each_gpu_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (14 * GB, 15 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GB)
    assert device_bytes("cuda:0") == 14 * GB
    with at_most(8 * GB):
        assert device_bytes("cuda:0") == 6 * GB
    with at_most(GB):
        assert device_bytes("cuda:0") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GB", 8 * GB), ("8gb", 8 * GB), ("7.5GiB", 7.5 * 2**30), ("800M", 800 * 10**6), ("2 TB", 2 * 10**12),
     (8 * GB, 8 * GB), ("8000000000", 8 * GB), ("600MIB", 600 * 2**20)],
)  # fmt: skip
def test_sizes_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "8 GB 2", "8XB", "-8GB", "1e9", "8iB", "nan"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(RecipeError, match="is no size of memory") as caught:
        parse_bytes(text)
    assert caught.value.hint == "Write it like --max-memory 8GB, or 7.5GiB."


@pytest.mark.parametrize("text", ["8", 8, "0GB", "100MB"])
def test_a_size_that_no_run_fits_into_is_refused(text):
    with pytest.raises(RecipeError, match="too little: libraries alone take 256 MB"):
        parse_bytes(text)


# ---- what is said of it ------------------------------------------------------------------------------------------


def test_it_is_said_which_device_computes_in_which_dtype_and_within_what(machine, monkeypatch):
    reporter, notes = Reporter(quiet=True), []
    monkeypatch.setattr(reporter, "note", notes.append)
    monkeypatch.setattr(memory, "unused_gpu", lambda device: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (14.6 * GB, 15 * GB))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for config, device, dtype in (
        ({"dtype": "float32"}, "cpu", "auto"),
        ({}, "cpu", "auto"),
        ({"dtype": "bfloat16"}, "cuda:0", "auto"),
        ({"dtype": "bfloat16"}, "cuda:0", "float32"),
    ):
        memory.say_where(config, device=device, dtype=dtype, reporter=reporter)
    assert notes == [
        "computing on the CPU in float32, 2 threads, 50.00 GB of memory",
        "computing on the CPU, 2 threads, 50.00 GB of memory",
        "computing on cuda:0 in float16, 14.60 GB free; the GPU has no units for bfloat16",
        "computing on cuda:0 in float32, 14.60 GB free",
    ]
