"""What the tests of all rooms share."""

from __future__ import annotations

import os

# Tiny models run fastest on one thread, and several test processes share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

# The same examples in every run: a test that fails in one place fails in all.
settings.register_profile("hubprune", deadline=None, derandomize=True, database=None)
settings.load_profile("hubprune")
