"""Whatever is tried again here is tried again at once."""

import pytest


@pytest.fixture(autouse=True)
def at_once(quick):
    """Waits between tries are short for every test of this folder."""
