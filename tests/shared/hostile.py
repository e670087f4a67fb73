"""Text that breaks Markdown, HTML, YAML or templates where it is not escaped."""

from __future__ import annotations

import made
from card_text import card, headings
from hypothesis import strategies as st

from hubprune.core.artifacts import BaseCard, Continuation

HOSTILE = [
    "| a | b |", "<script>alert(1)</script>", "{{ 7 * 7 }}", "{% raw %}", "```", "~~~~", "````python", "# head", "1. x",
    "-", "---", "===", "\\", "\\|", "a\\", "*b*", "_c_", "a_b", "__", "[x](http://y)", "![i](z)", "http://w.x",
    "www.x.org", "&amp;", "&#x41;", "$x^2$", "@me", ":tada:", "\u202e", "\u200b", "\x00", "\x1b[31m", "\ud800", "\r",
    "\r\n", "\n\n", "\t", "    ", "yes", "no", "1e10", "0x1F", "null", "~", ".inf", "12:30:00", "2020-01-01", "'", '"',
    "%", "?", "e\u0301", "1234567890123456789012345678901234567890", "+1", "- x", "1) y", "\u2028", "\xa0", "=", "<<",
    "\ufeff", "#", "!", "{", "}", "\n---\n", "\n```\n",
]  # fmt: skip
SCRIPTS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</code></pre><script>", "[a](javascript:alert(1))",
    "<svg/onload=alert(1)>", "![x](javascript:alert(1))", "<iframe srcdoc='<script>'>", "{{ card.__class__ }}", "--- |",
]  # fmt: skip
text = st.lists(st.one_of(st.sampled_from([*HOSTILE, *SCRIPTS]), st.text(max_size=8)), max_size=5).map("".join)
SECTIONS = headings(card())


def parts(sample, name, dataset, task, label):
    """A card's parts with a hostile sample, model name, data set, task and other labels."""
    pair = Continuation(prompt=sample, base=sample + name, pruned=sample, base_tokens=1, pruned_tokens=1)
    row = made.benchmarks().tasks[0].model_copy(
        update={
            "task": task, "metric": label or "acc", "dataset": dataset or None, "dataset_config": name, "split": task,
        }
    )  # fmt: skip
    scores = made.scores()
    source = scores.calibration.sources[0].model_copy(update={"dataset": dataset, "config": name, "split": task})
    record = scores.calibration.model_copy(update={"sources": (source,), "mix": label})
    check = made.verification().checks[0].model_copy(update={"name": label, "detail": sample})
    return {
        "base": made.base(name=name or "x", card=BaseCard().model_copy(update={"license": label, "language": (task,)})),
        "benchmarks": made.benchmarks().model_copy(update={"tasks": (row,), "mean_change": None}),
        "generation": made.generation().model_copy(update={"continuations": (pair,)}),
        "scores": scores.model_copy(update={"calibration": record}),
        "verification": made.verification().model_copy(update={"checks": (check,), "transformers": label}),
        "repo_id": f"me/{name}",
    }
