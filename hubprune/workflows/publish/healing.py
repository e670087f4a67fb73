"""The healed sibling: trained on what the base says, or taken over from somebody who trained it elsewhere.

Of a folder from elsewhere only the weights are taken, rounded to the dtypes of the pruned model: configs, tokenizer and
code are ours, and are those that the weights were trained with, or it is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import (
    HealedBenchmarks,
    HealedCheckpoint,
    PrunedCheckpoint,
    SiblingReport,
    TrainedElsewhere,
)
from hubprune.core.config import CONFIG_NAME, read_config, write_json
from hubprune.core.devices import resolve_device
from hubprune.core.errors import CheckpointError, MissingDependencyError, RecipeError
from hubprune.core.files import key_of, list_files, scratch_folder
from hubprune.core.requests import HealRequest
from hubprune.core.specs import HealSpec
from hubprune.core.weights import open_weights
from hubprune.evaluation.pair import ModelFolder, Pair
from hubprune.plots import pictures
from hubprune.pruning.calibration import file_hashes
from hubprune.pruning.tokenizer_files import load_tokenizer, token_ids
from hubprune.workflows.heal import check_asked, heal_patient
from hubprune.workflows.heal.training import Patient, check_memory, weight_bytes
from hubprune.workflows.heal.writing import write_healed
from hubprune.workflows.healed import ELSEWHERE, RECORD, from_elsewhere, with_tensors
from hubprune.workflows.publish.stages import free_text, kept_folder, run_sibling_snippet
from hubprune.workflows.run import Run
from hubprune.workflows.verify import PrunedFolder

OF_TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "tekken.json", "chat_template.jinja",
)  # fmt: skip
"""Files of a tokenizer, and none that could be run."""
FREE_KEYS = (
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache",
    "hubprune", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""Keys of a config.json that training libraries write anew, or that say nothing of what fits into the model."""


# ---- before anything is computed ---------------------------------------------------------------------------------


def check_healing(run: Run, given: Path | None, *, here: bool = True) -> None:
    """Refuse what cannot be healed at all, by the recipe, this machine, and the config.json of a folder from elsewhere.

    `here` says whether it is this machine that trains.

    Raises:
        RecipeError: MLPs get narrower, or the folder has no whole, unquantized checkpoint.
        MissingDependencyError: peft is not installed.
        HealingError: there is not enough memory.
    """
    spec, base = run.recipe.heal, run.base
    if spec is None and given is None:
        return
    if run.recipe.width:
        raise RecipeError(
            "Only models that lost whole sublayers can be healed yet, and here MLPs get narrower.",
            hint=f"Leave out {'--heal' if spec else '--healed'}, or what makes MLPs narrower.",
        )
    if spec and here:
        check_asked(_request(run, spec, name="", out=Path()))
        check_memory(weight_bytes(base), spec.method, resolve_device(run.recipe.device))
    if given:
        _refuse_unfit(given)


def _refuse_unfit(given: Path) -> None:
    """Refuse a folder that is no unquantized checkpoint."""
    if not given.is_dir():
        raise RecipeError(f"{given} is no folder.", hint="Name one that save_pretrained wrote.")
    if not (given / CONFIG_NAME).is_file() or not any(given.glob("*.safetensors")):
        merge = "Merge the adapter first: PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(FOLDER)."
        adapter = (given / "adapter_config.json").is_file()
        raise RecipeError(
            f"{given} holds {'an adapter and no whole model' if adapter else 'no checkpoint in safetensors'}.",
            hint=merge if adapter else "Name a folder that save_pretrained wrote.",
        )
    if "quantization_config" in read_config(given, quantized=True):
        raise RecipeError(
            f"The weights in {given} are quantized.", hint="Name what it was made of: it is rounded to the dtype here."
        )


def check_given(pruned: Path, given: Path) -> None:
    """Refuse a folder from elsewhere that does not hold the pruned model with other weights.

    Raises:
        CheckpointError: its config.json, its tensors or its tokenizer are not those of the pruned model.
    """
    hint = "--healed takes what was trained from exactly this pruned model: same base, same drops, same tokenizer."
    ours, theirs = read_config(pruned), read_config(given)
    try:
        own, found = (_understood(config, pruned) for config in (ours, theirs))
    except Exception as error:  # whatever a config of strangers may bring transformers to raise
        raise CheckpointError(f"config.json of {given} cannot be read: {error!s:.200}", hint=hint) from error
    if wrong := sorted(key for key in {*own, *found} if own.get(key) != found.get(key)):
        told = ", ".join(wrong)
        raise CheckpointError(f"config.json of {given} differs from the pruned model's in {told}.", hint=hint)
    from hubprune.core.streaming import WeightReader, read_tensor

    own, found = ({t.name: t.shape for _, t in open_weights(folder)} for folder in (pruned, given))
    tied = {"lm_head.weight"} if ours.get("tie_word_embeddings") else set()
    if missing := sorted(own.keys() - found.keys() - tied):
        raise CheckpointError(f"{given} lacks {len(missing)} tensors, {missing[0]} among them.", hint=hint)
    if more := sorted(found.keys() - own.keys() - tied):
        raise CheckpointError(f"{given} has {len(more)} tensors too many, {more[0]} among them.", hint=hint)
    if tied - own.keys() and tied <= found.keys():
        reader = WeightReader(given, {})
        head, embedding = (read_tensor(reader.place(name)) for name in (*tied, "model.embed_tokens.weight"))
        if not head.equal(embedding):
            raise CheckpointError(f"{given} has a head of its own, and the pruned model's is its embedding.", hint=hint)
    if other := [name for name in own.keys() & found.keys() if own[name] != found[name]]:
        name = min(other)
        raise CheckpointError(f"{name} in {given} has shape {found[name]} instead of {own[name]}.", hint=hint)
    check_tokenizer(pruned, given, hint=hint)


def _understood(config: Mapping[str, Any], pruned: Path) -> dict[str, Any]:
    """Return what transformers makes of a config.json with the pruned model's own code, and with no other.

    Its versions write the same in different ways, and leave out or add what is at its default.
    """
    from transformers import AutoConfig

    ours = read_config(pruned)
    code = ("architectures", "auto_map")
    values = {key: value for key, value in config.items() if key not in code}
    with scratch_folder(name="hubprune-config") as work:
        write_json({**values, **{key: value for key, value in ours.items() if key in code}}, work)
        for path in pruned.glob("*.py"):
            shutil.copyfile(path, work / path.name)
        read: dict[str, Any] = AutoConfig.from_pretrained(work, trust_remote_code="auto_map" in ours).to_dict()
    return {key: value for key, value in read.items() if key not in FREE_KEYS}


def check_tokenizer(pruned: Path, given: Path, *, hint: str) -> None:
    """Refuse a folder whose tokenizer gives other ids for some texts; code that it brings is not run.

    Raises:
        CheckpointError: it does, or cannot be loaded.
    """
    theirs = [given / name for name in OF_TOKENIZERS if (given / name).is_file()]
    if not theirs:
        return  # trainers that were given no tokenizer save none: ours is published in any case
    with scratch_folder(name="hubprune-tokenizer") as work:
        for path in [*theirs, *pruned.glob("*.py"), pruned / CONFIG_NAME]:
            shutil.copyfile(path, work / path.name)
        try:
            same = token_ids(load_tokenizer(work)) == token_ids(load_tokenizer(pruned))
        except Exception as error:  # whatever a tokenizer of strangers may bring transformers to raise
            raise CheckpointError(f"The tokenizer in {given} cannot be loaded: {error!s:.200}", hint=hint) from error
    if not same:
        raise CheckpointError(f"The tokenizer in {given} gives other ids than that of the model.", hint=hint)


def weights_digest(given: Path) -> str:
    """Return what stands for the weights in a folder from elsewhere."""
    files = sorted(given.glob("*.safetensors"))
    return _digest(given, tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache
def _digest(given: Path, as_seen: tuple[tuple[int, int], ...]) -> str:
    return key_of([[f.path, f.sha256] for f in list_files(given) if f.path.endswith(".safetensors")])


# ---- making ------------------------------------------------------------------------------------------------------


@contextmanager
def healed(
    run: Run, report: SiblingReport, folder: Path, *, template: Path | None, given: Path | None
) -> Iterator[tuple[Path, SiblingReport]]:
    """Train the pruned model, or take over what was trained elsewhere, and measure it beside base and pruned model."""
    recipe, spec = run.recipe, run.recipe.heal
    asked: list[object] = [weights_digest(given)] if given else []
    if spec:
        evaluation = recipe.evaluation.tasks, run.task_texts, run.task_sources
        asked = [spec, recipe.calibration, run.data_commits, file_hashes(recipe.calibration), recipe.seed, evaluation]
    key = key_of(run.circumstances, report.plan.content, report.plan.layout, report.pruned, asked)
    name = f"{report.repo_id.split('/')[-1]}-{key}"
    if spec:
        with kept_folder(
            run, "heal", name, key, HealedCheckpoint, lambda out: _heal(run, report, spec, folder, out),
            written=lambda kept: kept.written.files,
        ) as (own, done):  # fmt: skip
            checkpoint = PrunedCheckpoint(written=done.written, verification=done.verification)
            report = report.model_copy(update={"healed": checkpoint, "healing": done.record})
            yield own, _measured(run, report, folder, own, key=key, template=template)
    elif given:
        check_given(folder, given)
        with kept_folder(
            run, "taken", name, key, PrunedCheckpoint, lambda out: _take(run, report, given, out),
            written=lambda kept: kept.written.files,
        ) as (own, taken):  # fmt: skip
            report = report.model_copy(update={"healed": taken, "elsewhere": _told_of(given, folder, own)})
            yield own, _measured(run, report, folder, own, key=key, template=template)


def _request(run: Run, spec: HealSpec, *, name: str, out: Path) -> HealRequest:
    return HealRequest(
        name, out=out, steps=spec.steps, method=spec.method, rank=spec.rank, loss=spec.loss,
        learning_rate=spec.learning_rate, batch_size=spec.batch_size, held_out=spec.held_out, seed=run.recipe.seed,
        include_path=run.recipe.evaluation.include_path, device=run.recipe.device, dtype=run.recipe.dtype,
    )  # fmt: skip


def _heal(run: Run, report: SiblingReport, spec: HealSpec, folder: Path, out: Path) -> HealedCheckpoint:
    """Heal a folder under a public name; the record of it is in the manifest of the repo, not in a file beside it."""
    found = PrunedFolder(name=report.pruned, commit=None, folder=folder, config=read_config(folder))
    patient = Patient(found=found, plan=report.plan, base=run.downloaded, recipe=run.sibling_recipe("healed"))
    request = _request(run, spec, name=report.pruned, out=out)
    done = heal_patient(request, patient, store=run.store, reporter=run.reporter)
    (out / RECORD).unlink()
    files = tuple(file for file in done.written.files if file.path != RECORD)
    return done.model_copy(update={"written": done.written.model_copy(update={"files": files})})


def _take(run: Run, report: SiblingReport, given: Path, out: Path) -> PrunedCheckpoint:
    """Write the pruned model anew with the weights of a folder."""
    base = run.downloaded
    with scratch_folder(run.store.folder, name="taken") as scratch:
        made = with_tensors(base, from_elsewhere(base, report.plan, given), scratch, reporter=run.reporter)
        written, seen = write_healed(made, report.plan, out, how=ELSEWHERE, record=None, reporter=run.reporter)
    return PrunedCheckpoint(written=written, verification=seen)


def _told_of(given: Path, pruned: Path, own: Path) -> TrainedElsewhere:
    """Count what is another tensor now than in the pruned model."""
    from hubprune.core.streaming import WeightReader, read_tensor

    before, after = (WeightReader(folder, {}) for folder in (pruned, own))
    names = sorted(after.names)
    changed = sum(not read_tensor(before.place(n)).equal(read_tensor(after.place(n))) for n in names)
    dtypes = sorted({tensor.dtype for _, tensor in open_weights(given)})
    return TrainedElsewhere(dtypes=tuple(dtypes), changed=changed, tensors=len(names))


def _measured(
    run: Run, report: SiblingReport, folder: Path, own: Path, *, key: str, template: Path | None
) -> SiblingReport:
    """Run the benchmarks, let it write, and run the code of the card."""
    recipe, spec, base, plan = run.recipe, run.recipe.evaluation, run.runnable, report.plan
    where: dict[str, Any] = {"device": recipe.device, "dtype": run.dtype, "reporter": run.reporter}
    first = ModelFolder(base.folder, own_code=base.own_code, identity=run.identity())
    pruned = ModelFolder(folder, own_code=True, identity=run.identity(plan.content, plan.widths, plan.layout))
    last = ModelFolder(own, own_code=True, identity=run.identity("healed", key))
    if spec.tasks:

        def measure() -> HealedBenchmarks:
            """Load two at a time; what is known is not asked again."""
            from hubprune.evaluation import harness

            with Pair(first, pruned, **where) as as_is, Pair(first, last, **where) as trained:
                return harness.compare_three(
                    as_is, trained, spec=spec, seed=recipe.seed, reporter=run.reporter, memo=run.answers_file
                )

        asked = (
            spec.tasks, spec.num_fewshot, spec.limit, spec.batch_size, spec.backend, run.task_texts, run.task_sources,
            bool(spec.apply_chat_template),
        )  # fmt: skip
        seen = run.store.run("three", key_of(key, asked), HealedBenchmarks, measure)
        report = report.model_copy(update={"recovered": seen})
    with Pair(first, last, **where) as trained:
        generation = free_text(run, plan, trained, trained=key)
    ran = run_sibling_snippet(run, report, own, key=key, template=template)
    return report.model_copy(update={"generation": generation, "snippet": ran})


def draw_training(run: Run, folder: Path, report: SiblingReport) -> str | None:
    """Draw the curve of a training into the repo, and return its path; None where there is none, or no matplotlib."""
    if report.healing is None:
        return None
    try:
        return pictures.draw_training(report.healing, folder, name=report.repo_id)
    except MissingDependencyError as error:
        run.reporter.warn(f"The card gets no picture: {error.message} {error.hint or ''}")
        return None
