"""Command lines that a card shows, rebuilt from the recipe: never from argv, which may hold a token or a local path."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from hubprune.cards.manifest import RECIPE
from hubprune.core.privacy import is_local_data
from hubprune.core.recipe import Recipe
from hubprune.core.specs import HAND, OPTIONS


def reproduce_command(recipe: Recipe, *, repo_id: str, tag: str | None) -> str:
    """Write the command that runs a published result again and compares, of the recipe as it is published."""
    words = ["hubprune reproduce " + shlex.quote(repo_id)]
    words += [f"--revision {tag}"] if tag else []
    words += ["--trust-tasks"] if recipe.evaluation.include_path and recipe.evaluation.tasks else []
    names = dict.fromkeys(s.dataset for s in recipe.calibration.subsets if is_local_data(s.dataset))
    words += [f"--calibration {shlex.quote(name)}" for name in names if recipe.reads_texts]
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
    if evaluation.apply_chat_template is not None:
        yield "--apply-chat-template" if evaluation.apply_chat_template else "--no-apply-chat-template"
    if recipe.reads_texts and recipe.calibration.chat_template:
        yield "--calibration-chat-template"
    if evaluation.limit is not None:
        yield f"--limit {evaluation.limit}"
    yield f"--seed {recipe.seed}"
    if recipe.target.license:
        yield f"--license {shlex.quote(recipe.target.license)}"
    if recipe.target.allow_name:
        yield "--allow-name"
    if recipe.dtype != "auto":
        yield f"--dtype {recipe.dtype}"
    if spec := recipe.quantize:
        size = f" --group-size {spec.group_size}" if spec.group_size else ""
        yield f"--quantize {spec.scheme}{':rtn' if spec.method == 'rtn' else ''}{size}"
    if recipe.gguf:
        yield f"--gguf {','.join(recipe.gguf)}"


def _drop_options(recipe: Recipe) -> Iterator[str]:
    drop, width = recipe.drop, recipe.width
    if width and width.neurons:  # which neurons, only the recipe can say
        return
    for ranking, amount in drop.amounts.items():
        yield f"{OPTIONS[ranking]} {amount}"
    for kind, layers in drop.by_hand.items():
        yield f"{HAND[kind]} {_numbers(layers)}"
    if drop.target:
        yield f"--target {shlex.quote(','.join(f'{goal}={wanted}' for goal, wanted in drop.target.items()))}"
        yield f"--target-over {','.join(drop.parts)}"
    if drop.per:
        yield f"--per {drop.per}"
    if drop.at:
        yield f"--at {drop.at}"
    if drop.protect:
        yield f"--protect {_numbers(drop.protect)}"
    if width and width.neuron_drop:
        yield f"--neuron-drop {width.neuron_drop}"
    elif width and width.expansion_ratio:
        yield f"--expansion-ratio {width.expansion_ratio}"
    elif width:
        yield f"--mlp-width {width.width if isinstance(width.width, int) else _numbers(width.width or ())}"
    if width:
        yield f"--width-metric {width.metric} --width-multiple {width.multiple}"
    if recipe.layout != "auto":
        yield f"--layout {recipe.layout}"
    if recipe.metric != "cosine" and not drop.target:
        yield f"--metric {recipe.metric}"
    if recipe.schedule != "one-shot":
        yield f"--schedule {recipe.schedule}"


def _numbers(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
