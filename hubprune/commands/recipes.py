"""How the options of a command become a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hubprune.core.errors import RecipeError

if TYPE_CHECKING:
    from hubprune.core.recipe import Recipe

__all__ = ["make_recipe"]

DROPS = ("attn_drop", "mlp_drop", "block_drop", "joint_drop", "drop_attn", "drop_mlp")
MIX_SETTINGS = ("num_samples", "max_tokens", "packed", "shuffle_buffer")
WIDTHS = ("drop_neurons", "mlp_width", "expansion_ratio")


def make_recipe(given: Mapping[str, Any]) -> Recipe:
    """Make a recipe of the options of a command; an option that was given wins over the recipe file.

    Args:
        given: options by the names of their parameters, None where not given; others are passed over.

    Raises:
        RecipeError: no base, nothing to drop, or a value that cannot be used.
    """
    from hubprune.core.recipe import Recipe, parse, read_recipe

    file = given.get("recipe")
    values = read_recipe(file).model_dump(exclude_none=True) if file else {}
    if any(given.get(name) is not None for name in (*DROPS, *WIDTHS)):
        # What the file says to drop is replaced, not added to.
        values["drop"] = {k: v for k, v in values.get("drop", {}).items() if k == "protect"}
        values.pop("width", None)
    if given.get("tasks") is not None:
        values.get("evaluation", {}).pop("num_fewshot", None)  # they were for the file's tasks
    if given.get("max_drop_pp") is not None:
        values.get("evaluation", {}).pop("max_drop_pp", None)  # a budget is replaced, so that it can be lifted too
    for part, fields in _parts(given).items():
        values[part] = _laid_over(values.get(part, {}), fields)
    values |= _given(
        given, "seed", "device", "dtype", "aggregation", "score_batch_size", "layout", "metric", "schedule"
    )
    values["calibration"] = _mix(given, values.get("calibration"))
    if not values["base"].get("repo_id"):
        raise RecipeError("Which base?", hint="Name one, as in hubprune publish meta-llama/Llama-3.2-3B --attn-drop 3.")
    return parse(Recipe, values)


def _parts(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the options of each part of a recipe."""
    from hubprune.core.recipe import read_prompts

    base = {"repo_id": given.get("base"), "revision": given.get("base_revision")}
    drop = {
        **_given(given, *DROPS),
        "drop_attn": _numbers(given.get("drop_attn"), option="--drop-attn"),
        "drop_mlp": _numbers(given.get("drop_mlp"), option="--drop-mlp"),
        "protect": _numbers(given.get("protect"), option="--protect"),
    }
    evaluation = {
        **_given(given, "limit", "include_path", "batch_size"),
        "backend": given.get("eval_backend"),
        "tasks": _names(given.get("tasks")),
        "num_fewshot": _examples(given.get("num_fewshot")),
        "max_drop_pp": _budget(given.get("max_drop_pp")),
        "prompts": read_prompts(file) if (file := given.get("prompts")) else None,
    }
    target = _given(
        given,
        "repo_id",
        "revision",
        "private",
        "create_pr",
        "staged",
        "collection",
        "supersedes",
        "license",
        "allow_name",
    )
    parts = {"base": base, "drop": drop, "width": _width(given), "evaluation": evaluation, "target": target}
    made = {part: {k: v for k, v in fields.items() if v is not None} for part, fields in parts.items()}
    return {part: fields for part, fields in made.items() if fields or part != "width"}


def _laid_over(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Put new values over old ones; where both are mappings, entry by entry."""
    both = {k: {**old[k], **v} for k, v in new.items() if isinstance(v, dict) and isinstance(old.get(k), dict)}
    return {**old, **new, **both}


def _width(given: Mapping[str, Any]) -> dict[str, Any]:
    text = given.get("mlp_width")
    width = _numbers(text, option="--mlp-width")
    return {
        **_given(given, "drop_neurons", "expansion_ratio"),
        "width": width[0] if width and len(width) == 1 else width,
        "metric": given.get("width_metric"),
        "multiple": given.get("width_multiple"),
    }


def _given(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: given[name] for name in names if given.get(name) is not None}


def _mix(given: Mapping[str, Any], from_file: dict[str, Any] | None) -> dict[str, Any]:
    from hubprune.pruning.documents import COSMOPEDIA, find_mix, is_file

    sizes = _given(given, "num_samples", "max_tokens")
    if name := given.get("calibration"):
        # A file of documents has no settings of its own: those of the recipe stay.
        kept = {key: from_file[key] for key in MIX_SETTINGS} if from_file and is_file(name) else {}
        return {**find_mix(name).model_dump(), **kept, **sizes}
    return {**(from_file or COSMOPEDIA.model_dump()), **sizes}


def _numbers(text: str | None, *, option: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(
            f"{option} {text!r} is no list of layers.", hint=f"Write it like {option} 18,21,22."
        ) from None


def _examples(text: str | None) -> int | dict[str, int] | None:
    """Read a number for all tasks, or numbers for some of them."""
    if text is None:
        return None
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return int(text) if "=" not in text else {task.strip(): int(number) for task, number in pairs}
    except ValueError:
        raise RecipeError(
            f"--num-fewshot {text!r} is no number of examples.",
            hint="Write it like --num-fewshot 5 or --num-fewshot mmlu=5,gsm8k=8.",
        ) from None


def _budget(text: str | None) -> dict[str, float] | None:
    """Read how many points each task may lose; `none` lifts the budget of the recipe file."""
    if text is None or text.strip().lower() == "none":
        return None if text is None else {}
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {task.strip(): float(points) for task, points in pairs}
    except ValueError:
        raise RecipeError(
            f"--max-drop-pp {text!r} is no budget.",
            hint="Write it like --max-drop-pp lambada_openai=10,mean=3, or none.",
        ) from None


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return () if text.strip().lower() == "none" else tuple(part.strip() for part in text.split(",") if part.strip())
