"""Documents that perplexity is measured on: drawn like a calibration mix, without what was scored on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hubprune.core.artifacts import HeldOutDocuments
from hubprune.core.errors import CalibrationError
from hubprune.core.recipe import CalibrationMix, CalibrationSubset
from hubprune.core.stages import key_of
from hubprune.pruning import calibration, documents
from hubprune.pruning.calibration import CalibrationSet, file_hashes
from hubprune.pruning.documents import find_mix, is_file
from hubprune.workflows.run import Run

DEFAULT_SAMPLES = 64
FINGERPRINT_TOKENS = 32
"""Two documents are the same where their first tokens are: mixes may cut them off at different lengths."""


def read_mix(name: str, *, num_samples: int | None) -> CalibrationMix:
    """Find what `--perplexity` names: a mix, or a file of documents, of which there may be fewer than wanted.

    Raises:
        RecipeError: no such mix or file.
        CalibrationError: the file cannot be read or holds no text.
    """
    wanted = num_samples or DEFAULT_SAMPLES
    mix = find_mix(name, num_samples=wanted)
    if not is_file(name) or mix.packed:
        return mix
    there = sum(1 for _ in documents.stream(mix.subsets[0], commit=None, seed=0, buffer=1))
    if not there:
        raise CalibrationError(f"{name} holds no document.")
    return mix.model_copy(update={"num_samples": min(wanted, there)})


def held_out(run: Run, mix: CalibrationMix) -> HeldOutDocuments:
    """Draw the documents of a mix, or take those of an earlier run; what the base was scored on is left out.

    Raises:
        CalibrationError: the mix cannot be read, or nothing is left of it.
    """
    commits = calibration.resolve_commits(mix)
    recipe = run.recipe
    overlap = overlaps(run, mix)
    key = key_of(
        run.circumstances, mix, commits, file_hashes(mix), recipe.seed,
        [recipe.calibration, run.data_commits, file_hashes(recipe.calibration)] if overlap else None,
    )  # fmt: skip
    return run.store.run("held-out", key, HeldOutDocuments, lambda: _draw(run, mix, commits, overlap=overlap))


def overlaps(run: Run, mix: CalibrationMix) -> bool:
    """Tell whether a mix may hold texts that the base is scored on.

    Raises:
        CalibrationError: it may, and they could not be told apart.
    """
    scored = run.recipe.calibration
    if not (run.recipe.needs_scores and _places(mix) & _places(scored)):
        return False
    if mix.packed != scored.packed:
        raise CalibrationError(
            f"{mix.name} and {scored.name} share texts, which cannot be told apart where one of the two is packed.",
            hint="Pass other texts with --perplexity.",
        )
    return True


def _places(mix: CalibrationMix) -> set[tuple[str | None, ...]]:
    def place(subset: CalibrationSubset) -> tuple[str | None, ...]:
        name = str(Path(subset.dataset).resolve()) if is_file(subset.dataset) else subset.dataset
        return name, subset.file, subset.split  # whatever its config: the default one has a name as well

    return {place(subset) for subset in mix.subsets}


def _draw(run: Run, mix: CalibrationMix, commits: tuple[str | None, ...], *, overlap: bool) -> HeldOutDocuments:
    drawn = _draw_set(run, mix, commits)
    head = min(FINGERPRINT_TOKENS, mix.max_tokens, run.recipe.calibration.max_tokens)
    seen: set[tuple[int, ...]] = set()
    if overlap:
        scored = _draw_set(run, run.recipe.calibration, run.data_commits)
        seen = {document.ids[:head] for document in scored.documents}
    kept = tuple(d.ids for d in drawn.documents if len(d.ids) > 1 and d.ids[:head] not in seen)
    if not kept:
        raise CalibrationError(
            f"All {len(drawn.documents)} documents of {mix.name} were scored on: none is left for the perplexity.",
            hint="Pass other texts with --perplexity, or more of them with --perplexity-samples.",
        )
    return HeldOutDocuments(
        name=mix.name,
        documents=kept,
        left_out=len(drawn.documents) - len(kept),
        sha256=hashlib.sha256(repr(kept).encode()).hexdigest(),
    )


def _draw_set(run: Run, mix: CalibrationMix, commits: tuple[str | None, ...]) -> CalibrationSet:
    return calibration.draw(
        mix,
        commits=commits,
        seed=run.recipe.seed,
        tokenizer=run.runnable.tokenizer(),
        context_length=run.base.config.get("max_position_embeddings"),
        reporter=run.reporter,
    )
