"""Which sublayers go: what the choice by loss saves in held-out perplexity over that by cosine, and what it costs.

    python benchmarks/choosing.py [--quick] [--rankings attn,joint] [--only NAME] [--data FOLDER] [--json FILE]

On the embedded models and, where the folder of data has them, on stories260K with C4 and with stories that it wrote
itself.  For every count from 1 to half of the layers the sublayers are chosen on some documents by

    cosine, cosine again after every drop, loss, loss again after every drop (greedy), KL again after every drop

and the perplexity without them is measured on others, by transformers' own model with the sublayers bypassed.  The
intervals are of 95 %, by a bootstrap over the held-out documents, paired.

Bounds: the greedy set by loss is at most as bad as the lowest cosines at every count, and at least 2 % better at half
of them; all attentions of n layers are left out in (n / 2 + 2) n runs of a layer.  How many runs the greedy set of k
takes is told beside k times that.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measuring import Bound, Row, report

from hubprune import demo
from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import (
    CalibrationRecord,
    CalibrationSource,
    DroppedSublayer,
    DropPlan,
    Metric,
    Ranking,
    Schedule,
)
from hubprune.core.console import Reporter, quiet
from hubprune.core.files import StageStore
from hubprune.core.specs import DropSpec
from hubprune.pruning.calibration import CalibrationSet, Document
from hubprune.pruning.iterative import drop_in_rounds
from hubprune.pruning.selection import PARTS, Shape, finish, make_plan
from hubprune.pruning.variants import RANKED

DATA = Path(__file__).parents[2] / "shared" / "data"
CHOICES: dict[str, tuple[Metric, Schedule]] = {
    "cosine": ("cosine", "one-shot"), "cosine, again": ("cosine", "iterative"), "loss": ("loss", "one-shot"),
    "loss, greedy": ("loss", "iterative"), "kl, greedy": ("kl", "iterative"),
}  # fmt: skip
OLD, NEW = "cosine", "loss, greedy"
ORACLE, MOST_SETS = "the best of all sets", 60
"""What no choice on other texts can be better than, looked for among the held-out ones; and up to how many sets."""
BETTER = 0.02
"""By which share the perplexity is to be lower at half of the counts."""
TOKENS, RESAMPLES = 256, 2000
QUICK = 12
"""Documents of each kind in a quick run."""


@dataclass(frozen=True)
class Case:
    """A model, and the texts that it is looked at with."""

    name: str
    folder: Path
    chosen_on: tuple[tuple[int, ...], ...]
    measured_on: tuple[tuple[int, ...], ...]


@dataclass
class Found:
    """What came of one case and ranking."""

    case: str
    ranking: Ranking
    layers: int
    base: float = 0.0
    """Perplexity of the base."""
    perplexity: dict[str, list[float]] = field(default_factory=dict)
    """Choice -> perplexity by count, from 1."""
    ratio: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    """Choice -> its perplexity over that of the lowest cosines, with the interval."""
    gone: dict[str, list[list[str]]] = field(default_factory=dict)
    """Choice -> what is gone, by count."""
    runs: dict[str, list[float]] = field(default_factory=dict)
    """Choice -> runs of a layer up to each count."""


def main() -> int:
    """Run all cases, and print one table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rankings", default="attn")
    parser.add_argument("--only", default="", help="part of the names of what is looked at")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    made = [case for case in cases(asked.data, quick=asked.quick) if asked.only in case.name]
    most = 2 if asked.quick else None
    found = [choose(case, ranking, most=most) for case in made for ranking in asked.rankings.split(",")]
    if asked.json:
        asked.json.write_text(json.dumps([vars(one) for one in found], indent=1))
    codes = [tell(one, bounded=not asked.quick) for one in found]
    return max(codes)


# ---- texts -----------------------------------------------------------------------------------------------------------


def cases(data: Path, *, quick: bool) -> list[Case]:
    """Return what is looked at; what is not there is said."""
    found = []
    for name, folder in list(demo.MODELS.items())[: 1 if quick else None]:
        files = sorted(demo.DATASETS["calibration"].glob("*.jsonl"))
        rows = [[json.loads(line)["text"] for line in path.read_text().splitlines()] for path in files]
        first = tokenized(folder, [text for texts in rows for text in texts[: QUICK // 6 if quick else 40]])
        others = tokenized(folder, [text for texts in rows for text in texts[-QUICK // 6 if quick else -60 :]])
        found.append(Case(name, folder, first, others))
    folder, web = data / "models" / "stories260K", data / "calibration" / "c4_demo.json"
    if quick:
        return found
    if not folder.is_dir():
        print(f"{folder} is not there: only the embedded models are looked at")
        return found
    stories = written(folder, 300)
    found.append(Case("stories260K, stories", folder, stories[:120], stories[120:]))
    if web.is_file():
        texts = tokenized(folder, [row["text"] for row in json.loads(web.read_text())])
        found.append(Case("stories260K, C4", folder, texts[:120], texts[120:]))
    return found


def tokenized(folder: Path, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tuple(tuple(tokenizer(text, truncation=True, max_length=TOKENS).input_ids) for text in texts)


def written(folder: Path, count: int) -> tuple[tuple[int, ...], ...]:
    """Let a model write texts, by its own probabilities and a seed."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = model.generate(
        torch.ones(count, 1, dtype=torch.int64), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        max_new_tokens=TOKENS - 1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return tuple(map(tuple, ids.tolist()))


def calibration_of(documents: Sequence[tuple[int, ...]]) -> CalibrationSet:
    """Make a mix of one subset."""
    tokens = sum(map(len, documents))
    source = CalibrationSource(
        dataset="own", config=None, split="train", commit=None, weight=1.0, documents=len(documents), tokens=tokens
    )
    record = CalibrationRecord(
        mix="own", sources=(source,), max_tokens=TOKENS, seed=0, shuffle_buffer=1, token_sha256="0" * 64
    )
    return CalibrationSet(tuple(Document(0, ids) for ids in documents), record)


# ---- choices ---------------------------------------------------------------------------------------------------------


def choose(case: Case, ranking: Ranking, *, most: int | None = None) -> Found:
    """Choose by every metric and schedule, for every count up to half of the layers or to `most`, and measure."""
    config = json.loads((case.folder / "config.json").read_text())
    shape = Shape(num_hidden_layers=config["num_hidden_layers"], name=case.name)
    counts = range(1, (most or shape.num_hidden_layers // 2) + 1)
    found, measure = Found(case.name, ranking, shape.num_hidden_layers), Measuring(case)
    losses = dict[frozenset[tuple[str, int]], list[float]]()

    def known(plan: DropPlan) -> list[float]:
        if (gone := frozenset(plan.sublayers)) not in losses:
            losses[gone] = measure.losses(plan)
        return losses[gone]

    found.base = measure.perplexity(known(finish(DropSpec(), (), shape)))
    chosen = dict[str, list[DropPlan]]()
    for name, (metric, schedule) in CHOICES.items():
        chosen[name], found.runs[name] = plans_of(case, ranking, shape, metric, schedule, counts)
    if most is None:
        sets = (every_set(ranking, count, shape) for count in counts)
        chosen[ORACLE] = [min(plans, key=lambda plan: sum(known(plan))) for plans in sets if plans]
    for name, plans in chosen.items():
        values = [known(plan) for plan in plans]
        found.gone[name] = [[f"{kind} {layer}" for kind, layer in plan.sublayers] for plan in plans]
        found.perplexity[name] = [measure.perplexity(value) for value in values]
        pairs = zip(values, map(known, chosen[OLD]), strict=False)
        found.ratio[name] = [measure.ratio(own, old) for own, old in pairs]
    return found


def every_set(ranking: Ranking, count: int, shape: Shape) -> list[DropPlan]:
    """Return the plans of all sets of so many sublayers; none where they are too many to be measured."""
    things = [(kind, layer) for kind in PARTS[ranking] for layer in range(shape.num_hidden_layers)]
    if math.comb(len(things), count) > MOST_SETS:
        return []
    sets = ([DroppedSublayer(kind=kind, layer=layer) for kind, layer in some] for some in combinations(things, count))
    return [finish(DropSpec(), rows, shape) for rows in sets]


def plans_of(
    case: Case, ranking: Ranking, shape: Shape, metric: Metric, schedule: Schedule, counts: Sequence[int]
) -> tuple[list[DropPlan], list[float]]:
    """Return the plan of every count, and how often a layer was run up to then; rounds hold those before them."""
    from hubprune.pruning.importance import Scorer, Scoring
    from hubprune.pruning.loss_scores import LossScorer

    config = json.loads((case.folder / "config.json").read_text())
    scoring = Scoring(architecture=architecture_of(config), metric=metric, batch_size=16)
    drawn, runs = calibration_of(case.chosen_on), list[float]()

    def open_scorer(*, keeps_states: bool = True) -> Any:
        if metric in ("loss", "kl"):
            made: Any = LossScorer(case.folder, drawn, scoring, RANKED[ranking], shape=shape, keeps_states=keeps_states)
        else:
            made = Scorer(case.folder, drawn, scoring, keeps_states=keeps_states)
        really = made.run

        def run(advance: Any, *, start: int = 0) -> None:
            really(advance, start=start)
            runs.append(made.layer_runs)

        made.run = run
        return made

    with quiet(), TemporaryDirectory(prefix="hubprune-choosing-") as folder:
        if schedule == "one-shot":
            scorer = open_scorer(keeps_states=False)
            scorer.run(lambda amount=1: None)
            scores = scorer.scores()
            plans = [make_plan(_drop(ranking, count), scores, shape, metric=metric) for count in counts]
            return plans, [scorer.layer_runs] * len(plans)
        _, last = drop_in_rounds(
            _drop(ranking, max(counts)), shape, open_scorer=open_scorer, store=StageStore(Path(folder)), key="base",
            reporter=Reporter(quiet=True),
        )  # fmt: skip
        gone = [[row for row in last.dropped if (row.round or 0) <= count] for count in counts]
        return [finish(_drop(ranking, len(rows)), rows, shape) for rows in gone], runs


def _drop(ranking: Ranking, count: int) -> DropSpec:
    return DropSpec.model_validate({f"{ranking}_drop": count})


class Measuring:
    """A base in memory, and the held-out documents."""

    def __init__(self, case: Case) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32).eval()
        self._family = architecture_of(self._model.config.to_dict())
        self._documents = [ids for ids in case.measured_on if len(ids) > 1]
        self._tokens = [len(ids) - 1 for ids in self._documents]

    def losses(self, plan: DropPlan) -> list[float]:
        """Return the loss of every document without what a plan drops, in nats."""
        import torch

        from hubprune.core.bypass import bypassed

        found = []
        with bypassed(self._model, plan, self._family), torch.inference_mode():
            for ids in self._documents:
                row = torch.tensor([ids])
                logits = self._model(row, use_cache=False).logits[0, :-1].double()
                found.append(float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum")))
        return found

    def perplexity(self, losses: Sequence[float]) -> float:
        """Return the perplexity over the tokens of all documents."""
        return math.exp(math.fsum(losses) / sum(self._tokens))

    def ratio(self, own: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
        """Return a perplexity over another one with its interval, over the same documents drawn again and again."""
        import numpy as np

        change, tokens = np.array(own) - np.array(other), np.array(self._tokens)
        drawn = np.random.default_rng(0).integers(len(tokens), size=(RESAMPLES, len(tokens)))
        logs = change[drawn].sum(1) / tokens[drawn].sum(1)
        low, high = np.quantile(logs, (0.025, 0.975))
        return math.exp(change.sum() / tokens.sum()), math.exp(low), math.exp(high)


# ---- what is told ----------------------------------------------------------------------------------------------------


def tell(found: Found, *, bounded: bool) -> int:
    """Print a table of what was found, and return 1 where a bound is missed."""
    print(f"\n{found.case}, {found.ranking}: {found.layers} layers, perplexity of the base {found.base:.4f}")
    rows, counts = [], range(1, len(found.perplexity[OLD]) + 1)
    for count in counts:
        for name in (name for name in found.perplexity if count <= len(found.perplexity[name])):
            value, (ratio, low, high) = found.perplexity[name][count - 1], found.ratio[name][count - 1]
            told = "" if name == OLD else "the same set" if low == high else f"{ratio:.4f} [{low:.4f}, {high:.4f}]"
            gone = ", ".join(found.gone[name][count - 1])
            rows.append(Row(f"{count}, {name}", (f"{value:.4f}",), Bound(f"{told:<25}  {gone}", holds=True)))
    ratios = [ratio for ratio, *_ in found.ratio[NEW]]
    none_worse = Bound(f"largest ratio {max(ratios):.4f} (at most 1)", max(ratios) <= 1 + 1e-6)
    better = sum(ratio <= 1 - BETTER for ratio in ratios)
    enough = Bound(f"{better} of {len(ratios)} counts (at least half)", 2 * better >= len(ratios))
    if bounded:
        rows += [Row("greedy is never worse", (), none_worse), Row("greedy is 2 % better", (), enough)]
    width = 2 if found.ranking == "joint" else 1
    one = found.runs["loss"][0]
    limit = width * (found.layers / 2 + 2) * found.layers
    rows.append(Row("runs of a layer, leave-one-out", (), Bound(f"{one:.0f} (at most {limit:.0f})", one <= limit)))
    for count in counts:
        greedy = found.runs[NEW][count - 1]
        told = f"{greedy:.0f}, {greedy / (count * limit):.2f} x {count} rounds of the bound"
        rows.append(Row(f"runs of a layer, greedy of {count}", (), Bound(told, holds=True)))
    return report(("perplexity", "over the cosine's"), rows)


if __name__ == "__main__":
    sys.exit(main())
