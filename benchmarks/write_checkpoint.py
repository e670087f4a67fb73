"""Compare three ways to write what a checkpoint is without three of its attentions, on a random sharded Llama.

    python benchmarks/write_checkpoint.py [--quick]

hubprune       `hubprune.pruning.checkpoint.write_checkpoint`: copies byte ranges
transformers   from_pretrained, delete the three modules and their norms, save_pretrained
cp             `cp -r` of the whole base: what the disk takes for that many bytes

The three take turns on the same base, and turns to be first.  Before each turn the base is read once and everything
written so far is removed or on disk, so that all start with a warm page cache and none waits for what another wrote.
Each is a process of its own with one thread; its peak memory is the maximum resident set size that the system reports
when it ends.  Times are medians of the wall clock: `work` is the writing alone, `process` includes the start of Python
and the imports.  hubprune's work is compared with cp, its process with the one that has to import torch and
transformers.  The results of the first round are compared, tensor by tensor.  `--quick` takes a small base, whose times
say nothing: only memory and results are checked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from measuring import Row, at_least, at_most, report, run_child, warm
from random_llama import LlamaShape, write_llama

from hubprune.core.artifacts import DroppedSublayer, DropPlan
from hubprune.core.weights import open_weights

FULL = LlamaShape(2048, 5632, 22, 32, 4, 32000, "BF16")
QUICK = LlamaShape(256, 704, 8, 8, 2, 1024, "BF16")
DROPPED = (3, 5, 6)
SHARDS = 4
ROUNDS = 6
PEAK_MB = 100
PIECE_BYTES = 2**20
TIMES_CP = 1.5
TIMES_FASTER = 3


@dataclass
class Way:
    """One way to write the result, and what its turns took."""

    name: str
    target: Path
    tensors: dict[str, str] = field(default_factory=dict)
    """Digests of the tensors that the first turn wrote."""
    work_seconds: list[float] = field(default_factory=list)
    process_seconds: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)

    def take_turn(self, base: Path) -> None:
        """Write the result, from a base in the page cache, and remove it."""
        os.sync()
        warm(base)
        start = time.perf_counter()
        if self.name == "cp":
            subprocess.run(["cp", "-r", base, self.target], check=True)
        else:
            done = run_child([__file__, "--child", self.name, base, self.target])
            self.work_seconds.append(done.answer["seconds"])
            self.peak_mb.append(done.peak_bytes / 1e6)
        self.process_seconds.append(time.perf_counter() - start)
        self.tensors = self.tensors or digests(self.target)
        shutil.rmtree(self.target)

    def figures(self) -> tuple[str, ...]:
        """Medians of work and process with their ranges, in seconds, and the highest peak in MB."""
        peak = f"{max(self.peak_mb):.0f}" if self.peak_mb else "-"
        return _spread(self.work_seconds), _spread(self.process_seconds), peak


def _spread(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})" if seconds else "-"


def write_with_hubprune(base: Path, target: Path) -> float:
    import jinja2  # noqa: F401  for the modeling file

    from hubprune.core.artifacts import BaseCheckpoint
    from hubprune.core.config import read_config
    from hubprune.pruning.checkpoint import write_checkpoint

    start = time.perf_counter()
    config = read_config(base)
    checkpoint = BaseCheckpoint(name=base.name, commit=None, folder=str(base), config=config, files=())
    target.mkdir()
    write_checkpoint(checkpoint, drop_plan(config["num_hidden_layers"]), target, advance=lambda _: None)
    return time.perf_counter() - start


def write_with_transformers(base: Path, target: Path) -> float:
    from transformers import LlamaForCausalLM

    start = time.perf_counter()
    model = LlamaForCausalLM.from_pretrained(base, dtype="auto")
    for layer in DROPPED:
        del model.model.layers[layer].self_attn
        del model.model.layers[layer].input_layernorm
    model.save_pretrained(target)
    return time.perf_counter() - start


def drop_plan(layers: int) -> DropPlan:
    dropped = tuple(DroppedSublayer(kind="attn", layer=layer) for layer in DROPPED)
    return DropPlan(selected_by="hand", num_hidden_layers=layers, dropped=dropped)


def digests(folder: Path) -> dict[str, str]:
    """Name of every tensor -> hash of its dtype, shape and bytes.

    It reads in small pieces: the peak that the system reports for a child includes that of its parent before the start.
    """
    found = {}
    for shard, tensor in open_weights(folder):
        digest = hashlib.sha256(f"{tensor.dtype} {tensor.shape}".encode())
        with shard.path.open("rb", buffering=0) as file:
            file.seek(tensor.begin)
            for begin in range(0, tensor.size, PIECE_BYTES):
                digest.update(file.read(min(PIECE_BYTES, tensor.size - begin)))
        found[tensor.name] = digest.hexdigest()
    return found


def time_bounds(ours: Way, theirs: Way, copied: Way) -> list[Row]:
    """Ratios of medians."""
    of_copy = median(ours.work_seconds) / median(copied.process_seconds)
    faster = median(theirs.process_seconds) / median(ours.process_seconds)
    faster_work = median(theirs.work_seconds) / median(ours.work_seconds)
    return [
        Row("hubprune's work / cp", bound=at_most(of_copy, TIMES_CP)),
        Row("transformers' process / hubprune's", bound=at_least(faster, TIMES_FASTER)),
        Row("transformers' work / hubprune's", (f"{faster_work:.3g}",)),
    ]


def compare(folder: Path, *, quick: bool) -> int:
    shape, rounds = (QUICK, 1) if quick else (FULL, ROUNDS)
    base = folder / "base"
    write_llama(base, shape, shards=SHARDS)
    ours, theirs, copied = ways = [Way(name, folder / name) for name in ("hubprune", "transformers", "cp")]
    for number in range(rounds):
        first = number % len(ways)
        for way in ways[first:] + ways[:first]:
            way.take_turn(base)
    kept, wanted = ours.tensors, theirs.tensors
    differing = sum(kept.get(name) != wanted.get(name) for name in kept | wanted)
    print(
        f"{shape}, {SHARDS} shards; attention of layers {DROPPED} dropped; {rounds} rounds, warm page cache, 1 thread"
    )
    work, process, peak = zip(*(way.figures() for way in ways), strict=True)
    rows = [
        Row("work, s", work),
        Row("process, s", process),
        Row("peak memory, MB", peak, at_most(max(ours.peak_mb), PEAK_MB)),
        Row("tensors", (str(len(kept)), str(len(wanted)))),
        Row("tensors that differ", bound=at_most(differing, 0)),
    ]
    return report([way.name for way in ways], rows + ([] if quick else time_bounds(ours, theirs, copied)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small base, and no bounds on times")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "BASE", "TARGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        write = {"hubprune": write_with_hubprune, "transformers": write_with_transformers}[options.child[0]]
        print(json.dumps({"seconds": write(*map(Path, options.child[1:]))}))
        return 0
    with TemporaryDirectory(prefix="hubprune-write-") as folder:
        return compare(Path(folder), quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
