"""Run a checkpoint in vLLM, llama.cpp and mlx-lm, and compare what each computes with transformers.

The checkpoint is a folder whose code, if any, was found to be ours or is trusted.  llama.cpp gets what
`hubprune export gguf` makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubprune.core import fresh
from hubprune.core.artifacts import Check, RuntimeComparison, RuntimeName, RuntimeRun, Verification
from hubprune.core.config import read_structure
from hubprune.core.console import Reporter, size
from hubprune.core.errors import HubpruneError, VerificationError
from hubprune.core.files import scratch_folder
from hubprune.core.memory import available_bytes
from hubprune.core.requests import ExportRequest
from hubprune.core.weights import open_weights
from hubprune.exporting.parity import PROMPTS, TEXTS
from hubprune.runtimes import asking
from hubprune.runtimes.asking import RUNTIMES, Answer, Asked
from hubprune.runtimes.comparing import HALF_PRECISION, compare, refused
from hubprune.runtimes.reference import ReferenceRequest, Text, ask_transformers
from hubprune.runtimes.typed import GGUF, Files, run_typed
from hubprune.workflows.export import export_gguf

NEW_TOKENS = 24
Pythons = Mapping[RuntimeName, Path]
"""Runtime -> the interpreter that has it."""
COUNT = ("vllm", "llama", "mlx", "torch", "transformers", "compressed")
"""What the names of packages have in them that change what a runtime computes."""


@dataclass(frozen=True)
class Chosen:
    """The runtimes that a publish is to run its result in."""

    pythons: Pythons = field(default_factory=dict)
    by_name: bool = False
    """Whether they were asked for, so that a result that one does not run is not published."""

    @property
    def identity(self) -> object:
        """What stands for them in keys."""
        found = ((n, asking.versions(python, RUNTIMES[n].module) or {}) for n, python in self.pythons.items())
        return [[n, {p: v for p, v in there.items() if any(c in p.lower() for c in COUNT)}] for n, there in found]


NOTHING = Chosen()


def choose(wanted: str | Sequence[str]) -> Chosen:
    """Return the runtimes that are meant by `auto` (all that this machine has), `none`, or a list of names.

    Raises:
        RecipeError: there is no such runtime, or a variable names no interpreter that has it.
        MissingDependencyError: this machine has none of it.
    """
    if wanted == "auto":
        found = {name: asking.find(name) for name in RUNTIMES}
        return Chosen({name: python for name, python in found.items() if python})
    names = () if wanted == "none" else asking.known(wanted)
    return Chosen({name: asking.require(name) for name in names}, by_name=True)


def compare_runtimes(
    folder: Path, config: Mapping[str, Any], pythons: Pythons, *, any_code: bool = False, typed_as: str | None = None,
    reporter: Reporter,
) -> RuntimeComparison:  # fmt: skip
    """Run a checkpoint in each of some runtimes, and hold what they compute against transformers.

    Both compute in float32; a quantized checkpoint is computed in the dtype that its config.json names, and held
    against a wider tolerance.

    Args:
        folder: of the checkpoint.
        config: its config.json.
        pythons: interpreter of each runtime.
        any_code: whether its code is run, whatever its layout; else that of the layouts that need one, which is ours.
        typed_as: id of a repo under which the commands of a reader are run as well, where the runtime agreed.
        reporter: told what is run.

    Raises:
        VerificationError: transformers itself does not run it.
    """
    layout, quantized = read_structure(config).layout, "quantization_config" in config
    own_code, dtype = any_code or layout != "stock", "auto" if quantized else "float32"
    asked = ReferenceRequest(folder=str(folder), own_code=own_code, dtype=dtype)
    with fresh.warm(), scratch_folder(name="hubprune-runtimes") as work:
        cut = ask_transformers(asked.model_copy(update={"words": TEXTS}))
        positions = int(config.get("max_position_embeddings") or 2**20)
        prompts = tuple(row[: max(1, positions - NEW_TOKENS)] for row in cut.tokens[: len(PROMPTS)])
        request = Asked(
            runtime="vllm", model=str(folder), prompts=prompts, new_tokens=NEW_TOKENS, texts=TEXTS, dtype=dtype,
            trust_remote_code=own_code, positions=positions,
        )  # fmt: skip
        answers, runs = _ask_each(pythons, request, work, reporter)
        # Runtimes that wrote the same text are held against one pass over it.
        written = {
            name: [Text(prompt=prompt, ids=made.ids) for prompt, made in zip(prompts, answer.texts, strict=True)]
            for name, answer in answers.items()
        }
        texts = tuple(dict.fromkeys(text for own in written.values() for text in own))
        seen = ask_transformers(asked.model_copy(update={"texts": texts})) if texts else cut
        rows = dict(zip(texts, seen.rows, strict=True))
        for name, answer in answers.items():
            wide, own = HALF_PRECISION if quantized else None, [rows[text] for text in written[name]]
            runs[name] = run = compare(name, answer, own, tokens=cut.tokens, tolerance=wide)
            if typed_as and run.passed:
                gguf = work / GGUF if name == "llama.cpp" else None
                files = Files(repo_id=typed_as, folder=folder, own_code=own_code, gguf=gguf, ids=prompts[0])
                runs[name] = run.model_copy(update={"command": _typed(name, files, pythons[name], reporter)})
    return RuntimeComparison(
        layout=layout, dtype=seen.dtype, quantized=quantized, transformers=seen.transformers,
        runs=tuple(runs[name] for name in pythons),
    )  # fmt: skip


def _ask_each(
    pythons: Pythons, request: Asked, work: Path, reporter: Reporter
) -> tuple[dict[RuntimeName, Answer], dict[RuntimeName, RuntimeRun]]:
    """Ask each runtime the same, and return the answers, and what became of those that gave none."""
    answers, runs = dict[RuntimeName, Answer](), dict[RuntimeName, RuntimeRun]()
    folder = Path(request.model)
    for name, python in pythons.items():
        if told := _obstacle(folder):
            runs[name] = RuntimeRun(runtime=name, outcome="not run", detail=f"{RUNTIMES[name].title}: {told}")
            continue
        reporter.note(f"running it in {RUNTIMES[name].title}")
        try:
            model = _as_gguf(folder, work, reporter) if name == "llama.cpp" else folder
            own = request.model_copy(update={"runtime": name, "model": str(model)})
            answers[name] = asking.ask(own, python=python)
        except HubpruneError as error:  # of an export that is refused, too
            runs[name] = refused(name, error.message)
    return answers, runs


def _typed(name: RuntimeName, files: Files, python: Path, reporter: Reporter) -> str | None:
    """Return the command that ran it as a reader would; None where none did, which is said."""
    try:
        return run_typed(name, files, python=python)
    except VerificationError as error:
        reporter.warn(f"The card shows no command for {RUNTIMES[name].title}: {error.message}")
        return None


def _obstacle(folder: Path) -> str | None:
    """Say why a comparison is impossible here, or None."""
    needed, there = 4 * open_weights(folder).parameters(), available_bytes()
    if needed > 0.8 * there:
        return f"in float32 it would need {size(needed)} of memory, and {size(there)} are free"
    return None


def _as_gguf(folder: Path, work: Path, reporter: Reporter) -> Path:
    """Write what `hubprune export gguf --outtype f32` would; it is compared here, with the others."""
    file = work / GGUF
    request = ExportRequest(str(folder), out=file, outtype="f32", no_verify=True)
    export_gguf(request, reporter=reporter)
    return file


# ---- as a part of a verification -----------------------------------------------------------------------------------


def as_checks(compared: RuntimeComparison) -> tuple[Check, ...]:
    """Write every run as a check; one that was refused, or not run, has not passed."""
    named = ((f"{RUNTIMES[run.runtime].title} computes what transformers does", run) for run in compared.runs)
    return tuple(Check(name=name, passed=run.passed, detail=run.detail) for name, run in named)


def with_runtimes(seen: Verification, compared: RuntimeComparison) -> Verification:
    """Add to a verification what other runtimes made of the checkpoint."""
    return seen.model_copy(update={"checks": (*seen.checks, *as_checks(compared)), "in_runtimes": compared})


def require_same(compared: RuntimeComparison, *, all_of_them: bool) -> None:
    """Refuse a checkpoint that a runtime computes otherwise, or with `all_of_them` one that any does not run.

    Raises:
        VerificationError: with what was seen.
    """
    wrong = [run for run in compared.runs if run.outcome == "differs" or (all_of_them and not run.passed)]
    if wrong:
        raise VerificationError(
            f"Other runtimes do not compute what transformers does: {'; '.join(run.detail for run in wrong)}.",
            hint=f"Nothing was published. To publish without: --runtimes {_others(compared, wrong)}.",
        )


def _others(compared: RuntimeComparison, wrong: Sequence[RuntimeRun]) -> str:
    return ",".join(run.runtime for run in compared.runs if run not in wrong) or "none"
