"""The benchmarks run, and what they compare is equal; their times are for `make bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


RUNS = {
    "write_checkpoint.py": ("--quick",),
    "score.py": ("--quick",),
    "eval.py": ("--quick",),
    "choosing.py": ("--quick",),
    "sparser.py": ("--quick",),
    "real_sizes.py": ("--small", "prune-3B"),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", RUNS)
def test_a_quick_run_compares_equal_results(script, tmp_path):
    command = [sys.executable, BENCHMARKS / script, *RUNS[script]]
    environment = {"TMPDIR": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISSED" not in done.stdout
    assert list(tmp_path.glob("hubprune-*")) == []
