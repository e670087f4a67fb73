"""Bases for the tests of this room."""

from __future__ import annotations

import pytest
from bases import LLAMA, MISTRAL, write_base


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A random Llama of five layers."""
    return write_base(tmp_path_factory.mktemp("llama") / "base", LLAMA)


@pytest.fixture(scope="session")
def mistral(tmp_path_factory):
    """A random Mistral of five layers that sees eight tokens back."""
    return write_base(tmp_path_factory.mktemp("mistral") / "base", MISTRAL)
