"""The interpreter that has vLLM: the one that HUBPRUNE_VLLM_PYTHON names, else that of `make runtimes`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MADE = Path(__file__).parents[2] / ".runtimes" / "vllm" / "bin" / "python"


@pytest.fixture(scope="session")
def vllm_python():
    from hubprune.runtimes.asking import find

    named = os.environ.get("HUBPRUNE_VLLM_PYTHON")
    if not named and not MADE.exists():
        pytest.skip("there is no vLLM: `make runtimes` makes an environment, HUBPRUNE_VLLM_PYTHON names one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBPRUNE_VLLM_PYTHON", named or str(MADE))
        return find("vllm")
