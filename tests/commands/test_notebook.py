"""What a notebook shows of results: the cells of the tables that commands print, pictures, and nothing that runs."""

import base64
import html
import re
from html.parser import HTMLParser

import pytest
from made import benchmarks, report, scores, speed, verification

import hubprune.notebook  # noqa: F401, it lets artifacts show themselves
from hubprune.commands import summary
from hubprune.core.artifacts import Environment, PrunedCheckpoint, PublishedCommit
from hubprune.core.errors import MissingDependencyError

VOID = ("img",)


class Page(HTMLParser):
    """Reads what is shown, and fails where a tag is not closed as it was opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.rows = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def pictures_in(page):
    return [
        base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        for tag, attributes in page.tags
        if tag == "img"
    ]


def test_scores_are_a_table_of_all_layers_and_a_picture():
    found = scores()
    page = Page(found._repr_html_())
    assert page.rows == summary.score_rows(found)
    assert [image[:8] for image in pictures_in(page)] == [b"\x89PNG\r\n\x1a\n"]


def test_benchmarks_are_a_table_with_intervals_and_a_picture():
    found = benchmarks()
    page = Page(found._repr_html_())
    assert page.rows == summary.benchmark_rows(found)
    assert any(re.fullmatch(r"[+-]?\d+\.\d+ to [+-]?\d+\.\d+", row[6]) for row in page.rows[1:])
    assert len(pictures_in(page)) == 1


def test_a_publish_shows_where_it_is_what_it_cost_and_both_pictures():
    where = {"repo_id": "acme/pruned", "url": "https://huggingface.co/acme/pruned"}
    done = PublishedCommit(**where, commit="c" * 40, parent=None, created=True, files=())
    page = Page(report().model_copy(update={"published": done})._repr_html_())
    assert [a["href"] for tag, a in page.tags if tag == "a"] == [done.url]
    assert page.rows[0] == ["", "base", "pruned", "change"]
    assert len(pictures_in(page)) == 2


def test_a_written_checkpoint_shows_what_became_smaller_and_every_check():
    found = PrunedCheckpoint(written=report().checkpoint, verification=verification())
    rows = Page(found._repr_html_()).rows
    assert rows[:4] == summary.checkpoint_rows(found.written)
    assert rows[-len(found.verification.checks) :] == summary.check_rows(found.verification)


def test_a_timing_shows_what_the_command_prints():
    assert html.unescape(speed()._repr_html_()).removeprefix("<pre>").startswith("base ")


def test_names_of_strangers_are_shown_and_never_run():
    name = "<script>alert(1)</script>\"'&"
    found = report()
    base = found.base.model_copy(update={"name": name})
    found = found.model_copy(update={"base": base, "published": None, "repo_id": name})
    shown = found._repr_html_()
    assert "<script" not in shown
    assert html.escape(name) in shown
    Page(shown)


def test_without_matplotlib_the_tables_remain(monkeypatch):
    from hubprune.plots import pictures

    def missing(*_, **__):
        raise MissingDependencyError("matplotlib is not installed.")

    monkeypatch.setattr(pictures, "importance_figure", missing)
    shown = scores()._repr_html_()
    assert "<img" not in shown
    assert Page(shown).rows == summary.score_rows(scores())


def test_an_artifact_that_nothing_is_named_for_is_shown_by_its_repr():
    made = Environment(hubprune="0", python="3", platform="x", machine="y", threads=1, versions={})
    assert made._repr_html_() is None


@pytest.mark.parametrize("make", [scores, benchmarks, report])
def test_the_same_value_is_shown_the_same_way(make):
    assert make()._repr_html_() == make()._repr_html_()
