"""The shipped calibration mixes, and how `--calibration` finds one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hubprune.errors import RecipeError
from hubprune.recipe import CalibrationMix, CalibrationSubset, parse, read_yaml

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

MIXES: Mapping[str, CalibrationMix] = {mix.name: mix for mix in (COSMOPEDIA,)}


def find_mix(name: str, *, num_samples: int | None = None, max_tokens: int | None = None) -> CalibrationMix:
    """Return a mix by name, or read it from a YAML of the same fields, or make one of a file of documents.

    Args:
        name: `cosmopedia`, or the path of a .yaml, .jsonl, .parquet or .txt file.
        num_samples: documents in all, in place of the mix's own number.
        max_tokens: tokens per document, in place of the mix's own number.

    Raises:
        RecipeError: no such mix or file, or a value that cannot be used.
    """
    mix = MIXES.get(name) or _from_file(Path(name))
    given = {"num_samples": num_samples, "max_tokens": max_tokens}
    return parse(CalibrationMix, {**mix.model_dump(), **{k: v for k, v in given.items() if v is not None}})


def _from_file(path: Path) -> CalibrationMix:
    if path.suffix in (*DOCUMENT_FILES, ".yaml", ".yml") and not path.is_file():
        raise RecipeError(f"The calibration file {path} does not exist.")
    if path.suffix not in (*DOCUMENT_FILES, ".yaml", ".yml"):
        raise RecipeError(
            f"There is no calibration mix {str(path)!r}.",
            hint=f"Shipped: {', '.join(MIXES)}. Or pass a .yaml with a mix, or a {', '.join(DOCUMENT_FILES)} file.",
        )
    if path.suffix in DOCUMENT_FILES:
        return CalibrationMix(name=path.name, subsets=(CalibrationSubset(dataset=str(path), weight=1.0),))
    return parse(CalibrationMix, {"name": path.stem, **read_yaml(path)})
