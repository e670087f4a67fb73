"""Heal a pruned model: train it on what its base says, write it anew, verify it, and only then let it appear.

    find it and its base -> check -> documents -> train -> merge -> write and verify

In comes a request, out comes a folder like that of `hubprune prune`, with `healing.json` beside its weights.

    texts     the documents, and that none of them was scored or is in a benchmark
    training  both models, the settings that fit this machine, and all processes of a run at it
    writing   the healed checkpoint, and the adapters by themselves
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.cards.manifest import MANIFEST
from hubprune.cards.records import read_record
from hubprune.core.artifacts import (
    HealedCheckpoint,
    HealingMethod,
    HealingRecord,
)
from hubprune.core.console import Reporter
from hubprune.core.devices import library_versions, world_size
from hubprune.core.errors import RecipeError
from hubprune.core.extras import require
from hubprune.core.files import (
    StageStore,
    check_new_folder,
    file_exists,
    key_of,
    move_folder,
    scratch_folder,
    work_folder,
)
from hubprune.core.recipe import CalibrationMix, EvaluationSpec, Recipe, parse
from hubprune.core.requests import HealRequest
from hubprune.pruning import calibration, verify
from hubprune.pruning.documents import COSMOPEDIA, find_mix, is_file
from hubprune.pruning.layouts import Runnable, make_runnable
from hubprune.workflows.heal.texts import Texts, benchmark_texts, draw, heads, own_files
from hubprune.workflows.heal.training import DEFAULT_STEPS, Patient, loss_of, method_of, pair_of, settings_of, train
from hubprune.workflows.heal.writing import write_adapter, write_healed
from hubprune.workflows.healed import healed_by, with_tensors
from hubprune.workflows.quantized import refuse_quantized
from hubprune.workflows.recipes import listed
from hubprune.workflows.run import open_session, open_store
from hubprune.workflows.verify import find_base, find_pruned, refuse_foreign_code

if TYPE_CHECKING:
    from hubprune.healing.models import Distillation
    from hubprune.healing.training import Settings, Trained

DOCUMENTS_OF_A_LENGTH = 4
"""Documents that are drawn for so many tokens as the longest of them has: most are shorter."""


def heal(request: HealRequest, *, reporter: Reporter) -> HealedCheckpoint:
    """Train a pruned folder or repo until it says again what its base does, and write it into a new folder.

    Raises:
        HubpruneError: the first thing that is wrong; what fails fast is checked before anything is downloaded.
    """
    check_new_folder(Path(request.out))
    if request.adapter:
        check_new_folder(Path(request.adapter))
    check_asked(request)
    patient = find_patient(request, reporter=reporter)
    return heal_patient(request, patient, store=open_store(work_folder(), reporter, earlier="run"), reporter=reporter)


def heal_patient(request: HealRequest, patient: Patient, *, store: StageStore, reporter: Reporter) -> HealedCheckpoint:
    """Do the same with a model that was found already, and keep checkpoints of the training in a work folder."""
    method, loss = method_of(request.method), loss_of(request.loss)
    with scratch_folder(store.folder, name="heal") as scratch:
        runnable = make_runnable(patient.base, scratch / "base")
        texts, spec = find_texts(request, patient, runnable, reporter=reporter)
        pair = pair_of(request, patient, runnable, reporter)
        told = (
            patient.base.name, patient.base.commit, patient.plan.content, texts.record, method, loss, request.rank,
            texts.held_out_tokens, library_versions(),
        )  # fmt: skip
        settings = settings_of(
            request, patient, pair, texts, method, store=store, key=key_of(told, request.minutes, request.batch_size)
        )
        place = store.folder / "healing" / key_of(told, vars(settings))
        trained = train(request, patient, runnable, pair, texts, settings, folder=place, reporter=reporter)
        record = _record(request, patient, pair, texts, spec, settings, trained)
        healed = with_tensors(patient.base, _changed(pair, method), scratch, reporter=reporter)
        if request.adapter:
            write_adapter(pair.student, patient.plan, scratch / "adapter", of=patient.found.name)
        del pair
        written, seen = write_healed(
            healed, patient.plan, Path(request.out), how=record.method, record=record, reporter=reporter
        )
        if request.adapter:
            move_folder(scratch / "adapter", Path(request.adapter))
        shutil.rmtree(place, ignore_errors=True)
        return HealedCheckpoint(written=written, record=record, verification=seen)


# ---- before ----------------------------------------------------------------------------------------------------------


def check_asked(request: HealRequest) -> None:
    """Refuse what contradicts itself, and a machine without the library that trains.

    Raises:
        RecipeError: there is no such method or loss, two amounts are given, or a step has no equal parts.
        MissingDependencyError: peft is not installed.
    """
    method_of(request.method)
    loss_of(request.loss)
    given = [f"--{name}" for name in ("steps", "tokens", "minutes") if getattr(request, name) is not None]
    if len(given) > 1:
        raise RecipeError(f"{given[0]} and {given[1]} exclude each other.", hint="Pass one of them.")
    if request.batch_size % (count := world_size()):
        raise RecipeError(
            f"{request.batch_size} documents per step are no equal parts for {count} processes.",
            hint=f"Pass --batch-size {(request.batch_size // count + 1) * count}.",
        )
    if request.adapter and method_of(request.method) != "lora":
        raise RecipeError("--adapter is for --method lora: all weights are no adapter.", hint="Leave one of them out.")
    if request.method == "lora":
        require("heal", doing="Healing with adapters")


def find_patient(request: HealRequest, *, reporter: Reporter) -> Patient:
    """Find a pruned model and its base, and refuse what cannot be healed.

    Raises:
        UnsupportedFormatError: it is quantized.
        RecipeError: it was healed before, or its MLPs are narrower than the base's.
        CheckpointError: it was not written by hubprune, or is broken.
        BaseNotFoundError: there is no such model, or its base cannot be found.
    """
    session = open_session(request.endpoint)
    found = find_pruned(
        request.checkpoint, revision=request.revision, session=session, reporter=reporter, quantized=True
    )
    refuse_quantized(found.config, name=found.name, do="Heal")
    refuse_foreign_code(found, trust="own")
    plan, config = verify.plan_of(found.config), found.config
    if healed_by(config):
        raise RecipeError(
            f"{found.name} was healed before.", hint="Heal the pruned model that it was made of, with more --steps."
        )
    if plan.widths:
        raise RecipeError(
            f"The MLPs of {found.name} are narrower than its base's, and only models that lost whole sublayers can be "
            "healed yet.",
            hint="Train it with trl or another trainer: its layout is made for that.",
        )
    hint = "Say where it is with --base FOLDER_OR_REPO: the base is the teacher."
    base = find_base(request.base, config, hint=hint, session=session, reporter=reporter)
    recipe = read_record(found.folder).report.recipe if (found.folder / MANIFEST).is_file() else None
    return Patient(found=found, plan=plan, base=base, recipe=parse(Recipe, recipe) if recipe else None)


# ---- documents -------------------------------------------------------------------------------------------------------


def find_texts(
    request: HealRequest, patient: Patient, runnable: Runnable, *, reporter: Reporter
) -> tuple[Texts, EvaluationSpec]:
    """Draw the documents of a training; the benchmarks whose texts are none of them are returned with them.

    Raises:
        CalibrationError: a data set cannot be read, or too little is left of it.
        EvaluationError: a benchmark cannot be loaded.
    """
    recipe = patient.recipe
    mix = find_mix(request.data) if request.data else recipe.calibration if recipe else COSMOPEDIA
    if not _is_here(mix):
        raise RecipeError(
            f"The documents that {patient.found.name} was scored on are a file that is not here.",
            hint="Pass texts to train on with --data MIX or FILE.",
        )
    spec = _benchmarks(request, patient)
    seen = benchmark_texts(spec)
    if not spec.tasks:
        reporter.warn("no benchmark was looked for in the documents: name those that it will be measured on, --tasks")
    tokenizer, context = runnable.tokenizer(), patient.base.config.get("max_position_embeddings")
    max_tokens = min(mix.max_tokens, context or mix.max_tokens)
    commits, seed = calibration.resolve_commits(mix), recipe.seed if recipe else request.seed
    wanted = (request.steps or DEFAULT_STEPS) * request.batch_size
    if request.tokens is not None:
        wanted = ceil(request.tokens / max_tokens * DOCUMENTS_OF_A_LENGTH)
    scored: frozenset[tuple[int, ...]] = frozenset()
    if recipe and recipe.needs_scores and _is_here(recipe.calibration):
        drawn = calibration.draw(
            recipe.calibration.plain, commits=calibration.resolve_commits(recipe.calibration), seed=seed,
            tokenizer=tokenizer, context_length=context, reporter=Reporter(quiet=True),
        )  # fmt: skip
        scored = heads([document.ids for document in drawn.documents])
    texts = draw(
        mix, commits=commits, seed=seed, tokenizer=tokenizer, max_tokens=max_tokens, wanted=wanted,
        held_out=request.held_out, scored=scored, benchmarks=seen, reporter=reporter,
    )  # fmt: skip
    told = "none of them scored" if scored or (recipe and not recipe.needs_scores) else "scored ones not known"
    against = f"; {texts.left_out} shared 13 words with {', '.join(spec.tasks)}" if spec.tasks else ""
    reporter.note(f"{len(texts.trained):,} documents to train on, {len(texts.held_out)} held out, {told}{against}")
    return texts, spec


def _is_here(mix: CalibrationMix) -> bool:
    return all(file_exists(subset.dataset) for subset in mix.subsets if is_file(subset.dataset))


def _benchmarks(request: HealRequest, patient: Patient) -> EvaluationSpec:
    """Return the benchmarks that must not be among the documents: those named, or those that it was measured on."""
    named = listed(request.tasks)
    if request.tasks is None:
        named = patient.recipe.evaluation.tasks if patient.recipe else ()
    tasks = () if [name.lower() for name in named] == ["none"] else named
    include = request.include_path or own_files(patient.found.folder)
    return parse(EvaluationSpec, {"tasks": tasks, "include_path": include if tasks else None})


# ---- after ----------------------------------------------------------------------------------------------------------


def _record(
    request: HealRequest, patient: Patient, pair: Distillation, texts: Texts, spec: EvaluationSpec, settings: Settings,
    trained: Trained,
) -> HealingRecord:  # fmt: skip
    from hubprune.healing.models import recovered

    method = method_of(request.method)
    libraries = ("accelerate", "peft", "torch", "transformers") if method == "lora" else ("accelerate", "torch")
    return HealingRecord(
        method=method, rank=request.rank if method == "lora" else None, loss=loss_of(request.loss),
        learning_rate=settings.learning_rate, batch_size=settings.batch_size, steps=trained.steps,
        planned_steps=settings.steps, tokens=trained.tokens, seed=settings.seed, data=texts.record,
        held_out_documents=len(texts.held_out), held_out_tokens=texts.held_out_tokens, left_out=texts.left_out,
        checked_against=spec.tasks, base_perplexity=trained.first.base_perplexity, curve=trained.curve,
        recovered=recovered(trained.first, trained.last, seed=request.seed),
        trained_parameters=sum(p.numel() for p in pair.parameters() if p.requires_grad),
        shares_weights=method == "lora", seconds=trained.seconds, dtype=settings.dtype, device=settings.device,
        versions={name: version(name) for name in libraries},
    )  # fmt: skip


def _changed(pair: Distillation, method: HealingMethod) -> Iterator[tuple[str, Any]]:
    from hubprune.healing import merging

    return merging.merged(pair.student) if method == "lora" else merging.trained(pair.student)
