"""Rebuild the command line of a publish from its recipe: never from argv, which may hold a token or a local path."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from hubprune.cards.manifest import RECIPE
from hubprune.core.drop_spec import HAND, OPTIONS, WidthSpec
from hubprune.core.privacy import is_local_data
from hubprune.core.recipe import Recipe

__all__ = ["publish_command", "reproduce_command"]


def publish_command(recipe: Recipe) -> str:
    """Write the command that gives the same result, one option per line.

    It reads recipe.yaml, which alone can hold a mix or prompts of one's own; the options repeat what decides most.

    Args:
        recipe: as it is published (`privacy.public_recipe`).
    """
    words = ["hubprune publish " + shlex.quote(recipe.base.repo_id), *_options(recipe)]
    return " \\\n    ".join(words)


def reproduce_command(recipe: Recipe, *, repo_id: str, tag: str | None) -> str:
    """Write the command that runs a published result again and compares.

    Args:
        recipe: as it is published (`privacy.public_recipe`).
        repo_id: where the result is.
        tag: that names it there; None where there is none.
    """
    words = ["hubprune reproduce " + shlex.quote(repo_id)]
    words += [f"--revision {tag}"] if tag else []
    words += ["--trust-tasks"] if recipe.evaluation.include_path and recipe.evaluation.tasks else []
    names = dict.fromkeys(s.dataset for s in recipe.calibration.subsets if is_local_data(s.dataset))
    words += [f"--calibration {shlex.quote(name)}" for name in names if recipe.needs_scores]
    return " \\\n    ".join(words)


def _options(recipe: Recipe) -> Iterator[str]:
    yield f"--recipe {RECIPE}"
    yield f"--base-revision {shlex.quote(recipe.base.revision)}"
    yield from _drop_options(recipe)
    if recipe.aggregation != "document":
        yield f"--aggregation {recipe.aggregation}"
    yield from _evaluation_options(recipe)
    yield f"--seed {recipe.seed}"
    if recipe.target.license:
        yield f"--license {shlex.quote(recipe.target.license)}"
    if recipe.target.allow_name:
        yield "--allow-name"
    if recipe.dtype != "auto":
        yield f"--dtype {recipe.dtype}"


def _drop_options(recipe: Recipe) -> Iterator[str]:
    drop = recipe.drop
    for ranking, amount in drop.amounts.items():
        yield f"{OPTIONS[ranking]} {amount}"
    for kind, layers in drop.by_hand.items():
        yield f"{HAND[kind]} {_numbers(layers)}"
    if drop.protect:
        yield f"--protect {_numbers(drop.protect)}"
    yield from _width_options(recipe.width)
    if recipe.layout != "auto":
        yield f"--layout {recipe.layout}"
    if recipe.metric != "cosine":
        yield f"--metric {recipe.metric}"
    if recipe.schedule != "one-shot":
        yield f"--schedule {recipe.schedule}"


def _width_options(width: WidthSpec | None) -> Iterator[str]:
    if width is None:
        return
    if width.drop_neurons:
        yield f"--drop-neurons {width.drop_neurons}"
    elif width.expansion_ratio:
        yield f"--expansion-ratio {width.expansion_ratio}"
    else:
        yield f"--mlp-width {width.width if isinstance(width.width, int) else _numbers(width.width or ())}"
    yield f"--width-metric {width.metric} --width-multiple {width.multiple}"


def _evaluation_options(recipe: Recipe) -> Iterator[str]:
    evaluation = recipe.evaluation
    yield f"--tasks {shlex.quote(','.join(evaluation.tasks) or 'none')}"
    if shots := evaluation.num_fewshot:
        yield f"--num-fewshot {shlex.quote(_examples(shots, evaluation.tasks))}"
    if evaluation.include_path:
        yield f"--include-path {shlex.quote(evaluation.include_path)}"
    if evaluation.limit is not None:
        yield f"--limit {evaluation.limit}"


def _examples(shots: Mapping[str, int], tasks: tuple[str, ...]) -> str:
    same = {*shots.values()}
    if len(same) == 1 and len(shots) == len(tasks):
        return str(same.pop())
    return ",".join(f"{task}={shots[task]}" for task in tasks if task in shots)


def _numbers(numbers: tuple[int, ...]) -> str:
    return ",".join(str(n) for n in numbers)
