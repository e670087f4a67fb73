"""Write the calibration text and the benchmark rows: a pure function of two seeds.

    python -m hubprune.demo.world [--out DIR]

writes calibration/<subset>.jsonl and benchmarks/<config>.jsonl below DIR (default: `hubprune/demo/datasets`).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from hubprune.demo.rows import BENCHMARKS, Row, as_jsonl, make
from hubprune.demo.texts import SUBSETS, World

CALIBRATION_SEED = "calibration-1"
BENCHMARK_SEED = "benchmarks-1"
TEXTS_PER_SUBSET = 150
ROWS_PER_BENCHMARK = 200


def texts(subset: str, count: int, *, seed: str) -> list[str]:
    """Return `count` texts of one subset."""
    world = World(f"{seed}-{subset}")
    return [world.text(subset) for _ in range(count)]


def files() -> Mapping[str, str]:
    """Return the content of every data file by its path below the folder of data sets."""
    content = dict[str, str]()
    for subset in SUBSETS:
        rows: list[Row] = [{"text": text} for text in texts(subset, TEXTS_PER_SUBSET, seed=CALIBRATION_SEED)]
        content[f"calibration/{subset}.jsonl"] = as_jsonl(rows)
    for name in BENCHMARKS:
        content[f"benchmarks/{name}.jsonl"] = as_jsonl(make(name, ROWS_PER_BENCHMARK, seed=BENCHMARK_SEED))
    return content


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write the calibration text and the benchmark rows of the demo.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "datasets")
    out: Path = parser.parse_args(arguments).out
    for path, content in files().items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
