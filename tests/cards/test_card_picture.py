"""The picture of a card: drawn into the published files, and left out where it cannot be drawn."""

from types import SimpleNamespace

import made
import pytest

from hubprune import plots
from hubprune.cards.card import Pictures, render
from hubprune.core import extras
from hubprune.core.console import Reporter
from hubprune.plots import pictures
from hubprune.plots.curves import LOOKS
from hubprune.workflows.publish import stages


@pytest.fixture
def run(capsys):
    return SimpleNamespace(reporter=Reporter())


def drawn(run, folder, **changes):
    parts = {"scores": made.scores(), "plan": made.plan(), "base": made.base(), "benchmarks": None, **changes}
    return stages._pictures(run, folder, SimpleNamespace(**parts)).importance


def test_it_lies_where_the_card_links_it_and_is_the_same_every_time(run, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert drawn(run, first) == drawn(run, second) == pictures.CARD_PICTURE
    data = (first / pictures.CARD_PICTURE).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data == (second / pictures.CARD_PICTURE).read_bytes()
    assert [path.name for path in first.rglob("*") if path.is_file()] == ["importance.png"]


def test_without_matplotlib_the_card_does_without_and_the_extra_is_named(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(extras, "is_installed", lambda name: False)
    assert drawn(run, tmp_path) is None
    assert extras.install("plots") in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_scores_there_is_nothing_to_draw(run, tmp_path):
    assert drawn(run, tmp_path, scores=None) is None
    assert not list(tmp_path.iterdir())


# ---- changes of the benchmarks -----------------------------------------------------------------------------------


def test_the_changes_lie_where_the_card_links_them_and_are_the_same_every_time(tmp_path):
    paths = [pictures.draw_changes(made.benchmarks(), tmp_path / name, base="a/b") for name in ("first", "second")]
    assert paths == [pictures.BENCHMARK_PICTURE] * 2
    first, second = ((tmp_path / name / paths[0]).read_bytes() for name in ("first", "second"))
    assert first.startswith(b"\x89PNG")
    assert first == second


def test_metrics_that_have_no_points_are_not_drawn(tmp_path):
    perplexity = made.benchmarks().tasks[-1]
    assert pictures.draw_changes(made.benchmarks(tasks=(perplexity,)), tmp_path, base="a/b") is None
    assert not list(tmp_path.iterdir())


def test_every_verdict_has_a_look_of_its_own_and_the_picture_the_changes_and_intervals():
    rows = [
        plots.Change(label=f"_task {mark}", points=place - 2.0, low=place - 3.0, high=place - 1.0, mark=mark)
        for place, mark in enumerate(LOOKS)
    ]
    mean = plots.Change(label="mean", points=0.5, low=-0.5, high=1.5)
    figure = plots.changes(rows, mean=mean, title="x")
    (axes,) = figure.axes
    spans = sorted(
        tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 2
    )
    assert spans == sorted([(row.low, row.high) for row in (*rows, mean)])
    assert [text.get_text() for text in axes.texts] == ["−2.00", "−1.00", "0.00", "+1.00", "+2.00", "+0.50"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*LOOKS, "95 % interval"]
    assert len({*LOOKS.values()}) == len({marker for marker, _ in LOOKS.values()}) == len(LOOKS)


def test_the_card_says_in_words_what_the_picture_shows():
    drawn = Pictures(benchmarks=pictures.BENCHMARK_PICTURE)
    text = render(made.card_context(pictures=drawn))
    words = "Changes of the benchmarks in points with their 95 % intervals, against no change"
    assert f"![{words}: arc_easy −0.76, lambada_openai −7.80](assets/benchmarks.png)" in text.replace("\\:", ":")
