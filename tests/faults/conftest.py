"""One world for all tests of this folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette")

sys.path.insert(0, str(Path(__file__).parent))

from fault_cells import killer
from fault_world import open_world


def pytest_collection_modifyitems(items):
    if shutil.which("git") is None or sys.platform != "linux":
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs the git program, and Linux to see whom it kills"))


@pytest.fixture(scope="package")
def world(tmp_path_factory):
    with open_world(tmp_path_factory.mktemp("world")) as opened:
        yield opened


@pytest.fixture(scope="package")
def killable(world):
    with killer(world) as found:
        yield found
