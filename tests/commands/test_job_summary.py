"""What the page of a CI job says of a publish, and what its next steps can use."""

from __future__ import annotations

import io

import made
import made_siblings
import pytest
from rich.console import Console

from hubprune.commands.ci import Outcome, job_summary, told_to_job
from hubprune.core.artifacts import PlannedFile, PublishedCommit, UploadPlan
from hubprune.core.console import Reporter
from hubprune.core.errors import EditedError, OverBudgetError, RecipeError

COMMIT = "ab" * 20
URL = f"https://huggingface.co/me/tiny/commit/{COMMIT}"
PUBLISHED = PublishedCommit(
    repo_id="me/tiny", commit=COMMIT, parent=None, url=URL, created=True, tag="hubprune-1234abcd", files=()
)
EXPECTED = """\
## hubprune: Published

me/tiny at [abababababab](https://huggingface.co/me/tiny/commit/abababababababababababababababababababab), tag \
hubprune-1234abcd

- Base: meta-llama/Llama-3.2-3B at 13afe5124825
"""
TOKEN = "hf_" + "a" * 34


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The two files of a job, with what earlier steps left in them."""
    summary, output = tmp_path / "summary.md", tmp_path / "output"
    summary.write_text("earlier\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_OUTPUT", str(output))
    return summary, output


@pytest.fixture
def reporter():
    quiet = Reporter(quiet=True)
    quiet._console = Console(file=io.StringIO())
    return quiet


def ended(report=None, error=None, warnings=()):
    return job_summary(Outcome(report=report, error=error, warnings=warnings))


def test_a_publish_is_told_with_its_commit_what_was_dropped_what_it_cost_and_the_warnings():
    text = ended(made.report(published=PUBLISHED), warnings=("The card gets no pictures: | none |",))
    assert text.startswith(EXPECTED.rstrip())
    assert "\n- Removed: the attention of layers 4, 5 and 6, counted from 0 in the base" in text
    first, details = text.split("<details>")
    [row] = [line for line in first.splitlines() if line.startswith("| lambada_openai, acc, % ↑ |")]
    assert {"69.69", "−7.80 points (−11.00 to −4.60)", "worse"} <= {cell.strip() for cell in row.split("|")}
    [row] = [line for line in details.splitlines() if line.startswith("| lambada_openai | acc, % ↑ |")]
    columns = next(line for line in details.splitlines() if line.startswith("| Task |")).split(" | ")
    assert dict(zip(columns, row.split(" | "), strict=True))["n"] == "500 of 2,376"
    assert "Mean change: −4.28 (−6.22 to −2.34) points." in text
    assert "### Warnings\n\n- The card gets no pictures: \\| none \\|\n" in text
    assert "### Budget" not in text


def test_a_dry_run_says_where_it_would_go_and_how_much_of_it_is_new():
    files = [
        PlannedFile(path="README.md", size=5, change="changed", new_bytes=5),
        PlannedFile(path="config.json", size=9, change="unchanged", new_bytes=0),
    ]
    upload = UploadPlan(
        repo_id="me/tiny", revision="main", parent=None, create_pr=False, files=files, upload_bytes=5, primer_bytes=0,
        new_bytes=1500, card="",
    )  # fmt: skip
    said = "It would go to me/tiny: 1 of 2 files, 1.50 kB new to the Hub."
    assert said in ended(made.report(upload=upload))
    assert said not in ended(made.report(upload=upload, published=PUBLISHED))


def test_the_four_other_endings_have_a_title_of_their_own():
    again = PUBLISHED.model_copy(update={"created": False})
    endings = [
        ended(made.report(published=again)),
        ended(made.report()),
        ended(made.report(), OverBudgetError("Nothing was published.", hint="Drop less.")),
        ended(None, RecipeError("--attn-drop: 99 are too many.", hint="Pass fewer.")),
    ]
    assert [text.splitlines()[0].removeprefix("## hubprune: ") for text in endings] == [
        "Up to date", "Dry run: nothing was written to the Hub", "Over budget: nothing was published", "Failed",
    ]  # fmt: skip
    assert endings[-1] == "## hubprune: Failed\n\n> \\--attn-drop: 99 are too many.\n> Pass fewer.\n"


def test_siblings_are_linked_with_how_close_they_are():
    quantized = made_siblings.report(published=PUBLISHED)
    text = ended(made.report(published=PUBLISHED, siblings=(quantized, made_siblings.report("gguf"))))
    assert "### Siblings\n\n- oopere/Llama-3.2-3B-attn-drop-3-W4A16 at [" in text.replace("\\", "")
    assert "(KL 0.0312 nats per token, the same first choice at 91.2 %)" in text.replace("\\", "")
    assert "- oopere/Llama-3.2-3B-attn-drop-3-GGUF (q8_0, q4_k_m)" in text.replace("\\", "")


def test_a_budget_is_a_table_of_what_was_allowed_and_what_happened():
    report = made.report()
    evaluation = {**report.recipe["evaluation"], "max_loss": {"arc_easy": 1.0, "mean": 3.0, "loops": 5}}
    text = ended(report.model_copy(update={"recipe": {**report.recipe, "evaluation": evaluation}}))
    assert "### Budget\n\n| Task | Δ points | Allowed | Kept |\n| --- | ---: | ---: | --- |\n" in text
    assert "| arc_easy | −0.76 (−2.96 to +1.44) | −1.00 | yes |\n| mean | −4.28 (−6.22 to −2.34) | −3.00 | no |" in text
    assert "\n| loops | +33.33 (" in text
    assert "| +5.00 | no |" in text


def test_a_result_that_was_published_and_then_failed_is_linked():
    text = ended(made.report(published=PUBLISHED), RecipeError("It does not load."))
    assert "It is published all the same: me/tiny at [abababababab](" in text


def test_text_of_others_cannot_leave_its_place():
    error = RecipeError(f"{TOKEN}\n::add-mask::x\n<img src=x> [a](javascript:b) | # h")
    hostile = PUBLISHED.model_copy(update={"url": "http://h/x) [y](http://evil <b>"})
    text = ended(made.report(published=hostile), error, warnings=("`a`\n\n# b",))
    assert TOKEN not in text
    assert "<img" not in text
    assert "\n::" not in text
    assert "\n# b" not in text
    assert r"\[a\](javascript\:b)" in text
    assert "(http://h/x%29%20%5By%5D%28http://evil%20%3Cb%3E)" in text


def test_the_job_gets_summary_and_outputs_after_what_was_there(job, reporter):
    with told_to_job(reporter) as told:
        told(made.report())
        told(made.report(published=PUBLISHED))
        reporter.warn("mind this")
    summary, output = job
    assert summary.read_text().startswith("earlier\n## hubprune: Published\n")
    assert "- mind this" in summary.read_text()
    assert dict(line.split("=", 1) for line in output.read_text().splitlines()) == {
        "outcome": "published", "repo_id": "me/tiny", "commit": COMMIT, "url": URL, "tag": "hubprune-1234abcd",
        "pull_request_url": "", "created": "true",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "outcome", "said"),
    [
        (OverBudgetError("Too much."), "over-budget", "> Too much."),
        (EditedError("It was changed."), "edited", "## hubprune: Edited on the Hub: nothing was published\n\n> It was"),
        (RecipeError("No base."), "failed", "> No base."),
        (KeyboardInterrupt(), "failed", "> It was interrupted."),
        (ZeroDivisionError("secret"), "failed", "> It broke off with ZeroDivisionError; the log has the traceback."),
    ],
)
def test_a_job_that_fails_is_told_why_and_the_error_goes_on(job, reporter, error, outcome, said):
    with pytest.raises(type(error)), told_to_job(reporter):
        raise error
    summary, output = job
    assert said in summary.read_text()
    assert "secret" not in summary.read_text()
    assert output.read_text() == f"outcome={outcome}\n"


def test_a_summary_that_cannot_be_written_fails_nothing(tmp_path, monkeypatch, reporter):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "absent" / "summary.md"))
    with told_to_job(reporter) as told:
        told(made.report())
    assert "could not be written" in reporter.warned[-1]


def test_outside_of_a_job_nothing_is_written(tmp_path, monkeypatch, reporter):
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with told_to_job(reporter) as told:
        told(made.report())
    assert list(tmp_path.iterdir()) == []
