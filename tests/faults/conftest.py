"""One world for all tests of this folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from fault_cells import killer
from fault_world import World, settings


def pytest_collection_modifyitems(items):
    if shutil.which("git") is None or sys.platform != "linux":
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs the git program, and Linux to see whom it kills"))


@pytest.fixture(scope="session")
def world(hub, hub_folder, tmp_path_factory):
    with settings():
        yield World(hub, tmp_path_factory.mktemp("world"), hub_folder=hub_folder)


@pytest.fixture(scope="session")
def killable(world):
    with killer(world) as found:
        yield found
