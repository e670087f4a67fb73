"""The training of a patient: both models, the settings that fit this machine, and every process of a run at it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from pydantic import BaseModel

from hubprune.core.artifacts import BaseCheckpoint, DropPlan, HealingLoss, HealingMethod
from hubprune.core.config import read_structure
from hubprune.core.console import Reporter, quiet, size
from hubprune.core.devices import local_world_size, resolve_device, resolve_dtype, world_size
from hubprune.core.errors import HealingError, RecipeError
from hubprune.core.files import StageStore
from hubprune.core.memory import available_bytes, device_bytes
from hubprune.core.recipe import Recipe
from hubprune.core.requests import HealRequest
from hubprune.hub.repos import weight_files
from hubprune.pruning.layouts import Runnable
from hubprune.workflows.heal.texts import Texts
from hubprune.workflows.verify import PrunedFolder

if TYPE_CHECKING:
    from hubprune.healing.models import Distillation
    from hubprune.healing.training import Settings, Trained

DEFAULT_STEPS = 200
RATE_OF_WIDTH_1 = 0.032
"""Learning rate times the square root of the hidden size: 4e-3 at 64, where it was measured, and 5e-4 at 4096."""
FULL_SHARE = 0.25
"""Learning rate of all weights over that of adapters."""
LOGITS_SHARE = 0.2
"""Share of the free memory that the logits of one pass may take."""
COPIES_OF_LOGITS = 6
"""Float32 values per logit in a step: both models', their softmax, and what goes back."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A pruned model, its base, and what is known of how it came to be."""

    found: PrunedFolder
    plan: DropPlan
    base: BaseCheckpoint
    recipe: Recipe | None
    """Of its publish; None for a folder that was only pruned."""


def method_of(text: str) -> HealingMethod:
    """Return what `--method` names."""
    return cast(HealingMethod, _one_of(text, HealingMethod, option="--method"))


def loss_of(text: str) -> HealingLoss:
    """Return what `--loss` names."""
    return cast(HealingLoss, _one_of(text, HealingLoss, option="--loss"))


def _one_of(text: str, kind: Any, *, option: str) -> str:
    """Return what a text names among the values of a literal type.

    Raises:
        RecipeError: nothing.
    """
    if text.lower() in (known := get_args(kind)):
        return text.lower()
    raise RecipeError(f"There is no {option} {text!r:.40}.", hint=f"There are {', '.join(known)}.")


def pair_of(request: HealRequest, patient: Patient, runnable: Runnable, reporter: Reporter) -> Distillation:
    """Load base and pruned model, ready to be trained."""
    import torch

    from hubprune.core.neutral import load_causal_lm
    from hubprune.healing import models

    config, architecture = patient.base.config, read_structure(patient.base.config).architecture
    method, loss = method_of(request.method), loss_of(request.loss)
    device = resolve_device(request.device or "auto")
    dtype = resolve_dtype(request.dtype or "auto", config, device=device)
    check_memory(weight_bytes(patient.base), method, device)
    with quiet():
        load = partial(load_causal_lm, runnable.folder, own_code=runnable.own_code)
        teacher = load(dtype=getattr(torch, dtype)).requires_grad_(requires_grad=False)
        own = teacher if method == "lora" else load(dtype=torch.float32)
        student = models.without_sublayers(own, patient.plan, architecture)
        if method == "lora":
            student = models.with_adapters(student, rank=request.rank, seed=request.seed)
        else:
            student.requires_grad_(requires_grad=True)
    inner = student.get_base_model() if method == "lora" else student
    kept = sorted(patient.plan.published_numbers)
    layers = [(teacher.model.layers[number], inner.model.layers[number]) for number in kept]
    reporter.note(f"healing on {device} in {dtype}, {'one set of weights' if method == 'lora' else 'two models'}")
    return models.Distillation(teacher, student, loss, layers=layers)


def weight_bytes(base: BaseCheckpoint) -> int:
    """Return the bytes of a base's weight files."""
    return sum(file.size for file in weight_files(base.files))


def check_memory(weights: int, method: HealingMethod, device: str) -> None:
    """Refuse what cannot fit.

    Raises:
        HealingError: with what would.
    """
    free = _free_bytes(device)
    needed = int(weights * 1.1) if method == "lora" else weights * 9  # float32, its gradient, two moments, the teacher
    if needed > free:
        raise HealingError(
            f"Healing needs {size(needed)} for weights{'' if method == 'lora' else ', gradients and moments'}, and "
            f"{size(free)} are free.",
            hint="Pass --method lora." if method == "full" else "Run it where the base fits into memory.",
        )


def _free_bytes(device: str) -> int:
    """Return what this process may take of a device's memory; those on one machine share that of its CPUs."""
    return device_bytes(device) if device != "cpu" else available_bytes() // local_world_size()


class _Steps(BaseModel):
    """How many steps some minutes were found to be; a run that goes on has to plan with as many."""

    steps: int


def settings_of(
    request: HealRequest, patient: Patient, pair: Distillation, texts: Texts, method: HealingMethod, *,
    store: StageStore, key: str,
) -> Settings:  # fmt: skip
    """Decide how to train: what was asked for, in parts that fit into this machine's memory.

    `key` stands for what decides how long a step takes here.
    """
    from hubprune.healing.training import Settings, seconds_per_step

    config, parameter = patient.base.config, next(pair.parameters())
    device = resolve_device(request.device or "auto")
    width = int(config["hidden_size"])
    rate = request.learning_rate or RATE_OF_WIDTH_1 / sqrt(width) * (1.0 if method == "lora" else FULL_SHARE)
    longest, room = max(map(len, texts.trained + texts.held_out)), _free_bytes(device) * LOGITS_SHARE
    row, own = longest * int(config.get("vocab_size", 1)) * 4 * COPIES_OF_LOGITS, request.batch_size // world_size()
    fitting = [n for n in range(1, own + 1) if own % n == 0 and n * row <= room]
    settings = Settings(
        steps=request.steps or DEFAULT_STEPS, batch_size=request.batch_size, micro_batch=max(fitting, default=1),
        learning_rate=rate, seed=request.seed, device=device, dtype=str(parameter.dtype).removeprefix("torch."),
        checkpointing=device != "cpu",
    )  # fmt: skip
    mean = sum(map(len, texts.trained)) / len(texts.trained)
    if request.tokens is not None:
        return settings.with_steps(ceil(request.tokens / (mean * request.batch_size)))
    if (minutes := request.minutes) is not None:

        def timed() -> _Steps:
            """Find out how long a step takes here."""
            return _Steps(steps=int(minutes * 60 / seconds_per_step(pair, texts.trained, settings)))

        return settings.with_steps(store.run("healing-steps", key, _Steps, timed).steps)
    return settings


def train(
    request: HealRequest, patient: Patient, runnable: Runnable, pair: Distillation, texts: Texts, settings: Settings, *,
    folder: Path, reporter: Reporter,
) -> Trained:  # fmt: skip
    """Train a pair, in all processes of the run at once."""
    from hubprune.evaluation import computing
    from hubprune.healing import training

    computing.join(_train_along, request, patient, runnable, texts, settings, folder)
    with quiet():
        return training.train(pair, texts.trained, texts.held_out, settings, folder=folder, reporter=reporter)


def _train_along(
    request: HealRequest, patient: Patient, runnable: Runnable, texts: Texts, settings: Settings, folder: Path
) -> None:
    """Do the part of a process that follows: the same training, without a word, and nothing that comes after it."""
    from hubprune.healing import training

    silent = Reporter(quiet=True)
    pair = pair_of(request, patient, runnable, silent)
    with quiet(), suppress(HealingError):  # which the first process meets in the same step, and shows
        training.train(pair, texts.trained, texts.held_out, settings, folder=folder, reporter=silent)
