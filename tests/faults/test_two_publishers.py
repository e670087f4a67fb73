"""Two publishers at once: one commit for each winner, and the other is told so."""

from __future__ import annotations

import pytest
from race_rounds import run


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 9])
def test_one_wins_and_the_other_is_told(world, number):
    found = run(world, number)
    assert found.problems == []
    assert found.commits == 1
    assert sorted(found.said)[-1] in ("published", "up to date")
