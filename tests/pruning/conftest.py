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


@pytest.fixture
def in_process(monkeypatch):
    """Compare in this process, which costs a tenth of a fresh one, and write few tokens."""
    from hubprune.pruning import loading, verify

    monkeypatch.setattr(verify, "NEW_TOKENS", 12)
    monkeypatch.setattr(
        verify, "_in_fresh_process", lambda action, request, answer, **_: loading._ACTIONS[action][1](request)
    )
