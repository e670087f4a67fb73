"""Measure whole commands on models of real sizes, in memory control groups where a notebook or laptop has less.

    python benchmarks/real_sizes.py [ROW ...] [--against CHECKOUT] [--place FOLDER] [--small] [--json FILE]

Every row is one question, and its figures are those of one run, side by side: a script of somebody without this package
(`by_hand.py`), the package of another checkout (`--against`), and this one.  CPU seconds are those of a command and of
all that it starts, on one thread; only accelerate's offload is compared by the clock, on all cores.  The peak is that
of the largest process, mapped files included.  A pass over the weights is as many bytes read from disk as they have,
from a cold page cache.

    prune-named     drop three named attentions of 307 M in bf16: write and verify
    prune-scored    the same, chosen by scores on 16 texts of 64 tokens
    prune-limited   the same, told to keep to 1.5 times the weights
    prune-3B        3.2 G (6.4 GB), by scores, in 6 GB
    prune-8B        8.0 G (16 GB), named, in 4 GB
    publish-3B      3.2 G, a whole dry run on a local Hub, in 12 GB
    publish-307M    307 M, a whole dry run with four tasks of 10 documents
    publish-tiny    the embedded model, three tasks of 60 documents, against a prune by hand and lm-eval twice
    layers          benchmarks of 1.0 G (2.1 GB) in 1 GB, against enough memory and against accelerate's offload
    eval            benchmarks in memory against lm-eval twice: `eval.py`
    kills           SIGKILL in each long stage of a publish of 50 M, and what the next run repeats

Without a row, all run: half an hour of two cores, and 60 GB of disk.  What FOLDER holds already is used again.
`--small` takes models of a thousandth and checks only that everything works.  Where this user can make no control
group, its rows say so and are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from control_groups import Cost, Kill, MemoryGroup, RefusedError, memory_group
from eval import read_answers
from measuring import ONE_THREAD, Row, at_least, at_most, cool
from real_runs import HERE, ROOT, Bench, Place

COLUMNS = ("by hand", "other build", "this build")
DROPPED = "3,5,6"
BY_SCORE = ("--attn-drop", 3, "--num-samples", 16, "--max-tokens", 64)
PASSES = 12
LAYER_DOCUMENTS, OFFLOAD_DOCUMENTS = 12, 4
"""Of each of five tasks; every batch of an offloaded model reads all weights."""
STAGES = {
    "Scores": "scoring",
    "Prune and verify": "verifying",
    "Benchmarks": "benchmarking",
    "Free text and card": "writing free text",
}
"""Titles of the long stages of a publish, and what it is doing then."""
WRITING_SECONDS = 0.05
"""From the check of the base's files into the first of the checkpoint."""


def columns(by_hand: float | None, other: float | None, ours: float | None) -> tuple[str, ...]:
    """Write the figures of a row, those of the three columns."""
    return tuple("-" if value is None else f"{value:.3g}" for value in (by_hand, other, ours))


def figures(of: Callable[[Cost], float], by_hand: Cost | None, other: Cost | None, ours: Cost) -> tuple[str, ...]:
    """Write a figure of each cost that there is."""
    return columns(*(None if cost is None else of(cost) for cost in (by_hand, other, ours)))


def cpu(cost: Cost) -> float:
    """CPU seconds."""
    return cost.cpu


def wall(cost: Cost) -> float:
    """Seconds."""
    return cost.wall


def peak_gigabytes(cost: Cost) -> float:
    """Peak of the largest process."""
    return cost.peak_bytes / 1e9


# ---- prune -------------------------------------------------------------------------------------------------------


def prune_named(bench: Bench) -> Iterator[Row]:
    """Rows of a prune of named layers."""
    base = bench.place.base("307M")
    with bench.scratch() as folder:
        hand = bench.by_hand("prune", base, folder / "pruned", DROPPED)
    yield from _pruned(bench, base, hand, ("--attn-layers", DROPPED), times=4)


def prune_scored(bench: Bench) -> Iterator[Row]:
    """Rows of a prune by scores."""
    base, texts = bench.place.base("307M"), bench.place.texts
    with bench.scratch() as folder:
        hand = bench.by_hand("score", base, folder / "pruned", texts, 16, 64, 3)
    yield from _pruned(bench, base, hand, (*BY_SCORE, "--calibration", texts), times=3.3)


def _pruned(bench: Bench, base: Path, hand: Cost, options: Sequence[object], *, times: float) -> Iterator[Row]:
    other = bench.prune(base, *options, build=bench.against) if bench.against else None
    ours = bench.prune(base, *options)
    yield from _success(ours)
    less = bench.bound(at_least(other.cpu / ours.cpu, times)) if other else None
    yield Row("CPU s, times less than the other build", figures(cpu, hand, other, ours), less)
    weights = bench.place.shape(base.name).weight_bytes
    peaks = figures(lambda cost: cost.peak_bytes / weights, hand, other, ours)
    yield Row("peak, x weights", peaks, bench.bound(at_most(ours.peak_bytes / weights, 1.5)))


def prune_limited(bench: Bench) -> Iterator[Row]:
    """Rows of a prune that keeps to what it was told."""
    base, limit = bench.place.base("307M"), int(1.5 * bench.place.shape("307M").weight_bytes)
    allowed = bench.group_bytes(limit / 1e9)
    options = (*BY_SCORE, "--calibration", bench.place.texts, "--max-memory", f"{allowed // 10**6}MB")
    ours = bench.prune(base, *options)
    yield from _success(ours)
    yield Row("peak, GB", columns(None, None, ours.peak_bytes / 1e9), at_most(ours.peak_bytes / 1e9, allowed / 1e9))


def prune_3b(bench: Bench) -> Iterator[Row]:
    """Rows of a prune by scores of what a notebook can just hold."""
    base = bench.place.base("3B")
    options = (*BY_SCORE, "--calibration", bench.place.texts)
    yield from _limited(bench, base, 6, lambda build, group: bench.prune(base, *options, build=build, group=group))


def prune_8b(bench: Bench) -> Iterator[Row]:
    """Rows of a prune of what a laptop cannot hold."""
    base = bench.place.base("8B")
    options = ("--attn-layers", DROPPED)
    yield from _limited(bench, base, 4, lambda build, group: bench.prune(base, *options, build=build, group=group))


def _limited(
    bench: Bench, base: Path, gigabytes: float, run: Callable[[Path, MemoryGroup], Cost], *, passes: int = PASSES
) -> Iterator[Row]:
    """Run in a control group, from a cold page cache, with the other build first."""

    def limited(build: Path) -> Cost:
        with memory_group(bench.group_bytes(gigabytes)) as group:
            cool(base)
            cool(bench.place.cache(base.name))
            return run(build, group)

    other = limited(bench.against) if bench.against else None
    ours = limited(ROOT)
    yield from _success(ours, other)
    yield Row("processes killed", figures(lambda cost: cost.kills, None, other, ours), at_most(ours.kills, 0))
    weights = bench.place.shape(base.name).weight_bytes
    read = figures(lambda cost: cost.read_bytes / weights, None, other, ours)
    yield Row("passes over the weights", read, bench.bound(at_most(ours.read_bytes / weights, passes)))
    yield Row("CPU s", figures(cpu, None, other, ours))
    yield Row("wall s", figures(wall, None, other, ours))
    held = figures(lambda cost: cost.highest_anonymous_bytes / 1e9, None, other, ours)
    yield Row("anonymous memory of all processes, GB", held)


def _success(ours: Cost, other: Cost | None = None) -> Iterator[Row]:
    yield Row("exit code", figures(lambda cost: cost.code, None, other, ours), at_most(abs(ours.code), 0))


# ---- publish -----------------------------------------------------------------------------------------------------


def publish_3b(bench: Bench) -> Iterator[Row]:
    """Rows of a whole dry run in the memory of a notebook."""
    base = bench.place.base("3B")
    with bench.place.hub("3B") as address:
        all_cores = dict.fromkeys(ONE_THREAD, str(len(os.sched_getaffinity(0))))

        def run(build: Path, group: MemoryGroup) -> Cost:
            with bench.scratch() as home:
                few = ("--prompts", bench.place.prompts, "--limit", 2)
                return bench.publish("3B", home, {**address, **all_cores}, *few, build=build, group=group)

        yield from _limited(bench, base, 12, run, passes=10 * PASSES)


def publish_307m(bench: Bench) -> Iterator[Row]:
    """Rows of a whole dry run with room enough."""

    def run(build: Path) -> Cost:
        with bench.scratch() as home:
            return bench.publish("307M", home, address, "--limit", 10, build=build)

    with bench.place.hub("307M") as address:
        other = run(bench.against) if bench.against else None
        ours = run(ROOT)
    yield from _whole(bench, ours, other)


def _whole(bench: Bench, ours: Cost, other: Cost | None) -> Iterator[Row]:
    """Compare two runs with room enough."""
    yield from _success(ours, other)
    less = bench.bound(at_least(other.cpu / ours.cpu, 2)) if other else None
    yield Row("CPU s, times less than the other build", figures(cpu, None, other, ours), less)
    highest = bench.bound(at_most(peak_gigabytes(ours), 1))
    yield Row("peak, GB", figures(peak_gigabytes, None, other, ours), highest)
    yield Row("wall s", figures(wall, None, other, ours))


def publish_tiny(bench: Bench) -> Iterator[Row]:
    """Rows of a whole dry run of a model that costs nothing, and the same by hand."""
    from hubprune.demo import MODELS, TASK_NAMES
    from hubprune.demo import TASKS as FOLDER
    from hubprune.workflows.demo import publish_options

    base, tasks, limit = MODELS["tiny-llama"], ",".join(TASK_NAMES[:3]), ("--limit", "60")
    command = publish_options("tiny-llama")
    command[command.index("--tasks") + 1] = tasks
    with bench.place.hub() as address, bench.scratch() as folder:
        silent = folder / "silent"
        hand = bench.by_hand("silence", base, silent, "1,2,3").cpu
        for model in (base, silent):
            asked = ("--model", "hf", "--model_args", f"pretrained={model}", "--tasks", tasks, "--device", "cpu")
            where = ("--include_path", FOLDER, "--batch_size", "32", "--output_path", folder / "seen")
            hand += bench.run(ROOT, "-m", "lm_eval", *asked, *where, "--log_samples", *limit, variables=address).cpu

        def run(build: Path) -> Cost:
            variables = {**address, "HUBPRUNE_HOME": str(folder / f"home-{build == ROOT}")}
            return bench.run(build, "-m", "hubprune", *command, *limit, "--dry-run", variables=variables)

        other = run(bench.against) if bench.against else None
        ours = run(ROOT)
    yield from _whole(bench, ours, other)
    yield Row(
        "CPU s, times less than by hand", columns(hand, None, ours.cpu), bench.bound(at_least(hand / ours.cpu, 3))
    )


# ---- benchmarks --------------------------------------------------------------------------------------------------


def layers(bench: Bench) -> Iterator[Row]:
    """Rows of benchmarks of a model that is twice as large as the memory."""
    base, limit = bench.place.base("1B"), bench.group_bytes(1)
    weights = bench.place.shape("1B").weight_bytes
    with bench.scratch() as folder:
        command = ("-m", "hubprune", "prune", base, "--attn-layers", DROPPED, "--out", folder / "pruned")
        bench.run(ROOT, *command, variables={"HUBPRUNE_HOME": str(folder / "home")})

        def evaluate(backend: str, documents: int, name: str, *, limited: bool, threads: int = 1) -> Cost:
            job = (HERE / "by_hand.py", "evaluate", backend, base, folder / "pruned", bench.place.tasks(documents))
            cool(base)
            cool(folder / "pruned")
            variables = dict.fromkeys(ONE_THREAD, str(threads))
            if not limited:
                return bench.run(ROOT, *job, folder / name, variables=variables)
            with memory_group(limit) as group:
                return bench.run(ROOT, *job, folder / name, group=group, variables=variables)

        inside = evaluate("shared", LAYER_DOCUMENTS, "inside", limited=False)
        streamed = evaluate("layers", LAYER_DOCUMENTS, "streamed", limited=True)
        yield from _success(streamed)
        tokens = f"{_tokens(bench.place.tasks(LAYER_DOCUMENTS)):,}"
        yield Row("tokens of each model, as lm-eval reads them", ("-", "-", tokens))
        read, times = streamed.read_bytes / weights, streamed.cpu / inside.cpu
        yield Row("passes over the weights", columns(None, None, read), bench.bound(at_most(read, 2)))
        yield Row("CPU s over that in memory", columns(None, None, times), bench.bound(at_most(times, 1.15)))
        apart = furthest(read_answers(folder / "inside"), read_answers(folder / "streamed"))
        yield Row("largest difference from that in memory, nats", columns(None, None, apart))
        cores = len(os.sched_getaffinity(0))
        few = evaluate("layers", OFFLOAD_DOCUMENTS, "few", limited=True, threads=cores)
        offloaded = evaluate("hf", OFFLOAD_DOCUMENTS, "offloaded", limited=True, threads=cores)
        yield Row("exit code of accelerate's offload", columns(offloaded.code, None, few.code))
        less = bench.bound(at_least(offloaded.wall / few.wall, 3))
        yield Row("wall s, times less than accelerate's offload", columns(offloaded.wall, None, few.wall), less)


Answers = Mapping[str, Sequence[tuple[float, bool]]]


def furthest(ours: Answers, theirs: Answers) -> float:
    """Return how far two sets of log-likelihoods are apart; infinity where they answer different documents."""
    if ours.keys() != theirs.keys():
        return float("inf")
    return max(abs(a[0] - b[0]) for key in ours for a, b in zip(ours[key], theirs[key], strict=True))


def _tokens(tasks: Path) -> int:
    """Count the words of all requests: every choice with its context."""
    total = 0
    for path in tasks.glob("*.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            contexts = row.get("contexts") or [row["context"]]
            endings = row.get("choices") or [row.get("target") or row["ending"]]
            total += sum(len(f"{context} {ending}".split()) for context in contexts for ending in endings)
    return total


def in_memory(bench: Bench) -> Iterator[Row]:
    """Rows of `eval.py`, in its own words."""
    cost = bench.run(ROOT, HERE / "eval.py", *(["--quick"] if bench.small else []))
    print(cost.stdout, file=sys.stderr)
    yield from _success(cost)
    for line in cost.stdout.splitlines():
        what, found, figures = line.partition(": CPU s, times less")
        if found:
            hand, ours, times = figures.split()[:3]
            yield Row(f"{what}: CPU s; times less: {times}", (hand, "-", ours))


# ---- what a killed run leaves -------------------------------------------------------------------------------------


def kills(bench: Bench) -> Iterator[Row]:
    """Rows of runs that end in the middle of a stage, and of the ones that go on."""
    few = ("--prompts", bench.place.prompts)
    with bench.place.hub("50M") as address:
        with bench.scratch() as home:
            whole = bench.publish("50M", home, address, *few)
        yield from _success(whole)
        yield Row("undisturbed: CPU s", columns(None, None, whole.cpu))
        for name, kill in moments(whole).items():
            with bench.scratch() as home:
                killed = bench.publish("50M", home, address, *few, kill=kill)
                again = bench.publish("50M", home, address, *few)
            ended = at_most(abs(killed.code + 9) + abs(again.code), 0)
            kept = ", ".join(taken_over(again)) or "nothing"
            what = f"killed while {name}, taken over: {kept}; CPU s of the next run"
            yield Row(what, columns(None, None, again.cpu), ended)


def taken_over(cost: Cost) -> list[str]:
    """Return what a run says that it did not compute again."""
    found = re.findall(r"(\w\S*): taken from an earlier run|only to be (verified)", "\n".join(cost.lines))
    return [stage or f"a checkpoint to be {verified}" for stage, verified in found]


def moments(whole: Cost) -> dict[str, Kill]:
    """Return when to end each long stage, from a run that nobody ended: in its middle, or as soon as it writes."""
    heads = [(second, line) for second, line in whole.talk if line.startswith("[")]
    found = {}
    for (begin, line), (end, _) in zip(heads, [*heads[1:], (whole.wall, "")], strict=True):
        title = line.partition("] ")[2]
        if title in STAGES:
            found[STAGES[title]] = Kill(re.escape(title), (end - begin) / 2)
    return {**found, "writing": Kill("Prune and verify.*check ", WRITING_SECONDS)}


ROWS: Mapping[str, Callable[[Bench], Iterator[Row]]] = {
    "prune-named": prune_named,
    "prune-scored": prune_scored,
    "prune-limited": prune_limited,
    "prune-3B": prune_3b,
    "prune-8B": prune_8b,
    "publish-3B": publish_3b,
    "publish-307M": publish_307m,
    "publish-tiny": publish_tiny,
    "layers": layers,
    "eval": in_memory,
    "kills": kills,
}


def show(rows: Mapping[str, Sequence[Row]]) -> int:
    """Print a table in Markdown, and return the exit code: 1 where a bound is missed."""
    print("| row | what | " + " | ".join(COLUMNS) + " | bound |\n|---|---|" + "---:|" * len(COLUMNS) + "---|")
    for name, found in rows.items():
        for row in found:
            verdict = f"{row.bound.text}{'' if row.bound.holds else ' MISSED'}" if row.bound else ""
            print(f"| {name} | {row.what} | {' | '.join(row.values)} | {verdict} |")
    return int(any(row.bound and not row.bound.holds for found in rows.values() for row in found))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of {', '.join(ROWS)}")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another build, to run beside this one")
    parser.add_argument("--place", type=Path, metavar="FOLDER", help="keep bases and Hubs here, and use those there")
    parser.add_argument("--small", action="store_true", help="small models, and no bounds on times and sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures, commands and talk")
    options = parser.parse_args()
    if unknown := set(options.rows) - ROWS.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    folder = options.place or Path(tempfile.mkdtemp(prefix="hubprune-sizes-"))
    bench = Bench(Place(folder.resolve(), small=options.small), options.against and options.against.resolve())
    found = dict[str, list[Row]]()
    try:
        for name in options.rows or ROWS:
            bench.row = name
            try:
                found[name] = list(ROWS[name](bench))
            except RefusedError as refused:
                print(f"{name} was not measured. {refused}", file=sys.stderr)
        code = show(found)
    finally:
        if options.place is None:
            shutil.rmtree(folder)
        if options.json:
            rows = {name: [asdict(row) for row in rows] for name, rows in found.items()}
            options.json.write_text(json.dumps({"rows": rows, "commands": bench.commands}, indent=1))
    return code


if __name__ == "__main__":
    sys.exit(main())
