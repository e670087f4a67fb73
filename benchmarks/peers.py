"""The same jobs by hubprune, by a script of hooks, by optipfair and by mergekit: what they choose, lose and cost.

    python benchmarks/peers.py [--quick] [--bases NAME ...] [--environments FOLDER] [--data FOLDER] [--json FILE]

optipfair and mergekit are installed, at the versions below, into environments of their own that see the torch and
transformers of this one; FOLDER keeps them, and uses those that are there.  `--quick` takes the smallest model,
hubprune and the script.  Every job is a process on one thread:

    attention    the 2 attentions with the lowest scores on the same texts
    blocks       the 2 blocks with the lowest scores
    named        the blocks 1 and 3
    width        40 % of the neurons of every MLP, by max + |min| (what optipfair calls MAW)

What hubprune writes is verified before it is there, which is most of what it costs on small models; the others check
nothing.  What came of each is read by `hubprune adopt`, which finds out what is left by values, so that all are told in
the same words; and the loss is that of the base without it, on documents that nobody chose on.  On trained models that
says who chose better, on the random one of 100 M parameters what it costs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from control_groups import Cost, measure
from measuring import ONE_THREAD, QUIET, Bound, Row, report

HERE = Path(__file__).parent
PINNED = {"optipfair": ("optipfair==0.4.2",), "mergekit": ("mergekit==0.1.5", "immutables==0.21")}
COUNT, NAMED, SHARE, TOKENS = 2, (1, 3), 40, 64
DOCUMENTS = 12


# ---- what each of them does, in a process of its own -----------------------------------------------------------------


def _load(folder: str) -> Any:
    from by_hand import load

    return load(folder)


def _save(model: Any, base: str, out: str) -> None:
    from transformers import AutoTokenizer

    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)


def hand_blocks(base: str, out: str, texts: str) -> None:
    """Score blocks by hooks, delete those with the lowest scores, save."""
    import torch
    from transformers import AutoTokenizer

    model, tokenizer = _load(base), AutoTokenizer.from_pretrained(base)
    rows = [json.loads(line)["text"] for line in Path(texts).read_text().splitlines()]
    states: list[torch.Tensor] = []
    for module in (*model.model.layers, model.model.norm):
        module.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].float()))
    sums = [0.0] * len(model.model.layers)
    with torch.inference_mode():
        for text in rows:
            states.clear()
            model.model(torch.tensor([tokenizer(text).input_ids[:TOKENS]]), use_cache=False)
            for layer, (before, after) in enumerate(pairwise(states)):
                sums[layer] += 1 - float(torch.cosine_similarity(before, after, dim=-1).mean())
    _without(model, sorted(range(len(sums)), key=sums.__getitem__)[:COUNT])
    _save(model, base, out)


def hand_named(base: str, out: str, texts: str) -> None:
    """Delete blocks, save."""
    model = _load(base)
    _without(model, NAMED)
    _save(model, base, out)


def _without(model: Any, gone: Sequence[int]) -> None:
    """Delete layers as everybody does, in the module list and in the config."""
    import torch

    kept = [layer for i, layer in enumerate(model.model.layers) if i not in gone]
    model.model.layers, model.config.num_hidden_layers = torch.nn.ModuleList(kept), len(kept)


def optipfair_blocks(base: str, out: str, texts: str) -> None:
    """Score with optipfair, which takes batches of tokenized texts, and delete."""
    import optipfair
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [json.loads(line)["text"] for line in Path(texts).read_text().splitlines()]
    batches = [{"input_ids": torch.tensor([tokenizer(text).input_ids[:TOKENS]])} for text in rows]
    model = _load(base)
    scores = optipfair.analyze_layer_importance(model, batches, show_progress=False)
    lowest = sorted(scores, key=scores.__getitem__)[:COUNT]
    _save(optipfair.prune_model(model, "DEPTH", layer_indices=lowest, show_progress=False), base, out)


def optipfair_named(base: str, out: str, texts: str) -> None:
    """Delete blocks with optipfair."""
    import optipfair

    model = optipfair.prune_model(_load(base), "DEPTH", layer_indices=list(NAMED), show_progress=False)
    _save(model, base, out)


def optipfair_width(base: str, out: str, texts: str) -> None:
    """Make MLPs narrower with optipfair."""
    import optipfair

    model = optipfair.prune_model(
        _load(base), "MLP_GLU", neuron_selection_method="MAW", pruning_percentage=SHARE, show_progress=False
    )
    _save(model, base, out)


STEPS: Mapping[str, Callable[[str, str, str], None]] = {
    step.__name__: step for step in (hand_blocks, hand_named, optipfair_blocks, optipfair_named, optipfair_width)
}


def merge_of(base: Path, folder: Path) -> Path:
    """Write the recipe of a merge that is the base without the named blocks."""
    layers = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    edges = [-1, *NAMED, layers]
    slices = [[begin + 1, end] for begin, end in pairwise(edges) if begin + 1 < end]
    dtype = "bfloat16" if "bfloat16" in (base / "config.json").read_text() else "float32"
    path = folder / "merge.json"  # which is YAML, too
    sources = [{"sources": [{"model": str(base), "layer_range": part}]} for part in slices]
    path.write_text(json.dumps({"slices": sources, "merge_method": "passthrough", "dtype": dtype}))
    return path


# ---- running them ----------------------------------------------------------------------------------------------------


def environment(folder: Path, name: str) -> Path:
    """Return the folder of programs of an environment with a peer in it, made where it is not there."""
    place = folder / name
    if not (place / "bin" / "pip").exists():
        venv.create(place, with_pip=True)
        pip = [str(place / "bin" / "pip"), "install", "--quiet", "--no-deps", *PINNED[name]]
        subprocess.run(pip, check=True)
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


def commands(
    base: Path, folder: Path, texts: Path, places: Mapping[str, Path]
) -> Iterator[tuple[str, str, Path, list[object]]]:
    """Yield job, who does it, where the result will be, and the command."""
    own: list[object] = [sys.executable, "-m", "hubprune", "prune", base]
    scored: list[object] = [
        "--calibration", texts, "--num-samples", DOCUMENTS, "--max-tokens", TOKENS, "--score-batch-size", 1,
    ]  # fmt: skip
    named = ",".join(map(str, NAMED))
    options: dict[str, list[object]] = {
        "attention": ["--attn-drop", COUNT, *scored], "blocks": ["--block-drop", COUNT, *scored],
        "named": ["--attn-layers", named, "--mlp-layers", named],
        "width": ["--neuron-drop", f"{SHARE}%", "--width-metric", "ppm", "--width-multiple", 1],
    }  # fmt: skip

    def out(job: str, who: str) -> Path:
        return folder / f"{job}-{who}"

    def step(job: str, who: str, python: object) -> tuple[str, str, Path, list[object]]:
        place = out(job, who)
        return job, who, place, [python, HERE / "peers.py", "--step", f"{who}_{job}", base, place, texts]

    for job, asked in options.items():
        yield job, "hubprune", out(job, "hubprune"), [*own, *asked, "--out", out(job, "hubprune")]
        if job == "attention":
            hand = [sys.executable, HERE / "by_hand.py", "score", base, out(job, "hand"), texts]
            yield job, "hand", out(job, "hand"), [*hand, DOCUMENTS, TOKENS, COUNT]
        elif job != "width":
            yield step(job, "hand", sys.executable)
        if "optipfair" in places and job != "attention":
            yield step(job, "optipfair", places["optipfair"] / "python")
        if "mergekit" in places and job == "named":
            place = out(job, "mergekit")
            yield job, "mergekit", place, [places["mergekit"] / "mergekit-yaml", merge_of(base, folder), place]


def run(command: Sequence[object], folder: Path) -> Cost:
    """Run a command as somebody would who has this package, offline and on one thread."""
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    told = {**os.environ, **QUIET, **ONE_THREAD, "PYTHONPATH": paths, "HUBPRUNE_HOME": str(folder / "home")}
    cost = measure(command, told, folder=folder)
    if cost.code:
        print("\n".join(cost.lines[-5:]), file=sys.stderr)
    return cost


def compare(case: Mapping[str, Any], folder: Path, places: Mapping[str, Path]) -> list[Row]:
    """Run all jobs on one base, and return a row for each."""
    base, ran = Path(case["folder"]), list[tuple[str, str, Path, Cost]]()
    for job, who, out, command in commands(base, folder, Path(case["texts"]), places):
        ran.append((job, who, out, run(command, folder)))
    outs = [out for *_, out, cost in ran if not cost.code]
    judged = json.loads(apart("judge", folder, case, outs))
    rows, first = [], dict[str, str]()
    for job, who, out, cost in ran:
        figures = (f"{cost.cpu:.1f}", f"{cost.peak_bytes / 1e6:.0f}")
        if cost.code:
            rows.append(Row(f"{job}, {who}", figures, Bound(f"exit code {cost.code}", holds=False)))
            continue
        gone, perplexity = judged[str(out)]
        same = "" if job not in first else ", the same" if first[job] == gone else ", ANOTHER"
        first.setdefault(job, gone)
        rows.append(Row(f"{job}, {who}", (*figures, perplexity), Bound(f"{gone}{same}", holds=True)))
    return rows


# ---- what would make this process large, and so all that it starts ---------------------------------------------------


def apart(what: str, folder: Path, *values: Any) -> str:
    """Do something in a process of its own, and return what it prints last."""
    asked = folder / f"{what}.json"  # the texts are more than a command line holds
    asked.write_text(json.dumps([folder, *values], default=str))
    cost = run([sys.executable, HERE / "peers.py", "--step", what, asked], folder)
    if cost.code:
        sys.exit(f"{what} failed with exit code {cost.code}")
    return cost.stdout.splitlines()[-1]


def judge(folder: str, case: Mapping[str, Any], outs: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Say what is gone in each result, in the numbers of the base, and how well the base does without."""
    from choosing import Case, Measuring

    import hubprune
    from hubprune.core.config import read_config
    from hubprune.pruning.verify import plan_of

    base, documents = Path(case["folder"]), tuple(map(tuple, case["measured_on"]))
    measuring = Measuring(Case(case["name"], base, (), documents)) if documents else None
    found = {}
    for out in outs:
        config = read_config(Path(out))
        plan = plan_of(config) if "hubprune" in config else hubprune.adopt(out, base=str(base), quiet=True).plan
        gone = [f"{kind} {layer}" for kind, layer in plan.sublayers if layer not in plan.removed_layers]
        gone += [f"blocks {', '.join(map(str, plan.removed_layers))}"] if plan.removed_layers else []
        if plan.widths:
            which = "no metric of hubprune's" if plan.widths.neurons else plan.widths.metric
            gone.append(f"all but {max(plan.widths.kept)} neurons by {which}")
        value = measuring.perplexity(measuring.losses(plan)) if measuring and not plan.widths else None
        found[out] = ("; ".join(gone), "-" if value is None else f"{value:.4f}")
    return found


def bases(scratch: str, data: str, quick: bool) -> list[dict[str, Any]]:  # noqa: FBT001 - it comes as JSON
    """Write what is pruned and the texts, and say where they are; nothing is measured of what was not trained."""
    from choosing import cases
    from eval import write_word_tokenizer
    from random_llama import LlamaShape, write_llama
    from transformers import AutoTokenizer

    folder, found = Path(scratch), list[dict[str, Any]]()

    def add(name: str, base: Path, texts: Sequence[str], measured_on: Sequence[Sequence[int]]) -> None:
        path = folder / f"texts-{len(found)}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        found.append({"name": name, "folder": str(base), "texts": str(path), "measured_on": measured_on})

    for case in cases(Path(data), quick=quick):
        tokenizer = AutoTokenizer.from_pretrained(case.folder)
        longest = sorted(case.chosen_on, key=len)[-DOCUMENTS:]
        add(case.name, case.folder, [tokenizer.decode(i, skip_special_tokens=True) for i in longest], case.measured_on)
    if not quick:
        shape = LlamaShape(768, 2048, 12, 12, 4, 8192, "BF16")
        write_llama(folder / "random", shape, shards=2)
        write_word_tokenizer(folder / "random", shape.vocab_size)
        words = [" ".join(f"w{(7 * n + 13 * i) % 4096}" for i in range(2 * TOKENS)) for n in range(DOCUMENTS)]
        add("random, 100 M", folder / "random", words, ())
    return found


APART: Mapping[str, Callable[..., Any]] = {"judge": judge, "bases": bases}


def main() -> int:
    """Run all jobs on all bases, and print a table for each base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--bases", nargs="+", metavar="NAME", help="only those that are called so")
    parser.add_argument("--environments", type=Path)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    codes, found = [0], {}
    with TemporaryDirectory(prefix="hubprune-peers-") as scratch:
        kept = (asked.environments or Path(scratch) / "environments").resolve()
        places = {} if asked.quick else {name: environment(kept, name) for name in PINNED}
        for number, case in enumerate(json.loads(apart("bases", Path(scratch), asked.data.resolve(), asked.quick))):
            if asked.bases and case["name"] not in asked.bases:
                continue
            folder = Path(scratch) / f"{number}"
            folder.mkdir()
            rows = compare(case, folder, places)
            print(f"\n{case['name']}")
            codes.append(report(("CPU s", "peak MB", "perplexity"), rows))
            found[case["name"]] = [(row.what, row.values, row.bound and row.bound.text) for row in rows]
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    return max(codes)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        if sys.argv[2] in APART:
            print(json.dumps(APART[sys.argv[2]](*json.loads(Path(sys.argv[3]).read_text()))))
        else:
            STEPS[sys.argv[2]](*sys.argv[3:])
        sys.exit(0)
    sys.exit(main())
