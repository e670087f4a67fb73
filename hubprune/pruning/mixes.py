"""The shipped calibration mixes, and how `--calibration` finds one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hubprune.core.errors import RecipeError
from hubprune.core.files import file_exists
from hubprune.core.recipe import CalibrationMix, CalibrationSubset, parse, read_yaml

DOCUMENT_FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
"""Suffix of a local file of documents -> builder of datasets that reads it."""

COSMOPEDIA_WEIGHTS: Mapping[str, float] = {
    "stories": 0.300,
    "web_samples_v2": 0.200,
    "web_samples_v1": 0.150,
    "wikihow": 0.150,
    "openstax": 0.125,
    "stanford": 0.075,
}

COSMOPEDIA = CalibrationMix(
    name="cosmopedia",
    subsets=tuple(
        CalibrationSubset(dataset="HuggingFaceTB/cosmopedia", config=config, weight=weight)
        for config, weight in COSMOPEDIA_WEIGHTS.items()
    ),
)

PAPER_SAMPLES = 256
"""Samples that He et al. 2024 (arXiv 2406.15786, section A and Figure 10) score on."""
PAPER_TOKENS = 2048
"""Tokens per sample there."""

C4 = CalibrationMix(
    name="c4",
    subsets=(CalibrationSubset(dataset="allenai/c4", config="en", split="validation", weight=1),),
    num_samples=PAPER_SAMPLES,
    max_tokens=PAPER_TOKENS,
    packed=True,
)
"""The setting of He et al. 2024.  They refer to Sun et al. 2023 for it, who take random windows out of documents that
are longer than a sequence; their own code joins the documents and cuts, and so does this."""


def _instructions(name: str, subset: CalibrationSubset) -> CalibrationMix:
    return CalibrationMix(name=name, subsets=(subset,), num_samples=PAPER_SAMPLES, max_tokens=PAPER_TOKENS)


CODEALPACA = _instructions(
    "codealpaca",
    CalibrationSubset(dataset="sahil2801/CodeAlpaca-20k", column=("instruction", "input", "output"), weight=1),
)
MATHINSTRUCT = _instructions(
    "mathinstruct", CalibrationSubset(dataset="TIGER-Lab/MathInstruct", column=("instruction", "output"), weight=1)
)
# Beside its files the repo has a loading script, and with one of those datasets 4 and later open none of the configs.
LIMA = _instructions(
    "lima", CalibrationSubset(dataset="GAIR/lima", file="train.jsonl", column="conversations", weight=1)
)

MIXES: Mapping[str, CalibrationMix] = {mix.name: mix for mix in (COSMOPEDIA, C4, CODEALPACA, MATHINSTRUCT, LIMA)}
"""The shipped mixes.  The instruction sets are those of He et al. 2024, Figure 3, one document per row without the
template of any chat: a base has none."""


def is_file(dataset: str) -> bool:
    """Return whether a subset's data set is a local file of documents, by its suffix."""
    return Path(dataset).suffix in DOCUMENT_FILES


def find_mix(name: str, *, num_samples: int | None = None, max_tokens: int | None = None) -> CalibrationMix:
    """Return a mix by name, or read it from a YAML of the same fields, or make one of a file of documents.

    Args:
        name: one of `MIXES`, or the path of a .yaml, .jsonl, .json, .parquet or .txt file.
        num_samples: documents or packed sequences in all, in place of the mix's own number.
        max_tokens: tokens per document or packed sequence, in place of the mix's own number.

    Raises:
        RecipeError: no such mix or file, or a value that cannot be used.
    """
    mix = MIXES.get(name) or _from_file(Path(name))
    given = {"num_samples": num_samples, "max_tokens": max_tokens}
    return parse(CalibrationMix, {**mix.model_dump(), **{k: v for k, v in given.items() if v is not None}})


def _from_file(path: Path) -> CalibrationMix:
    if path.suffix in (*DOCUMENT_FILES, ".yaml", ".yml") and not file_exists(path):
        raise RecipeError(f"The calibration file {path} does not exist.")
    if path.suffix not in (*DOCUMENT_FILES, ".yaml", ".yml"):
        raise RecipeError(
            f"There is no calibration mix {str(path)!r}.",
            hint=f"Shipped: {', '.join(MIXES)}. Or pass a .yaml with a mix, or a {', '.join(DOCUMENT_FILES)} file.",
        )
    if path.suffix in DOCUMENT_FILES:
        return CalibrationMix(name=path.name, subsets=(CalibrationSubset(dataset=str(path), weight=1.0),))
    return parse(CalibrationMix, {"name": path.stem, **read_yaml(path)})
