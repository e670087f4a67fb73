"""What a request asks for as a recipe; for a score, as one recipe for every pass.

Options that were given win over a recipe file, and that over the defaults of a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import StudyKind
from hubprune.core.errors import RecipeError
from hubprune.core.options import Dropping, Measuring, Scoring
from hubprune.core.prompts import read_prompts
from hubprune.core.recipe import MEAN, Recipe, parse, read_recipe
from hubprune.core.requests import PruneRequest, PublishRequest, ScoreRequest, SweepRequest
from hubprune.pruning.documents import COSMOPEDIA, find_mix, is_file

MIX_SETTINGS = ("num_samples", "max_tokens", "packed", "chat_template", "shuffle_buffer")
TARGET = (
    "repo_id", "revision", "private", "create_pr", "staged", "collection", "supersedes", "license", "allow_name",
)  # fmt: skip
"""What a recipe takes over of a publish, under the same names, of where the result goes; below, how it runs."""
SHARED = ("seed", "device", "dtype", "aggregation", "score_batch_size", "metric")
WithRecipe = PublishRequest | PruneRequest | ScoreRequest | SweepRequest


def recipe_of(request: WithRecipe, *, drop: Mapping[str, Any] | None = None) -> Recipe:
    """Make the recipe of a request, whose options win over its recipe file; `drop` is what goes where it does not say.

    Raises:
        RecipeError: no base, nothing to drop, or a value that cannot be used.
    """
    publish = request if isinstance(request, PublishRequest) else None
    values = read_recipe(Path(publish.recipe)).model_dump(exclude_none=True) if publish and publish.recipe else {}
    gone, width = {**_drop(request), **(drop or {})}, _width(request)
    if gone.get("target"):
        values.pop("metric", None)  # that of a file was for what it dropped
    if gone.keys() - {"at", "per", "target_over"} or width.keys() - {"metric", "multiple"}:
        # What the file says to drop is replaced, not added to.
        values["drop"] = {k: v for k, v in values.get("drop", {}).items() if k == "protect"}
        values.pop("width", None)
    evaluation = _evaluation(request)
    if "tasks" in evaluation:
        values.get("evaluation", {}).pop("num_fewshot", None)  # they were for the file's tasks
    if "max_loss" in evaluation:
        values.get("evaluation", {}).pop("max_loss", None)  # a budget is replaced, so that it can be lifted too
    parts = {
        "base": _given(repo_id=request.base, revision=request.base_revision),
        "drop": gone | _given(protect=_numbers(request.protect, option="--protect")),
        **({"width": width} if width else {}),
        "evaluation": evaluation,
        "target": _given(**{name: getattr(publish, name) for name in TARGET}) if publish else {},
    }
    for part, fields in parts.items():
        old = values.get(part, {})
        both = {k: {**old[k], **v} for k, v in fields.items() if isinstance(v, dict) and isinstance(old.get(k), dict)}
        values[part] = {**old, **fields, **both}
    if publish:
        _add_siblings(values, publish)
    values |= _given(**{name: getattr(request, name) for name in SHARED})
    if isinstance(request, Dropping):
        values |= _given(layout=request.layout, schedule=request.schedule)
    scoring: Scoring = request
    given = {name: getattr(scoring, name) for name in ("num_samples", "max_tokens")}
    mix, sizes = values.get("calibration"), _given(**given, chat_template=scoring.calibration_chat_template)
    if name := scoring.calibration:
        # A file of documents has no settings of its own: those of the recipe stay.
        kept = {key: mix[key] for key in MIX_SETTINGS} if mix and is_file(name) else {}
        mix = {**find_mix(name).model_dump(), **kept}
    values["calibration"] = {**(mix or COSMOPEDIA.model_dump()), **sizes}
    if not values["base"].get("repo_id"):
        raise RecipeError("Which base?", hint="Name one, as in hubprune publish meta-llama/Llama-3.2-3B --attn-drop 3.")
    return parse(Recipe, values)


def _add_siblings(values: dict[str, Any], request: PublishRequest) -> None:
    """Put into the values of a recipe what is published beside the result; `none` takes out what the file says."""
    if request.heal is not None:
        told = values.pop("heal", None)
        if request.heal:
            values["heal"] = told or {}
    if request.heal_steps is not None:
        if "heal" not in values:
            raise RecipeError("--heal-steps is for what is healed.", hint="Pass --heal with it.")
        values["heal"] = {**values["heal"], "steps": request.heal_steps}
    if request.healed is not None and "heal" in values:
        raise RecipeError(
            "--heal trains here, and --healed publishes what was trained elsewhere.",
            hint="Pass one of them, or --no-heal where the recipe says to heal.",
        )
    if request.quantize is not None:
        scheme, _, method = request.quantize.strip().lower().partition(":")
        values.pop("quantize", None)
        if scheme != "none":
            values["quantize"] = {"scheme": scheme, **({"method": method} if method else {})}
    if request.group_size is not None:
        if "quantize" not in values:
            raise RecipeError("--group-size is for what is quantized.", hint="Pass --quantize w4a16 with it.")
        values["quantize"] = {**values["quantize"], "group_size": request.group_size}
    if request.gguf is not None:
        types = tuple(name.lower() for name in listed(request.gguf))
        values.pop("gguf", None)
        if types != ("none",):
            values["gguf"] = types


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _drop(request: WithRecipe) -> dict[str, Any]:
    if isinstance(request, ScoreRequest):
        given = {"--frontier": request.frontier, "--target": request.target, "--attn-drop": request.attn_drop}
        first, *others = [option for option, value in given.items() if value is not None] or ["--attn-drop"]
        if others:
            raise RecipeError(f"{first} and {others[0]} look for different things.", hint="Pass one of them.")
        wanted = {request.frontier: "-1%"} if request.frontier else request.target
        saving = _given(target=wanted, target_over=request.target_over, at=request.at)
        return saving or {"attn_drop": request.attn_drop if request.attn_drop is not None else 1}
    if not isinstance(request, Dropping):
        return {}
    counts = {name: getattr(request, name) for name in ("attn_drop", "mlp_drop", "block_drop", "joint_drop")}
    attn_layers = _numbers(request.attn_layers, option="--attn-layers")
    saving = {name: getattr(request, name) for name in ("target", "target_over", "at", "per")}
    mlp_layers = _numbers(request.mlp_layers, option="--mlp-layers")
    return _given(**counts, attn_layers=attn_layers, mlp_layers=mlp_layers, **saving)


def _width(request: WithRecipe) -> dict[str, Any]:
    if not isinstance(request, Dropping):
        return {}
    width = _numbers(request.mlp_width, option="--mlp-width")
    return _given(
        neuron_drop=request.neuron_drop,
        expansion_ratio=request.expansion_ratio,
        width=width[0] if width and len(width) == 1 else width,
        metric=request.width_metric,
        multiple=request.width_multiple,
    )


def _evaluation(request: WithRecipe) -> dict[str, Any]:
    if not isinstance(request, Measuring):
        return {}
    tasks = None if request.tasks is None else listed(request.tasks)
    found = _given(
        limit=request.limit,
        include_path=request.include_path,
        batch_size=request.batch_size,
        backend=request.eval_backend,
        apply_chat_template=request.apply_chat_template,
        tasks=() if tasks and [task.lower() for task in tasks] == ["none"] else tasks,
        num_fewshot=_examples(request.num_fewshot),
    )
    if isinstance(request, PublishRequest):
        prompts = read_prompts(Path(request.prompts)) if request.prompts else None
        found |= _given(max_loss=budget(request.max_loss), prompts=prompts)
    return found


def _numbers(value: str | int | Sequence[int] | None, *, option: str) -> tuple[int, ...] | None:
    if not isinstance(value, str):
        return (value,) if isinstance(value, int) else None if value is None else tuple(value)
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        hint = f"Write it like {option} 18,21,22."
        raise RecipeError(f"{option} {value!r} is no list of layers.", hint=hint) from None


def _examples(value: str | int | Mapping[str, int] | None) -> int | dict[str, int] | None:
    if not isinstance(value, str):
        return dict(value) if isinstance(value, Mapping) else value
    try:
        pairs = [part.split("=") for part in value.split(",")]
        return int(value) if "=" not in value else {task.strip(): int(number) for task, number in pairs}
    except ValueError:
        raise RecipeError(
            f"--num-fewshot {value!r} is no number of examples.",
            hint="Write it like --num-fewshot 5 or --num-fewshot mmlu=5,gsm8k=8.",
        ) from None


def budget(value: str | float | Mapping[str, float] | None) -> dict[str, float] | None:
    """Read how many points each task may lose, or the mean; `none` lifts the budget of the recipe file."""
    if isinstance(value, (int, float)):
        return {MEAN: value}
    if not isinstance(value, str):
        return None if value is None else dict(value)
    if value.strip().lower() == "none":
        return {}
    try:
        pairs = [part.split("=") if "=" in part else (MEAN, part) for part in value.split(",")]
        return {task.strip(): float(points) for task, points in pairs}
    except ValueError:
        raise RecipeError(
            f"--max-loss {value!r} is no budget.",
            hint="Write it like --max-loss 3, --max-loss lambada_openai=10,mean=3,loops=5, or none.",
        ) from None


@dataclass(frozen=True)
class Passes:
    """What is to be scored."""

    kind: StudyKind | None
    """What varies; None for one pass and no study."""
    recipes: dict[str, Recipe]
    """Label -> recipe of every pass."""
    counts: tuple[int, ...] = ()
    """Numbers of samples, ascending, where these vary; the one pass takes the largest."""


def passes_of(request: ScoreRequest) -> Passes:
    """Make the recipes of a score, one per pass that it takes.

    Raises:
        RecipeError: more than one option is a list, or a value cannot be used.
    """
    revisions, given, samples = listed(request.revisions), request.calibration, request.num_samples
    numbers = listed(str(samples) if isinstance(samples, int) else samples)
    if samples is not None and not (numbers and all(number.isdecimal() and int(number) for number in numbers)):
        raise RecipeError(
            f"--num-samples {samples!r} is neither a number of 1 or more nor a list of them.",
            hint="Write it like --num-samples 8,32,128.",
        )
    counts = tuple({int(number): None for number in numbers})
    # The name of a file may have a comma in it.
    mixes = (given,) if isinstance(given, str) and Path(given).is_file() else listed(given)
    several = (request.revisions is not None, len(mixes) > 1, len(counts) > 1)
    lists = [o for o, asked in zip(("--revisions", "--calibration", "--num-samples"), several, strict=True) if asked]
    if len(lists) > 1:
        raise RecipeError(f"{' and '.join(lists)} are both lists.", hint="A study varies one thing: keep one of them.")
    one = replace(request, calibration=next(iter(mixes), None), num_samples=max(counts, default=None))
    if lists == ["--revisions"]:
        if request.base_revision is not None:
            raise RecipeError("--revisions and --base-revision exclude each other.", hint="Pass one of them.")
        if not revisions:
            raise RecipeError("--revisions names no revision.", hint="Write it like --revisions step1000,step2000.")
        return Passes("revisions", {name: recipe_of(replace(one, base_revision=name)) for name in revisions})
    if lists == ["--calibration"]:
        # The name of a mix holds no local path; where two have the same, they are called what was asked for.
        recipes = {mix: recipe_of(replace(one, calibration=mix)) for mix in mixes}
        names = [recipe.calibration.name for recipe in recipes.values()]
        labels = [name if names.count(name) == 1 else mix for name, mix in zip(names, recipes, strict=True)]
        return Passes("calibration", dict(zip(labels, recipes.values(), strict=True)))
    recipe = {"scores": recipe_of(one)}
    return Passes("samples", recipe, tuple(sorted(counts))) if lists else Passes(None, recipe)


def listed(value: str | Sequence[object] | None) -> tuple[str, ...]:
    """Read a list that may be given as a text with commas; what is blank or there twice is left out."""
    parts = value.split(",") if isinstance(value, str) else map(str, value or ())
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
