"""Siblings from a pruned checkpoint to a folder that is their repo: made and measured, or exported and compared.

What was made stays in the work folder, as the checkpoint does.  A quantized one is measured beside the base quantized
in the same way, on the documents of the recipe.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hubprune.cards import card, manifest
from hubprune.cards.markdown import FILTERS, visible
from hubprune.cards.overview import NEW_TOKENS
from hubprune.cards.provenance import add_notice, card_in_force
from hubprune.cards.sibling import context_of
from hubprune.core import fresh
from hubprune.core.artifacts import (
    BaseCheckpoint,
    Environment,
    GgufExport,
    PublishReport,
    QuantizedBenchmarks,
    QuantizedCheckpoint,
    RepoFile,
    SiblingKind,
    SiblingLink,
    SiblingReport,
    SnippetRun,
)
from hubprune.core.config import read_config
from hubprune.core.devices import last_words, run_to_end
from hubprune.core.errors import MissingDependencyError, VerificationError
from hubprune.core.files import key_of, list_files, scratch_folder, write_atomically
from hubprune.core.privacy import is_license, scrub
from hubprune.core.requests import ExportRequest
from hubprune.core.templates import environment as template_environment
from hubprune.evaluation.pair import ModelFolder, Pair
from hubprune.pruning.calibration import file_hashes
from hubprune.workflows.card import CardChoices
from hubprune.workflows.export import export_gguf
from hubprune.workflows.publish.healing import draw_training, healed
from hubprune.workflows.publish.stages import kept_folder, run_sibling_snippet
from hubprune.workflows.quantize import quantize_base
from hubprune.workflows.quantized import How
from hubprune.workflows.run import Run

PACKAGES: Mapping[SiblingKind, tuple[str, ...]] = {
    "healed": ("accelerate", "peft"), "quantized": ("compressed-tensors",), "gguf": ("gguf", "llama-cpp-python"),
}  # fmt: skip
"""What writes and reads a kind of sibling."""
SNIPPET = "gguf.py.jinja"
Maker = Callable[..., AbstractContextManager[tuple[Path, SiblingReport]]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which sibling, and what its card calls it and the others."""

    kind: SiblingKind
    repo_id: str
    tagged: bool
    """Whether the cards name tags of their files."""
    others: tuple[SiblingLink, ...]
    given: Path | None = None
    """Folder with a checkpoint that was trained elsewhere."""


@dataclass(frozen=True)
class SiblingProduct:
    """All that a sibling's repo consists of, and how it came to be."""

    folder: Path
    files: tuple[RepoFile, ...]
    report: SiblingReport


@contextmanager
def made(
    run: Run, pruned: PublishReport, folder: Path, place: Place, *, choices: CardChoices,
    depends_on: card.Fingerprint,
) -> Iterator[SiblingProduct]:  # fmt: skip
    """Make a sibling of a pruned checkpoint in a folder, and yield it; nothing is published.

    Raises:
        HubpruneError: it could not be made, or does not compute what it should.
    """
    kind, before = place.kind, dict(run.store.seconds)
    tag = manifest.checkpoint_tag(pruned.checkpoint)
    report = SiblingReport(
        kind=kind, repo_id=place.repo_id, endpoint=pruned.endpoint,
        recipe=run.sibling_recipe(kind).model_dump(mode="json", exclude_none=True),
        pruned=pruned.repo_id, pruned_tag=tag if place.tagged else None, beside=place.others, base=pruned.base,
        plan=pruned.plan, checkpoint=pruned.checkpoint, environment=_environment(run, kind),
        fingerprint={part: dict(values) for part, values in depends_on.items()},
        pruned_repetition=pruned.generation.repetition if kind == "healed" and pruned.generation else None,
    )  # fmt: skip
    makers: Mapping[SiblingKind, Maker] = {
        "healed": partial(healed, given=place.given), "quantized": _quantized, "gguf": _exported,
    }  # fmt: skip
    with makers[kind](run, report, folder, template=choices.template) as (own, found):
        stages = [stage for stage in run.store.seconds if stage not in before]
        found = found.model_copy(
            update={
                "seconds": {stage: run.store.seconds[stage] for stage in stages},
                "stage_keys": {stage: run.store.keys[stage] for stage in stages},
            }
        )
        yield SiblingProduct(own, _assemble(run, own, found, template=choices.template), found)


def versions_of(kind: SiblingKind) -> dict[str, str]:
    """Return the versions of the packages that write and read a kind of sibling, of those that are installed."""
    found = {}
    for package in PACKAGES[kind]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _environment(run: Run, kind: SiblingKind) -> Environment:
    here = run.environment
    return here.model_copy(update={"versions": {**here.versions, **versions_of(kind)}})


# ---- quantized ---------------------------------------------------------------------------------------------------


@contextmanager
def _quantized(
    run: Run, report: SiblingReport, folder: Path, *, template: Path | None
) -> Iterator[tuple[Path, SiblingReport]]:
    """Quantize the pruned model, and the base as a control where benchmarks are asked for, and measure all four."""
    recipe, base = run.recipe, run.runnable
    asked = [recipe.quantize, recipe.calibration, run.data_commits, file_hashes(recipe.calibration), recipe.seed]
    key = key_of(run.circumstances, report.plan.content, report.plan.layout, report.plan.widths, report.pruned, asked)
    with kept_folder(
        run, "quantize", f"{report.repo_id.split('/')[-1]}-{key}", key, QuantizedCheckpoint,
        lambda out: _quantize(run, folder, out, name=report.pruned), written=lambda kept: kept.written.files,
    ) as (own, done):  # fmt: skip
        report = report.model_copy(update={"quantized": done})
        if recipe.evaluation.tasks:
            control_key = key_of(run.circumstances, asked)
            with kept_folder(
                run, "control", f"{run.base.name.split('/')[-1]}-{control_key}", control_key, QuantizedCheckpoint,
                lambda out: _quantize(run, base.folder, out, name=run.base.name),
                written=lambda kept: kept.written.files,
            ) as (control, record):  # fmt: skip
                four = _measured(run, report, folder, own, control, key=key, control_key=control_key)
            report = report.model_copy(update={"control": record.record, "benchmarks": four})
        ran = run_sibling_snippet(run, report, own, key=key, template=template)
        yield own, report.model_copy(update={"snippet": ran})


def _quantize(run: Run, folder: Path, out: Path, *, name: str) -> QuantizedCheckpoint:
    """Quantize a folder under a public name, so that nothing in the result depends on where it lies."""
    recipe = run.recipe
    assert recipe.quantize is not None
    source = BaseCheckpoint(
        name=name, commit=None, folder=str(folder), config=read_config(folder), files=list_files(folder)
    )  # fmt: skip
    how = How(
        mix=recipe.calibration, store=run.store, reporter=run.reporter, seed=recipe.seed, device=recipe.device,
        dtype=recipe.dtype,
    )  # fmt: skip
    return quantize_base(source, recipe.quantize, out, how)


def _measured(
    run: Run, report: SiblingReport, folder: Path, own: Path, control: Path, *, key: str, control_key: str
) -> QuantizedBenchmarks:
    """Run the benchmarks on base and pruned model, each as it is and quantized; what is known is not asked again."""
    from hubprune.evaluation import harness

    recipe, spec, base, plan = run.recipe, run.recipe.evaluation, run.runnable, report.plan
    where = {"device": recipe.device, "dtype": run.dtype, "reporter": run.reporter}
    folders = [
        ModelFolder(base.folder, own_code=base.own_code, identity=run.identity()),
        ModelFolder(folder, own_code=True, identity=run.identity(plan.content, plan.widths, plan.layout)),
        ModelFolder(control, own_code=base.own_code, identity=run.identity("quantized", control_key)),
        ModelFolder(own, own_code=True, identity=run.identity("quantized", key)),
    ]

    def measure() -> QuantizedBenchmarks:
        """Load two at a time."""
        with Pair(*folders[:2], **where) as as_is, Pair(*folders[2:], **where) as quantized:  # type: ignore[arg-type]
            return harness.compare_four(
                as_is, quantized, spec=spec, seed=recipe.seed, reporter=run.reporter, memo=run.answers_file
            )

    asked = (
        spec.tasks, spec.num_fewshot, spec.limit, spec.batch_size, spec.backend, run.task_texts, run.task_sources,
        bool(spec.apply_chat_template),
    )  # fmt: skip
    return run.store.run("four", key_of(key, asked), QuantizedBenchmarks, measure)


# ---- exported ----------------------------------------------------------------------------------------------------


@contextmanager
def _exported(
    run: Run, report: SiblingReport, folder: Path, *, template: Path | None
) -> Iterator[tuple[Path, SiblingReport]]:
    """Write every type as a file, and compare each with the pruned model in transformers."""
    types, name = run.recipe.gguf or (), report.pruned.split("/")[-1]
    key = key_of(run.circumstances, report.plan.content, report.plan.layout, report.plan.widths, report.pruned)
    key = key_of(key, versions_of("gguf"))
    own = run.store.folder / "siblings" / f"{name}-GGUF-{key}"
    exports = []
    for kind in types:
        file = own / gguf_name(name, kind)

        def there(kept: GgufExport, file: Path = file) -> bool:
            return file.is_file() and file.stat().st_size == kept.size

        def export(kind: str = kind, file: Path = file) -> GgufExport:
            return _export(run, folder, file, kind, name)

        exports.append(run.store.run(f"gguf-{kind}", key_of(key, kind), GgufExport, export, valid=there))
    known = [RepoFile(path=e.file, size=e.size, sha256=e.sha256) for e in exports]
    shutil.rmtree(own / "tasks", ignore_errors=True)
    for path in own.iterdir():
        if path.name not in {file.path for file in known}:
            path.unlink()
    for path in sorted(folder.iterdir()):
        if is_license(path.name):
            shutil.copyfile(path, own / path.name)
    add_notice(own, card=card_in_force(run.base, given=run.recipe.target.license))
    carried = tuple(found for found in list_files(own, known=known) if found not in known)
    report = report.model_copy(update={"exports": tuple(exports), "carried": carried})
    tag = manifest.files_tag(report.files) if report.pruned_tag else None
    prompt = run.recipe.evaluation.prompt_texts()[0]
    code = snippet_code(report.repo_id, exports[0].file, revision=tag, prompt=prompt, overrides=template)
    ran = run.store.run(
        f"snippet-{report.kind}", key_of(key, code), SnippetRun, lambda: _run_snippet(code, report, own, tag)
    )
    yield own, report.model_copy(update={"snippet": ran})


def gguf_name(name: str, kind: str) -> str:
    """Return what the file of a type is called."""
    return f"{name}-{kind.upper()}.gguf"


def _export(run: Run, folder: Path, file: Path, kind: str, name: str) -> GgufExport:
    """Write and compare one file."""
    file.unlink(missing_ok=True)
    with scratch_folder(run.store.folder, name="export") as work:
        # The name of the folder becomes that of the model in the file.
        (link := work / name).symlink_to(folder.resolve(), target_is_directory=True)
        request = ExportRequest(str(link), out=file, outtype=kind, base=run.downloaded.folder)
        done = export_gguf(request, reporter=run.reporter, session=run.session)
    if done.parity is None:
        file.unlink()
        raise MissingDependencyError(
            f"{file.name} was not compared with transformers: {done.not_verified}.",
            hint="Only what was compared is published.",
        )
    return done.model_copy(update={"file": file.name})


def snippet_code(repo_id: str, file: str, *, revision: str | None, prompt: str, overrides: Path | None = None) -> str:
    """Write the code of a GGUF repo's card."""
    found = template_environment("card", filters=FILTERS, overrides=overrides).get_template(SNIPPET)
    text = found.render(repo_id=repo_id, file=file, revision=revision, prompt=prompt, new_tokens=NEW_TOKENS)
    return scrub(visible(text, keep="\n\t")).rstrip("\n")


def _run_snippet(code: str, report: SiblingReport, folder: Path, tag: str | None) -> SnippetRun:
    """Run that code as it stands in a fresh process: the client finds the files in its cache, and the Hub nowhere.

    Raises:
        VerificationError: it fails.
    """
    commit = "0" * 40
    with scratch_folder(name="hubprune-snippet") as work:
        cache = work / "hub" / f"models--{report.repo_id.replace('/', '--')}"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / (tag or "main")).write_text(commit)
        (cache / "snapshots").mkdir()
        (cache / "snapshots" / commit).symlink_to(folder.resolve(), target_is_directory=True)
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(work / "hub"), "PYTHONUTF8": "1"}
        done = run_to_end(
            fresh.python(["-c", code], variables), cwd=work, env=variables, stdin=subprocess.DEVNULL,
            capture_output=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
    if done.returncode:
        raise VerificationError(
            f"The code that the card would show does not run on the written files: {last_words(done.stderr)}",
            hint="Nothing of this sibling was published. This is a bug worth reporting, with the name of the base.",
        )
    return SnippetRun(
        repo_id=report.repo_id, revision=tag, code=code, output=done.stdout.removesuffix("\n"),
        transformers=version("transformers"),
    )  # fmt: skip


# ---- the repo ----------------------------------------------------------------------------------------------------


def _assemble(run: Run, folder: Path, report: SiblingReport, *, template: Path | None) -> tuple[RepoFile, ...]:
    """Add what makes it a repo: notice, tasks that it was measured with, card, recipe, manifest; return all files."""
    for name, text in run.task_texts.items():
        (folder / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "tasks" / name, scrub(text))
    add_notice(folder, card=card_in_force(run.base, given=run.recipe.target.license))
    digest, curve = card.template_hash(template), draw_training(run, folder, report)
    context = context_of(report, template_hash=digest, curve=curve)
    write_atomically(folder / manifest.CARD, card.render(context, overrides=template))
    manifest.write_recipe(folder, recipe=run.sibling_recipe(report.kind), report=report)
    return manifest.write_sibling(folder, report=report, template_hash=digest)
