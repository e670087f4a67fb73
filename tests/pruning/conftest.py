"""Bases for the tests of this room, and a place for the code that transformers copies before it imports it."""

from __future__ import annotations

import pytest
from bases import LLAMA, MISTRAL, write_base

from hubprune.core.console import Reporter


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A random Llama of five layers."""
    return write_base(tmp_path_factory.mktemp("llama") / "base", LLAMA)


@pytest.fixture(scope="session")
def mistral(tmp_path_factory):
    """A random Mistral of five layers that sees eight tokens back."""
    return write_base(tmp_path_factory.mktemp("mistral") / "base", MISTRAL)


@pytest.fixture(scope="session")
def own_modules(tmp_path_factory):
    """Keep the code of model folders out of the user's cache."""
    import transformers.dynamic_module_utils as dynamic

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.syspath_prepend(dynamic.HF_MODULES_CACHE)
        yield


@pytest.fixture
def reporter():
    return Reporter(quiet=True)
