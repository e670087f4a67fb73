"""A run computes in one dtype in all its stages, and what it finds is kept under it."""

from __future__ import annotations

from types import SimpleNamespace

import made
import pytest

from hubprune.core import devices
from hubprune.core.files import StageStore
from hubprune.workflows.run import Run


@pytest.fixture
def run_on(tmp_path, reporter, monkeypatch):
    """Make a run of a base in bfloat16 on a CPU that has units for it, or has not."""

    def make(*, units, dtype="auto"):
        monkeypatch.setattr(devices, "cpu_capabilities", lambda: devices.BFLOAT16_UNITS if units else frozenset())
        run = Run(made.recipe(device="cpu", dtype=dtype), SimpleNamespace(), reporter, StageStore(tmp_path))
        base = made.base()
        assert base.config["dtype"] == "bfloat16"
        vars(run).update(base=base, downloaded=base, environment=made.environment())
        return run

    return make


def test_where_the_device_has_no_units_for_the_files_dtype_another_is_computed_in(run_on):
    assert run_on(units=True).dtype == "bfloat16"
    assert run_on(units=False).dtype == "float32"
    assert run_on(units=False, dtype="bfloat16").dtype == "bfloat16"


def test_what_was_found_in_another_dtype_is_not_taken(run_on):
    assert run_on(units=True).circumstances[-1] == "auto"  # as keys that are out there have it
    native = run_on(units=True).identity()
    assert run_on(units=False).circumstances[-1] == "float32"
    assert run_on(units=False).identity() != native
    assert run_on(units=False, dtype="bfloat16").circumstances[-1] == "bfloat16"
