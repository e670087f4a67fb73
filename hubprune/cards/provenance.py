"""The end of the card: how to reproduce it, whose terms apply, what to cite.

The command line of a publish is rebuilt from its recipe: never from argv, which may hold a token or a local path.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from urllib.parse import quote

from hubprune.cards.context import Licence, Link, Reproduction, Table
from hubprune.cards.license import card_in_force, license_files, license_name, license_sentences
from hubprune.cards.manifest import RECIPE
from hubprune.cards.markdown import listing
from hubprune.core.artifacts import BaseCheckpoint, DropPlan, PublishReport, Refreshed
from hubprune.core.console import duration
from hubprune.core.privacy import is_local_data, page
from hubprune.core.recipe import Recipe
from hubprune.core.specs import HAND, OPTIONS

STAGES: Mapping[str, str] = {
    "rounds": "scores of later rounds",
    "checkpoint": "pruning and verification",
    "benchmarks": "benchmarks of both",
    "base-text": "free text of the base",
    "generation": "free text of this model",
    "snippet": "the code under Use it",
}
"""Stage of a run -> what the card calls it."""
TIMES = ("Stage", "Time")
TIMES_TABLE = re.compile(rb"^\| Stage \| Time \|\n(?:\|.*\n?)*", re.MULTILINE)
"""That table as the card has it."""


def reproduction(report: PublishReport, *, recipe: Recipe, tag: str | None) -> Reproduction:
    """Collect commands, versions, hardware and times."""
    base, environment = report.base, report.environment
    versions = (
        ("Base", base.name),
        *([("Base commit", base.commit)] if base.commit else []),
        ("Hardware", f"{environment.machine}, {environment.threads} thread{'s'[: environment.threads - 1]}"),
        ("Platform", environment.platform),
        ("hubprune", environment.hubprune),
        ("Python", environment.python),
        *sorted(environment.versions.items()),
    )
    times = tuple((STAGES.get(stage, stage), duration(seconds)) for stage, seconds in report.seconds.items())
    return Reproduction(
        check=reproduce_command(recipe, repo_id=report.repo_id, tag=tag),
        command=publish_command(recipe),
        needs_tasks=recipe.evaluation.include_path is not None,
        refreshed=_told_refreshes(report.refreshed) if report.refreshed else None,
        environment=Table(columns=("", "Value"), align="ll", rows=versions),
        seconds=Table(columns=TIMES, align="lr", rows=times) if times else None,
    )


def _told_refreshes(refreshed: tuple[Refreshed, ...]) -> str:
    """Say in one line which files are those of a later version, and with which ones everything was measured."""
    first, last = refreshed[0], refreshed[-1]
    paths = sorted({file.path for refresh in refreshed for file in refresh.files})
    there = f"tag {first.tag}" if first.tag else f"commit {first.commit[:12]}"
    return (
        f"Refreshed with hubprune {last.to_version}, which wrote {listing(paths)} anew and computed nothing: the"
        " weights are the same, and all that this card tells of was measured with the files of hubprune"
        f" {first.from_version}, {there}."
    )


def without_times(card: bytes) -> bytes:
    """Leave the table of wall-clock times out of a card: two runs of the same never take the same seconds."""
    return TIMES_TABLE.sub(b"", card)


def reproduce_command(recipe: Recipe, *, repo_id: str, tag: str | None) -> str:
    """Write the command that runs a published result again and compares, of the recipe as it is published."""
    words = ["hubprune reproduce " + shlex.quote(repo_id)]
    words += [f"--revision {tag}"] if tag else []
    words += ["--trust-tasks"] if recipe.evaluation.include_path and recipe.evaluation.tasks else []
    names = dict.fromkeys(s.dataset for s in recipe.calibration.subsets if is_local_data(s.dataset))
    words += [f"--calibration {shlex.quote(name)}" for name in names if recipe.needs_scores]
    return " \\\n    ".join(words)


def publish_command(recipe: Recipe) -> str:
    """Write the command that gives the same result, one option per line.

    It reads recipe.yaml, which alone can hold a mix or prompts of one's own; the options repeat what decides most.
    """
    return " \\\n    ".join(["hubprune publish " + shlex.quote(recipe.base.repo_id), *_options(recipe)])


def _options(recipe: Recipe) -> Iterator[str]:
    yield f"--recipe {RECIPE}"
    yield f"--base-revision {shlex.quote(recipe.base.revision)}"
    yield from _drop_options(recipe)
    if recipe.aggregation != "document":
        yield f"--aggregation {recipe.aggregation}"
    evaluation = recipe.evaluation
    yield f"--tasks {shlex.quote(','.join(evaluation.tasks) or 'none')}"
    if shots := evaluation.num_fewshot:
        each = ",".join(f"{task}={shots[task]}" for task in evaluation.tasks if task in shots)
        alike = len({*shots.values()}) == 1 and len(shots) == len(evaluation.tasks)
        yield f"--num-fewshot {shlex.quote(str(next(iter(shots.values()))) if alike else each)}"
    if evaluation.include_path:
        yield f"--include-path {shlex.quote(evaluation.include_path)}"
    if evaluation.limit is not None:
        yield f"--limit {evaluation.limit}"
    yield f"--seed {recipe.seed}"
    if recipe.target.license:
        yield f"--license {shlex.quote(recipe.target.license)}"
    if recipe.target.allow_name:
        yield "--allow-name"
    if recipe.dtype != "auto":
        yield f"--dtype {recipe.dtype}"


def _drop_options(recipe: Recipe) -> Iterator[str]:
    drop, width = recipe.drop, recipe.width
    for ranking, amount in drop.amounts.items():
        yield f"{OPTIONS[ranking]} {amount}"
    for kind, layers in drop.by_hand.items():
        yield f"{HAND[kind]} {_numbers(layers)}"
    if drop.protect:
        yield f"--protect {_numbers(drop.protect)}"
    if width and width.drop_neurons:
        yield f"--drop-neurons {width.drop_neurons}"
    elif width and width.expansion_ratio:
        yield f"--expansion-ratio {width.expansion_ratio}"
    elif width:
        yield f"--mlp-width {width.width if isinstance(width.width, int) else _numbers(width.width or ())}"
    if width:
        yield f"--width-metric {width.metric} --width-multiple {width.multiple}"
    if recipe.layout != "auto":
        yield f"--layout {recipe.layout}"
    if recipe.metric != "cosine":
        yield f"--metric {recipe.metric}"
    if recipe.schedule != "one-shot":
        yield f"--schedule {recipe.schedule}"


def _numbers(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def licence(base: BaseCheckpoint, *, plan: DropPlan, name: str, given: str | None) -> Licence:
    """Say whose terms apply; a base without a licence gets no guess."""
    changed = f"The files of {base.name} were changed: {plan.parts} were removed as described above."
    return Licence(
        name=license_name(card_in_force(base, given=given)),
        sentences=(changed, *license_sentences(base, given=given, name=name)),
        files=tuple(Link(name=path, url=quote(path)) for path in license_files(base)),
    )


def citations(report: PublishReport) -> tuple[str, ...]:
    """Return BibTeX entries for the base at its endpoint, the methods, the benchmarks if any were run, and hubprune."""
    base, plan = report.base, report.plan
    owner, _, name = (part.replace("_", r"\_") for part in base.name.rpartition("/"))
    url = page(base.name, endpoint=report.endpoint) if base.commit else None
    fields = {
        "title": name,
        "author": f"{{{owner}}}" if owner else "",
        "howpublished": f"\\url{{{url}}}" if url else "",
        "note": f"Commit {base.commit}" if base.commit else "",
    }
    lines = [f"  {key} = {{{value}}}" for key, value in fields.items() if value]
    cited = ["@misc{base,\n" + ",\n".join(lines) + "\n}"]
    cited += [PAPER] if plan.dropped else []
    cited += [WIDTH_PAPER] if plan.widths else []
    return (*cited, *([LM_EVAL] if report.benchmarks is not None else []), HUBPRUNE)


PAPER = """\
@article{he2024matters,
  title = {What Matters in Transformers? Not All Attention is Needed},
  author = {He, Shwai and Sun, Guoheng and Shen, Zheyu and Li, Ang},
  journal = {arXiv preprint arXiv:2406.15786},
  year = {2024}
}"""

WIDTH_PAPER = """\
@article{martra2025fragile,
  title = {Fragile Knowledge, Robust Instruction-Following: The Width Pruning Dichotomy in Llama-3.2},
  author = {Martra, Pere},
  journal = {arXiv preprint arXiv:2512.22671},
  year = {2025}
}"""

LM_EVAL = """\
@misc{eval-harness,
  title = {The Language Model Evaluation Harness},
  author = {Gao, Leo and Tow, Jonathan and Abbasi, Baber and Biderman, Stella and Black, Sid and DiPofi, Anthony and
            Foster, Charles and Golding, Laurence and Hsu, Jeffrey and Le Noac'h, Alain and Li, Haonan and
            McDonell, Kyle and Muennighoff, Niklas and Ociepa, Chris and Phang, Jason and Reynolds, Laria and
            Schoelkopf, Hailey and Skowron, Aviya and Sutawika, Lintang and Tang, Eric and Thite, Anish and
            Wang, Ben and Wang, Kevin and Zou, Andy},
  publisher = {Zenodo},
  year = {2024},
  doi = {10.5281/zenodo.12608602}
}"""

HUBPRUNE = """\
@software{hubprune,
  title = {hubprune: prune a language model, measure what it cost, publish the result},
  author = {{The hubprune authors}}
}"""
