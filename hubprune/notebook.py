"""What a notebook shows of results: tables and pictures as HTML, each cell escaped, with no style but alignment.

The rows are those of the tables that commands print.  Importing this module is what makes artifacts show themselves.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, TypeVar

from hubprune.commands import summary
from hubprune.commands.measured_lines import picked_lines, speed_lines, sweep_head, sweep_rows
from hubprune.commands.side_by_side import comparison_text, study_tables

# fmt: off
# isort: off
from hubprune.core.artifacts import (
    Artifact, BenchmarkComparison, CheckpointComparison, Checkup, LayerScores, PrunedCheckpoint, PublishReport,
    Reproduction, ScoreStudy, SpeedReport, SweepReport, Verification, shown_by,
)
# isort: on
# fmt: on
from hubprune.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shown = TypeVar("Shown", bound=Artifact)


def table(rows: Sequence[Sequence[str]], *, left: int, head: bool = True) -> str:
    """Write rows as a table; the first `left` columns are aligned to the left, the others to the right."""

    def line(row: Sequence[str], tag: str) -> str:
        """Write one row, all its cells with one tag."""
        cells = (
            f'<{tag} style="text-align: {"left" if i < left else "right"}">{escape(cell)}</{tag}>'
            for i, cell in enumerate(row)
        )
        return f"<tr>{''.join(cells)}</tr>"

    top = f"<thead>{line(rows[0], 'th')}</thead>" if head else ""
    return f"<table>{top}<tbody>{''.join(line(row, 'td') for row in rows[head:])}</tbody></table>"


def paragraph(text: str) -> str:
    """Write a text that is no table."""
    return f"<p>{escape(text)}</p>"


def preformatted(text: str) -> str:
    """Write the text that a command prints, in columns as there."""
    return f"<pre>{escape(text)}</pre>"


def pictures(draw: Callable[[], Iterable[tuple[str, Figure | None]]]) -> Iterator[str]:
    """Draw pictures into the page itself, each under a few words; none where matplotlib is not installed."""
    from hubprune.plots import png

    try:
        for words, figure in draw():
            if figure:
                content = base64.b64encode(png(figure)).decode()
                yield f'<img alt="{escape(words)}" style="max-width: 100%" src="data:image/png;base64,{content}">'
    except MissingDependencyError:
        return


def _scores(scores: LayerScores) -> Iterator[str]:
    from hubprune.plots.pictures import importance_figure

    yield paragraph(summary.scores_head(scores))
    yield table(summary.score_rows(scores), left=0)
    yield from pictures(lambda: [("importance", importance_figure(scores, None, base="the base"))])


def _study(study: ScoreStudy) -> Iterator[str]:
    yield preformatted(study_tables(study))


def _swept(report: SweepReport) -> Iterator[str]:
    from hubprune.plots.pictures import sweep_figures

    yield paragraph(sweep_head(report))
    yield table(sweep_rows(report), left=1)
    yield from map(preformatted, picked_lines(report))
    yield paragraph(report.note)
    yield from pictures(lambda: sweep_figures(report))


def _benchmarks(benchmarks: BenchmarkComparison, *, base: str = "the base") -> Iterator[str]:
    from hubprune.plots.pictures import changes_figure

    yield table(summary.benchmark_rows(benchmarks), left=2)
    yield from map(paragraph, summary.mean_lines(benchmarks))
    yield from pictures(lambda: [("changes against the base", changes_figure(benchmarks, base=base))])


def _verification(verification: Verification) -> Iterator[str]:
    yield table([["outcome", "check", "what was seen"], *summary.check_rows(verification)], left=3)


def _pruned(pruned: PrunedCheckpoint) -> Iterator[str]:
    yield table(summary.checkpoint_rows(pruned.written), left=1)
    yield from _verification(pruned.verification)


def _published(report: PublishReport) -> Iterator[str]:
    from hubprune.plots.pictures import importance_figure

    if done := report.published:
        link = escape(done.pull_request_url or done.url)
        yield f'<p>{"published" if done.created else "up to date"}: <a href="{link}">{escape(done.repo_id)}</a></p>'
    else:
        yield paragraph(f"dry run: nothing was published to {report.repo_id}")
    yield table(summary.checkpoint_rows(report.checkpoint), left=1)
    if report.benchmarks:
        yield from _benchmarks(report.benchmarks, base=report.base.name)
    if report.generation and report.generation.repetition:
        yield paragraph(summary.free_text_line(report.generation.repetition))
    if scores := report.scores:
        yield from pictures(lambda: [("importance", importance_figure(scores, report.plan, base=report.base.name))])


def _timed(report: SpeedReport) -> Iterator[str]:
    yield preformatted(speed_lines(report))


def _compared(comparison: CheckpointComparison) -> Iterator[str]:
    yield preformatted(comparison_text(comparison))


def _reproduced(seen: Reproduction) -> Iterator[str]:
    from hubprune.commands.published import reproduction_lines

    yield preformatted(reproduction_lines(seen))


def _looked_at(seen: Checkup) -> Iterator[str]:
    yield preformatted(summary.checkup_lines(seen))


def _enter(kind: type[Shown], parts: Callable[[Shown], Iterator[str]]) -> None:
    shown_by(kind, lambda value: "\n".join(parts(value)))


_enter(LayerScores, _scores)
_enter(ScoreStudy, _study)
_enter(SweepReport, _swept)
_enter(BenchmarkComparison, _benchmarks)
_enter(Verification, _verification)
_enter(PrunedCheckpoint, _pruned)
_enter(PublishReport, _published)
_enter(SpeedReport, _timed)
_enter(CheckpointComparison, _compared)
_enter(Reproduction, _reproduced)
_enter(Checkup, _looked_at)
