"""No file of a user, of a base, or of the work folder ends in a traceback: it is read, or refused in one sentence.

Some examples of each kind are tried here, the same in every run; `FUZZ=2000` tries so many of each, new ones every
time, and `make fuzz` counts them.
"""

from __future__ import annotations

import os

import pytest
from fuzz_kinds import KINDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trying import READ, REFUSED, attempt, files_of

MANY = int(os.environ.get("FUZZ", "0"))


@pytest.mark.parametrize("name", KINDS)
def test_a_valid_file_is_read(name):
    kind = KINDS[name]
    assert attempt(kind, kind.write(kind.valid)) == READ


@pytest.mark.parametrize("name", KINDS)
def test_a_nearly_valid_file_is_read_or_refused_in_one_sentence(name):
    kind = KINDS[name]

    @settings(
        max_examples=MANY or kind.quick, derandomize=not MANY, suppress_health_check=list(HealthCheck), deadline=None
    )
    @given(data=st.data())
    def try_many(data):
        file = data.draw(files_of(kind))
        ended = attempt(kind, file)
        assert ended in (READ, REFUSED), f"{ended}\n{file[:2000]!r}"

    try_many()
