"""Compare layer-major scoring with a forward pass of the whole model under hooks, on a random float32 Llama.

    python benchmarks/score.py [--quick]

hubprune   `hubprune.pruning.importance.score`: each layer is read, run on all batches, and let go
hooks      from_pretrained, then one forward pass per batch, with hooks that do the same arithmetic

Both take the same documents in the same batches, run one thread, and are processes of their own.  Times include loading
the weights and exclude imports.

Memory is plentiful first: the two take turns with a warm page cache, and medians are compared.  Then each runs once in
a control group that may take half of the checkpoint's size, page cache included, from a cold page cache; the bytes read
from disk are those that the kernel counts for the process, from before the weights are opened to the end.  Where this
user cannot make a control group, that part is left out with a line that says so.  `--quick` takes a small model and
checks only that the scores are equal.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from control_groups import RefusedError, memory_group
from measuring import Finished, Row, at_most, cool, report, run_child, warm
from random_llama import LlamaShape, write_llama

if TYPE_CHECKING:
    import torch

    from hubprune.pruning.calibration import CalibrationSet

FULL = LlamaShape(2048, 5632, 12, 32, 4, 8192, "F32")
QUICK = LlamaShape(256, 704, 4, 8, 2, 1024, "F32")
DOCUMENTS = 12
BATCH_SIZE = 2
TOKENS = (64, 96)
ROUNDS = 3
TIMES_HOOKS = 1.1
TIMES_READ = 1.1
SCORE_DIFFERENCE = 1e-6
NAMES = ("hubprune", "hooks")


@dataclass(frozen=True)
class Limited:
    """One run under a memory limit; a run that the kernel ended reads without end."""

    finished: Finished
    highest_bytes: int

    @property
    def read_bytes(self) -> float:
        """Bytes read from disk."""
        return float(self.finished.answer.get("read_bytes", math.inf))

    @property
    def seconds(self) -> float:
        """Time of the scoring."""
        return float(self.finished.answer.get("seconds", math.inf))


def random_documents(vocab_size: int) -> CalibrationSet:
    from hubprune.core.artifacts import CalibrationRecord, CalibrationSource
    from hubprune.pruning.calibration import CalibrationSet, Document

    source = random.Random(0)
    lengths = [source.randint(*TOKENS) for _ in range(DOCUMENTS)]
    documents = tuple(Document(0, tuple(source.choices(range(3, vocab_size), k=length))) for length in lengths)
    drawn = CalibrationSource(
        dataset="random", config=None, split="train", commit=None, weight=1.0, documents=DOCUMENTS, tokens=sum(lengths)
    )
    record = CalibrationRecord(
        mix="random", sources=(drawn,), max_tokens=max(lengths), seed=0, shuffle_buffer=1, token_sha256="0" * 64
    )
    return CalibrationSet(documents, record)


def score_with_hubprune(folder: Path, documents: CalibrationSet) -> list[list[float]]:
    """Scores of every layer: attention and MLP."""
    from hubprune.core.architectures import ARCHITECTURES
    from hubprune.core.console import Reporter
    from hubprune.pruning.importance import Scoring, score

    how = Scoring(architecture=ARCHITECTURES["llama"], batch_size=BATCH_SIZE)
    scores = score(folder, documents, how, reporter=Reporter(quiet=True))
    return [list(pair) for pair in zip(scores.mean.attn, scores.mean.mlp, strict=True)]


def score_with_hooks(folder: Path, documents: CalibrationSet) -> list[list[float]]:
    """Scores of every layer: attention and MLP."""
    import torch
    from transformers import LlamaModel

    from hubprune.pruning.importance import make_batches

    model = LlamaModel.from_pretrained(folder, dtype=torch.float32).eval()
    states = _noted_states(model)
    sums = torch.zeros(len(model.layers), 2, dtype=torch.float64)
    with torch.inference_mode():
        for batch in make_batches(documents.documents, BATCH_SIZE):
            states.clear()
            model(batch.ids, use_cache=False)  # padding is on the right, where causal attention never looks
            means = [_document_means(*pair, batch.mask).sum() for pair in pairwise(states)]
            sums += torch.stack(means).view(-1, 2)
    scores: list[list[float]] = (sums / len(documents.documents)).tolist()
    return scores


def _noted_states(model: Any) -> list[torch.Tensor]:
    """Have the model note the residual stream before each norm: of every attention, of every MLP, and of the end."""
    states: list[torch.Tensor] = []
    norms = [norm for layer in model.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    for norm in (*norms, model.norm):
        norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    return states


def _document_means(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over tokens of 0.5 * || x/|x| - y/|y| ||^2, in float64, of shape [documents]."""
    from torch.nn.functional import normalize

    difference = normalize(before.float(), dim=-1) - normalize(after.float(), dim=-1)
    tokens = difference.square().sum(dim=-1) / 2
    means: torch.Tensor = (tokens * mask).double().sum(dim=1) / mask.sum(dim=1)
    return means


def answer_of_child(name: str, folder: Path) -> dict[str, Any]:
    """Score in this process: the scores, the seconds, and the bytes that were read from disk."""
    import transformers.models.llama.modeling_llama  # noqa: F401  before the clock starts

    documents = random_documents(json.loads((folder / "config.json").read_text())["vocab_size"])
    score = {"hubprune": score_with_hubprune, "hooks": score_with_hooks}[name]
    read_before, start = _read_bytes(), time.perf_counter()
    scores = score(folder, documents)
    return {
        "scores": scores,
        "seconds": time.perf_counter() - start,
        "read_bytes": _read_bytes() - read_before,
    }


def _read_bytes() -> int:
    """Bytes that this process caused to be read from disk, mapped files included (proc_pid_io(5))."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def run(name: str, base: Path, *, enter: Callable[[], object] | None = None) -> Finished:
    return run_child([__file__, "--child", name, base], enter=enter)


def plentiful(base: Path, rounds: int) -> tuple[list[Finished], list[Finished]]:
    """Let both take turns, and turns to be first, from a warm page cache."""
    ours, theirs = list[Finished](), list[Finished]()
    for number in range(rounds):
        pairs = list(zip(NAMES, (ours, theirs), strict=True))
        for name, runs in pairs if number % 2 == 0 else pairs[::-1]:
            warm(base)
            runs.append(run(name, base))
    return ours, theirs


def plentiful_rows(ours: Sequence[Finished], theirs: Sequence[Finished], *, quick: bool) -> list[Row]:
    """Times and scores."""
    pairs = zip(_flat_scores(ours[0]), _flat_scores(theirs[0]), strict=True)
    difference = max(abs(one - other) for one, other in pairs)
    seconds = [[run.answer["seconds"] for run in runs] for runs in (ours, theirs)]
    ratio = median(seconds[0]) / median(seconds[1])
    spread = tuple(f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})" for values in seconds)
    return [
        Row("memory plentiful: time, s", spread, None if quick else at_most(ratio, TIMES_HOOKS)),
        Row("peak memory, MB", tuple(f"{max(r.peak_bytes for r in runs) / 1e6:.0f}" for runs in (ours, theirs))),
        Row("largest difference of a score", bound=at_most(difference, SCORE_DIFFERENCE)),
    ]


def _flat_scores(run: Finished) -> list[float]:
    return [score for layer in run.answer["scores"] for score in layer]


def run_limited(name: str, base: Path, limit_bytes: int) -> Limited:
    """Score once in a control group, from a cold page cache.

    Raises:
        RefusedError: this user can make no control group.
    """
    with memory_group(limit_bytes) as group:
        cool(base)
        done = run(name, base, enter=group.join)
        return Limited(done, group.highest_bytes)


def limited_rows(base: Path, shape: LlamaShape) -> list[Row]:
    """Bytes read, time and memory where that is limited to half the checkpoint."""
    try:
        runs = [run_limited(name, base, shape.weight_bytes // 2) for name in NAMES]
    except RefusedError as refused:
        print(f"{refused} Bytes read under a memory limit were not measured.")
        return []
    times_read = [run.read_bytes / shape.weight_bytes for run in runs]
    read, seconds = [f"{times:.3f}" for times in times_read], [f"{run.seconds:.1f}" for run in runs]
    return [
        Row("memory limited: bytes read / size", tuple(read), at_most(times_read[0], TIMES_READ)),
        Row("time, s", tuple(seconds)),
        Row("most memory of the group, MB", tuple(f"{run.highest_bytes / 1e6:.0f}" for run in runs)),
    ]


def compare(folder: Path, *, quick: bool) -> int:
    shape, rounds = (QUICK, 1) if quick else (FULL, ROUNDS)
    base = folder / "base"
    write_llama(base, shape, shards=2)
    print(f"{shape}; {DOCUMENTS} documents in batches of {BATCH_SIZE}; {rounds} rounds, 1 thread")
    rows = plentiful_rows(*plentiful(base, rounds), quick=quick)
    return report(NAMES, rows + ([] if quick else limited_rows(base, shape)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, and only the scores are checked")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "BASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(answer_of_child(options.child[0], Path(options.child[1]))))
        return 0
    with TemporaryDirectory(prefix="hubprune-score-") as folder:
        return compare(Path(folder), quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
