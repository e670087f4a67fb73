"""Which dtype a run computes in: the file's own where the device has units for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hubprune.core import devices
from hubprune.core.devices import cpu_capabilities, resolve_dtype, unused_gpu


@pytest.fixture
def machine(monkeypatch):
    """Let this machine have a GPU of a capability, or a CPU that can do something."""

    def have(*, capability=None, hip=None, cpu=()):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(devices, "cpu_capabilities", lambda: frozenset(cpu))

    return have


@pytest.mark.parametrize(
    ("device", "has", "stored", "computed"),
    [
        ("cuda:0", {"capability": (8, 0)}, "bfloat16", "bfloat16"),  # A100
        ("cuda", {"capability": (12, 0)}, "bfloat16", "bfloat16"),
        ("cuda:0", {"capability": (7, 5)}, "bfloat16", "float16"),  # T4
        ("cuda", {"capability": (7, 0)}, "bfloat16", "float16"),  # V100
        ("cuda", {"capability": (7, 5)}, "float16", "float16"),
        ("cuda", {"capability": (7, 5)}, "float32", "float32"),
        ("cuda", {"capability": (6, 1), "hip": "6.4"}, "bfloat16", "bfloat16"),
        ("mps", {}, "bfloat16", "bfloat16"),
        ("mps", {}, "float16", "float16"),
        ("cpu", {"cpu": ("avx2", "avx512_bf16")}, "bfloat16", "bfloat16"),
        ("cpu", {"cpu": ("amx_bf16",)}, "bfloat16", "bfloat16"),
        ("cpu", {"cpu": ("neon", "bf16")}, "bfloat16", "bfloat16"),
        ("cpu", {"cpu": ("avx2", "avx512_f")}, "bfloat16", "float32"),
        ("cpu", {"cpu": ("avx512_bf16", "avx512_fp16")}, "float16", "float32"),
        ("cpu", {}, "float32", "float32"),
        ("cpu", {}, "float64", "float32"),
    ],
)
def test_auto_is_the_dtype_of_the_file_where_the_device_has_units_for_it(machine, device, has, stored, computed):
    machine(**has)
    config = {"dtype": stored}
    assert resolve_dtype("auto", config, device=device) == computed
    assert resolve_dtype("float16", config, device=device) == "float16"  # who names one gets it


def test_without_a_device_auto_is_the_dtype_of_the_file(machine):
    machine(capability=(7, 5))
    assert resolve_dtype("auto", {"torch_dtype": "torch.bfloat16"}) == "bfloat16"
    assert resolve_dtype("auto", {"dtype": "half"}) == "float16"


def test_the_cpu_of_this_machine_tells_what_it_can_do():
    assert cpu_capabilities() & {"sse2", "neon"}


def test_a_gpu_that_is_left_alone_is_told_of(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "NVIDIA", ())
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    for available in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(available, "is_available", lambda: False)
    assert unused_gpu("cpu") is None

    (tmp_path / "version").touch()
    monkeypatch.setattr(devices, "NVIDIA", (tmp_path / "version",))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "a build that cannot use it: see https://pytorch.org" in unused_gpu("cpu")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert unused_gpu("cpu").endswith("finds none: its driver may be too old for CUDA 13.0")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Tesla T4")
    assert unused_gpu("cpu") == "--device cpu leaves Tesla T4 unused: leave it out to compute there"
    assert unused_gpu("cuda") is None


def test_a_process_can_be_told_to_spend_no_time_on_waiting(monkeypatch):
    monkeypatch.setattr(devices.gc, "set_threshold", lambda *numbers: told.append(numbers))
    told = []
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    devices.spare()
    assert (os.environ["OMP_WAIT_POLICY"], len(told)) == ("ACTIVE", 1)
    monkeypatch.delenv("OMP_WAIT_POLICY")
    devices.spare()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_the_command_line_says_so_before_torch_is_loaded():
    code = "import os, sys, hubprune.cli as c; sys.argv[1:] = ['--version']\n"
    code += "try: c.main()\nfinally: print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    variables = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "PASSIVE False"
