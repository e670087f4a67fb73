"""Count and time what the suite `long` costs against one row at a time, on a random Llama of few layers.

    python benchmarks/long.py [--quick]

once      the examples that all rows follow are read once, piece by piece, and what answers begin with alike once
rows      lm-eval's own way: each answer of each row is a request that is read from its first token on

Rows and intents are made up, in the shape of BANKING77: 77 intents, 100 rows, queries of about 12 words, and 5 examples
of each intent, which are 14,000 tokens.  What is counted are tokens that run through a layer, of base and pruned model;
one row at a time is counted for all requests and run for a few of them, since all of them would take days.  Answers of
those few are compared with lm-eval's Hugging Face backend at batch size 1.  `layers` is the same with layers that are
read from their files.  `--quick` takes fewer examples and rows.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eval import write_word_tokenizer
from measuring import QUIET, Finished, Row, at_least, at_most, report, run_child
from random_llama import LlamaShape, write_llama

SHAPE = LlamaShape(128, 352, 4, 8, 4, 2048, "F32")
INTENTS, ROWS, EXAMPLES = 77, 100, 5
QUICK = (20, 4, 2)
WORDS_OF_AN_EXAMPLE = 30
"""Tokens of a query with the words around it; its intent comes beside them, so that 385 examples are 14k tokens."""
POSITIONS = 32768
TIMES = 10.0
"""How many times fewer token-layer runs there have to be."""
DIFFERENCE = 1e-5
"""In nats, relative to answers of some 100 nats and more in float32."""
SAMPLE = 4
"""Requests that are run one at a time."""


def requests_of(intents: int, rows: int, examples: int, *, vocabulary: int) -> list[Any]:
    """Make all requests of the suite: the same examples, each row, each intent."""
    from hubprune.evaluation.requests import Request

    source = random.Random(0)

    def words(count: int) -> tuple[int, ...]:
        return tuple(source.randrange(3, vocabulary) for _ in range(count))

    # As labels do, several begin with the same words: card_arrival, card_acceptance.
    firsts = [words(1) for _ in range(intents // 3 + 1)]
    labels = [(*firsts[n // 3], *words(source.randint(2, 9))) for n in range(intents)]
    shown = [(*words(WORDS_OF_AN_EXAMPLE), *label) for _ in range(examples) for label in labels]
    context = tuple(token for example in shown for token in example)
    queries = [(*context, *words(source.randint(12, 40))) for _ in range(rows)]
    return [Request.of(query, label, max_length=POSITIONS) for query in queries for label in labels]


def write_models(folder: Path) -> None:
    """Write base and pruned model, with positions for long prompts."""
    import os
    import subprocess

    write_llama(folder / "base", SHAPE, shards=1)
    write_word_tokenizer(folder / "base", SHAPE.vocab_size)
    path = folder / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": POSITIONS}))
    made = ("--attn-layers", "2", "--out", folder / "pruned")
    command = [sys.executable, "-m", "hubprune", "prune", folder / "base", *made]
    environment = {**os.environ, **QUIET, "HUBPRUNE_HOME": str(folder / "home")}
    subprocess.run(list(map(str, command)), check=True, env=environment, capture_output=True)


def tokens_by_row(asked: Sequence[Any]) -> int:
    """Count what is read where each row has its examples for itself, and its answers share them."""
    from hubprune.evaluation.requests import make_rows

    by_context: dict[tuple[int, ...], list[Any]] = {}
    for request in asked:
        by_context.setdefault(request.context, []).append(request)
    return sum(len(row) for some in by_context.values() for row in make_rows(some, most=10**9))


# ---- in a process of its own -----------------------------------------------------------------------------------------


def answer_of_child(way: str, folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    import torch

    from hubprune.evaluation.harness import load_folders, open_folders
    from hubprune.evaluation.layer_tree import Passage
    from hubprune.evaluation.pair import ModelFolder

    torch.set_num_threads(1)
    asked = requests_of(*sizes, vocabulary=SHAPE.vocab_size)
    sample = [asked[number * len(asked) // SAMPLE] for number in range(SAMPLE)]
    folders = {"base": ModelFolder(folder / "base"), "pruned": ModelFolder(folder / "pruned", own_code=True)}
    models = (open_folders if way == "layers" else load_folders)(folders, "cpu", "float32", None)
    runs, original = [0], Passage.run

    def counted(self: Passage, layer: Any, number: int, states: torch.Tensor) -> torch.Tensor:
        runs[0] += states.shape[0] * states.shape[1]
        return original(self, layer, number, states)

    Passage.run = counted  # type: ignore[method-assign]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found: dict[str, dict[int, float]] = {name: {} for name in folders}
    if way == "rows":
        for name in folders:
            answers = models.language_models[name].plain(sample, rows=1)
            found[name] = {n: answer.log_likelihood for n, answer in enumerate(answers)}
        runs[0] = len(folders) * SHAPE.num_hidden_layers * sum(map(len, asked))
    else:
        for scored in models.score(tuple(folders), asked):
            for name, some in scored.items():
                found[name] |= {n: answer.log_likelihood for n, answer in some.items()}
    places = {request: number for number, request in enumerate(asked)}
    return {
        "cpu_seconds": time.process_time() - start,
        "extra": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
        "runs": runs[0],
        "requests": len(asked),
        "tokens": max(map(len, asked)),
        "by_row": len(folders) * SHAPE.num_hidden_layers * tokens_by_row(asked),
        "share": sum(map(len, sample)) / sum(map(len, asked)) if way == "rows" else 1.0,
        "answers": [found[n][i if way == "rows" else places[r]] for n in folders for i, r in enumerate(sample)],
    }


# ---- the comparison --------------------------------------------------------------------------------------------------


def compare(folder: Path, *, quick: bool) -> int:
    """Run each way, and print the table."""
    write_models(folder)
    sizes = QUICK if quick else (INTENTS, ROWS, EXAMPLES)

    def run(way: str) -> Finished:
        return run_child([__file__, "--child", way, folder, *sizes])

    rows, once, layers = map(run, ("rows", "once", "layers"))
    asked = once.answer
    print(f"{SHAPE}; {asked['requests']:,} requests of up to {asked['tokens']:,} tokens, base and pruned; 1 thread")
    ways = (rows.answer, once.answer, layers.answer)
    times = [rows.answer["runs"] / way["runs"] for way in ways[1:]]
    by_row = [once.answer["by_row"] / way["runs"] for way in ways[1:]]
    seconds = [way["cpu_seconds"] / way["share"] for way in ways]
    table = [
        Row("token-layer runs", tuple(f"{way['runs']:,}" for way in ways)),
        Row("times fewer than request by request", ("1", *(f"{n:,.0f}" for n in times)), at_least(min(times), TIMES)),
        Row("times fewer than prompt by prompt, its answers together", ("", *(f"{n:,.1f}" for n in by_row)),
            None if quick else at_least(min(by_row), TIMES)),
        Row("CPU s (rows: from a few of them)", tuple(f"{value:,.1f}" for value in seconds)),
        Row("memory beyond the models", tuple(f"{way['extra'] / 1e6:,.0f} MB" for way in ways)),
        *(Row(f"difference of {name}, relative", (), at_most(_apart(rows, it), DIFFERENCE)) for name, it in
          (("once", once), ("layers", layers))),
    ]  # fmt: skip
    return report(("rows", "once", "layers"), table)


def _apart(one: Finished, other: Finished) -> float:
    pairs = zip(one.answer["answers"], other.answer["answers"], strict=True)
    return max(float(abs(a - b) / abs(a)) for a, b in pairs)


def main() -> int:
    """Compare, or be one of the processes that are compared."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and examples")
    parser.add_argument("--child", nargs="+", metavar="ARGUMENT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, folder, *sizes = options.child
        print(json.dumps(answer_of_child(way, Path(folder), tuple(map(int, sizes)))))
        return 0
    with TemporaryDirectory(prefix="hubprune-long-") as folder:
        return compare(Path(folder), quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
