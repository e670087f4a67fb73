"""The picture of a card: drawn into the published files, and left out where it cannot be drawn."""

from types import SimpleNamespace

import made
import pytest

from hubprune import pictures, pipeline
from hubprune.console import Reporter
from hubprune.plots import style


@pytest.fixture
def run(capsys):
    return SimpleNamespace(reporter=Reporter())


def drawn(run, folder, **changes):
    parts = {"scores": made.scores(), "plan": made.plan(), "base": made.base(), "benchmarks": None, **changes}
    return pipeline._pictures(run, folder, SimpleNamespace(**parts)).importance


def test_it_lies_where_the_card_links_it_and_is_the_same_every_time(run, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert drawn(run, first) == drawn(run, second) == pictures.CARD_PICTURE
    data = (first / pictures.CARD_PICTURE).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data == (second / pictures.CARD_PICTURE).read_bytes()
    assert [path.name for path in first.rglob("*") if path.is_file()] == ["importance.png"]


def test_without_matplotlib_the_card_does_without_and_the_extra_is_named(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(style, "find_spec", lambda _: None)
    assert drawn(run, tmp_path) is None
    assert 'pip install "hubprune[plots]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_scores_there_is_nothing_to_draw(run, tmp_path):
    assert drawn(run, tmp_path, scores=None) is None
    assert not list(tmp_path.iterdir())
