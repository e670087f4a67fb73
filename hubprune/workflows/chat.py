"""The chat template of a base: found fit before anything is computed, and what of a publish asks through it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.core.console import Reporter
from hubprune.core.errors import RecipeError, UnsupportedFormatError
from hubprune.core.extras import is_installed
from hubprune.core.prompts import DEFAULT, chat_of, chat_templates, rendered
from hubprune.core.recipe import EvaluationSpec, Recipe

if TYPE_CHECKING:
    from hubprune.evaluation.generation import Request
    from hubprune.workflows.run import Run

BENCHMARKS, CALIBRATION = "--apply-chat-template", "--calibration-chat-template"
LEAVE_OUT = {BENCHMARKS: "Leave it out: --no-apply-chat-template.", CALIBRATION: f"Leave {CALIBRATION} out."}
TRIED = (
    {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Bye"},
)  # fmt: skip


def asks_in_chat(spec: EvaluationSpec, folder: Path) -> bool:
    """Tell whether free text and the code of a card ask through the chat template of a folder, if it has one."""
    return spec.apply_chat_template is not False and bool(chat_templates(folder))


def check_chat(recipe: Recipe, folder: Path, *, name: str, reporter: Reporter) -> None:
    """Refuse a base without a chat template that does where benchmarks or calibration are to go through it.

    Args:
        recipe: what is asked for.
        folder: holds the base's tokenizer files.
        name: what the base is called in errors.
        reporter: is told where the template takes no system message.

    Raises:
        RecipeError: there is none, or none of several is the default one.
        UnsupportedFormatError: it cannot be rendered, or leaves out what a user says.
    """
    if recipe.reads_texts and recipe.calibration.chat_template:
        _try(folder, turns=1, answer=False, name=name, asked=CALIBRATION)
    spec = recipe.evaluation
    if spec.tasks and spec.apply_chat_template:
        _try(folder, turns=3 if any(spec.num_fewshot.values()) else 1, answer=True, name=name, asked=BENCHMARKS)
        if is_installed("torch") and not _takes_system(folder):
            reporter.note("its chat template takes no system message: lm-eval leaves out what tasks say in one")


def check_texts(run: Run, folder: Path) -> None:
    """Refuse a base whose chat template free text would ask through, and that does not do.

    Raises:
        RecipeError: none of several templates is the default one.
        UnsupportedFormatError: it cannot be rendered, or leaves out what a user says.
    """
    spec = run.recipe.evaluation
    if spec.apply_chat_template or asks_in_chat(spec, folder):
        _try(folder, turns=1, answer=True, name=run.base.name, asked=BENCHMARKS)
        run.reporter.note("free text and the code of the card ask through the base's chat template")


def _try(folder: Path, *, turns: int, answer: bool, name: str, asked: str) -> None:
    """Render a few turns by the base's own tokenizer."""
    from hubprune.pruning.tokenizer_files import load_tokenizer

    hint = LEAVE_OUT[asked]
    templates = chat_templates(folder)
    if not templates:
        raise RecipeError(f"The tokenizer of {name} has no chat template, which {asked} asks for.", hint=hint)
    if DEFAULT not in templates:
        named = ", ".join(sorted(templates))
        raise RecipeError(f"Of the chat templates of {name}, {named}, none is the default one.", hint=hint)
    if not is_installed("torch"):  # by the extra of that name comes transformers
        return
    try:
        text = rendered(load_tokenizer(folder), TRIED[:turns], answer=answer, of=name)
    except UnsupportedFormatError as error:
        error.hint = hint
        raise
    if any(turn["content"] not in text for turn in TRIED[:turns]):
        raise UnsupportedFormatError(f"The chat template of {name} leaves out what is said as plain text.", hint=hint)


def _takes_system(folder: Path) -> bool:
    from hubprune.pruning.tokenizer_files import load_tokenizer

    try:
        rendered(load_tokenizer(folder), [{"role": "system", "content": "Help."}, *TRIED[:1]], answer=True)
    except UnsupportedFormatError:
        return False
    return True


def text_request(run: Run) -> Request:
    """Return what both models are to write: prompts are rendered once, so that both get those of the same day."""
    from hubprune.evaluation.generation import Request

    spec, folder = run.recipe.evaluation, run.runnable.folder
    request = Request(prompts=spec.prompt_texts(), max_new_tokens=spec.max_new_tokens)
    if not asks_in_chat(spec, folder):
        return request
    tokenizer = run.runnable.tokenizer()
    asked = ([{"role": "user", "content": prompt}] for prompt in request.prompts)
    return Request(
        prompts=request.prompts, max_new_tokens=request.max_new_tokens, chat=chat_of(folder),
        rendered=tuple(rendered(tokenizer, messages, answer=True) for messages in asked),
    )  # fmt: skip
