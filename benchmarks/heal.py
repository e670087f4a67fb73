"""What healing brings back, and what it costs: on the embedded models, and on a random Llama.

    python benchmarks/heal.py [recovery] [cost] [--seeds 0,1,2] [--threads 1]

recovery   the embedded models without 5 attentions, trained on 120 documents of each calibration file for 50 and for
           200 steps, and looked at on the other 30; a control trains the whole base in the same way
cost       CPU seconds per token of a step over those of a forward pass of the pruned model, in turns in one process,
           and the same of plain distillation, from a teacher that has weights of its own; memory beyond the activations
           that wait for the way back, over that of a forward pass, each in a process of its own

Bounds: at least 80 % of the lost log-perplexity after 50 steps and 90 % after 200, at most a tenth of the KL, less than
1 % change of the control; 3.5 forward passes per step; 1.3 times the memory.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from measuring import Row, at_least, at_most, report, run_child
from random_llama import LlamaShape, write_llama

from hubprune import demo
from hubprune.core.architectures import ARCHITECTURES
from hubprune.core.artifacts import DroppedSublayer, DropPlan
from hubprune.core.console import Reporter, quiet

DROPPED = {"tiny-llama": (4, 5, 6, 8, 9), "tiny-mistral": (4, 5, 6, 8, 9)}
TRAINED_PER_FILE = 120
STEPS = {50: 0.8, 200: 0.9}
"""Steps -> share of the lost log-perplexity that has to come back."""
RATE = 4e-3
SHAPE = LlamaShape(1024, 2816, 12, 16, 4, 16384, "BF16")
ROWS, TOKENS, ROUNDS = 4, 256, 5
SEEDS = "0,1,2"


def main() -> int:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["recovery", "cost"])
    parser.add_argument("--seeds", default=SEEDS)
    parser.add_argument("--child", nargs=2)
    asked = parser.parse_args()
    if asked.child:
        return peak_of(asked.child[0], Path(asked.child[1]))
    code = 0
    if "recovery" in asked.parts:
        rows = [row for name in DROPPED for row in recovery(name, [int(seed) for seed in asked.seeds.split(",")])]
        code |= report(("KL before", "KL after", "ppl base", "ppl pruned", "ppl healed", "back", "CPU s"), rows)
    if "cost" in asked.parts:
        code |= report(("ratio",), cost())
    return code


def plan_of(layers: int, dropped: tuple[int, ...]) -> DropPlan:
    """Return the plan that drops the attentions of these layers."""
    gone = tuple(DroppedSublayer(kind="attn", layer=layer) for layer in dropped)
    return DropPlan(selected_by="hand", num_hidden_layers=layers, dropped=gone)


def pair_of(folder: Path, family: str, dropped: tuple[int, ...], *, seed: int = 0, loss: Any = "kl") -> Any:
    """Return base and pruned model, one set of weights."""
    from hubprune.core.neutral import load_causal_lm
    from hubprune.healing import models

    with quiet():
        base = load_causal_lm(folder, dtype="auto", own_code=False).requires_grad_(requires_grad=False)
        plan = plan_of(base.config.num_hidden_layers, dropped)
        student = models.without_sublayers(base, plan, ARCHITECTURES[family])
        return models.Distillation(base, models.with_adapters(student, rank=16, seed=seed), loss)


# ---- what comes back -------------------------------------------------------------------------------------------------


def recovery(name: str, seeds: list[int]) -> list[Row]:
    """Train one embedded model, for every number of steps and every seed, and the control once."""
    from transformers import AutoTokenizer

    folder, tokenizer = demo.MODELS[name], AutoTokenizer.from_pretrained(demo.MODELS[name])
    trained, held = list[tuple[int, ...]](), list[tuple[int, ...]]()
    for path in sorted(demo.DATASETS["calibration"].glob("*.jsonl")):
        texts = (json.loads(line)["text"] for line in path.read_text().splitlines())
        ids = [tuple(tokenizer(text, truncation=True, max_length=256).input_ids) for text in texts]
        trained += ids[:TRAINED_PER_FILE]
        held += ids[TRAINED_PER_FILE:]
    family = name.removeprefix("tiny-")
    rows = []
    for steps, wanted in STEPS.items():
        shares = []
        for seed in seeds:
            row, share, kl = healed(pair_of(folder, family, DROPPED[name], seed=seed), trained, held, steps, seed)
            shares.append(share)
            bound = at_most(kl, 0.1) if steps == max(STEPS) else None
            rows.append(Row(f"{name}, {steps} steps, seed {seed}", row, bound))
        spread = f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %"
        least = at_least(min(shares), wanted)
        rows.append(Row(f"{name}, {steps} steps, all seeds", ("", "", "", "", "", spread), least))
    for loss in ("kl", "ce"):
        row, *_ = healed(pair_of(folder, family, (), loss=loss), trained, held, max(STEPS), 0)
        change = abs(math.log(float(row[4]) / float(row[2])))
        rows.append(Row(f"{name}, nothing dropped, {loss}", row, at_most(math.expm1(change), 0.01)))
    return rows


def healed(pair: Any, trained: Any, held: Any, steps: int, seed: int) -> tuple[tuple[str, ...], float, float]:
    """Train a pair; return the figures, the share that came back, and the KL afterwards over that before."""
    from hubprune.healing import models
    from hubprune.healing.training import Settings, train

    settings = Settings(
        steps=steps, batch_size=8, micro_batch=8, learning_rate=RATE, seed=seed, device="cpu", dtype="float32"
    )  # fmt: skip
    with TemporaryDirectory() as folder, quiet():
        begun = time.process_time()
        found = train(pair, trained, held, settings, folder=Path(folder), reporter=Reporter(quiet=True))
        seconds = time.process_time() - begun
    share = models.recovered(found.first, found.last, seed=seed)
    before, after = found.first.told(), found.last.told()
    back = f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]" if share else "nothing lost"
    told = (
        f"{before.kl:.4f}", f"{after.kl:.4f}", f"{found.first.base_perplexity:.4f}", f"{before.perplexity:.4f}",
        f"{after.perplexity:.4f}", back, f"{seconds:.0f}",
    )  # fmt: skip
    return told, share.value if share else 0.0, after.kl / before.kl if before.kl else 0.0


# ---- what it costs ---------------------------------------------------------------------------------------------------


def cost() -> list[Row]:
    """Compare a step with a forward pass, with two models in memory, and the memory of both."""
    with TemporaryDirectory() as place:
        folder = Path(place) / "base"
        write_llama(folder, SHAPE, shards=1)
        seen = {
            what: run_child([__file__, "--child", what, folder]).answer
            for what in ("shared", "apart", "forward", "step", "step-apart")
        }
    rows = [
        Row("CPU s of a step over those of a forward pass", (f"{seen['shared']['ratio']:.2f}",),
            at_most(seen["shared"]["ratio"], 3.5)),
        Row("the same with a teacher apart", (f"{seen['apart']['ratio']:.2f}",)),
    ]  # fmt: skip
    forward = seen["forward"]["peak"]
    for what, told in {"step": "memory besides activations, over a forward pass", "step-apart": "the same"}.items():
        own, waiting = seen[what]["peak"] - seen[what]["activations"], seen[what]["activations"] / 2**20
        said = f"{forward / 2**20:.0f} MiB forward, {seen[what]['peak'] / 2**20:.0f} MiB step, {waiting:.0f} MiB wait"
        bound = at_most(own / forward, 1.3) if what == "step" else None
        told += " with a teacher apart" if what == "step-apart" else ""
        rows.append(Row(f"{told} ({said})", (f"{own / forward:.2f}",), bound))
    return rows


def batch_of() -> dict[str, Any]:
    """Return one batch."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, SHAPE.vocab_size, (ROWS, TOKENS), generator=generator)
    return {"input_ids": ids, "labels": ids}


def times_of(folder: Path, *, apart: bool = False) -> float:
    """Return the median ratio of CPU seconds, a step over a forward pass, in turns."""
    import torch

    torch.set_num_threads(1)
    pair, batch = pair_of(folder, "llama", (5, 6, 7)), batch_of()
    if apart:  # the teacher has weights of its own
        pair.__dict__["teacher"] = pair_of(folder, "llama", ()).teacher
    trained = [parameter for parameter in pair.parameters() if parameter.requires_grad]
    optimizer, ratios = torch.optim.AdamW(trained, lr=1e-4), []
    for _ in range(ROUNDS + 1):
        begun = time.process_time()
        with torch.no_grad():
            pair.student(input_ids=batch["input_ids"], use_cache=False)
        between = time.process_time()
        pair(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        ratios.append((time.process_time() - between) / (between - begun))
    return median(ratios[1:])


def peak_of(what: str, folder: Path) -> int:
    """Measure one thing in this process, and print it as JSON."""
    import peft  # noqa: F401  # what libraries take is no model's
    import torch
    import transformers

    if what in ("shared", "apart"):
        print(json.dumps({"ratio": times_of(folder, apart=what == "apart")}))
        return 0
    assert transformers.LlamaForCausalLM
    start = resident("VmRSS")
    pair, batch = pair_of(folder, "llama", (5, 6, 7)), batch_of()
    if what == "step-apart":
        pair.__dict__["teacher"] = pair_of(folder, "llama", ()).teacher
    one, found = {name: rows[:1] for name, rows in batch.items()}, dict[str, int]()
    if what == "forward":
        with torch.no_grad():
            pair.student(input_ids=one["input_ids"], use_cache=False)
    else:
        optimizer = torch.optim.AdamW([p for p in pair.parameters() if p.requires_grad], lr=1e-4)
        known, waiting = [*pair.parameters(), *pair.teacher.parameters()], dict[int, int]()
        own = {parameter.untyped_storage().data_ptr() for parameter in known}

        def note(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                waiting[storage.data_ptr()] = storage.nbytes()
            return tensor

        for _ in range(2):
            waiting.clear()
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                loss = pair(**one)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found["activations"] = sum(waiting.values())
    print(json.dumps({**found, "peak": resident("VmHWM") - start}))
    return 0


def resident(what: str) -> int:
    """Return the memory of this process, or the most that it had: getrusage would tell the parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(what)]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
