"""Tables 8 and 9 of arXiv:2406.15786 in small: sublayers against whole blocks, and against single weights.

    python benchmarks/sparser.py [--quick] [--bases NAME ...] [--data FOLDER] [--json FILE]

On the models and texts of `choosing.py`.  Each row is a model with at least as many parameters gone as the first of its
group, and its perplexity on held-out documents, over that of the first, with an interval of 95 % by a bootstrap over
the documents, paired.  Nothing is trained afterwards.

Table 8, by parameters of whole blocks:
    blocks by perplexity   the blocks without which the calibration loss is lowest, each taken out alone
    blocks by Taylor       the blocks with the least sum of |weight x gradient| of that loss
                           (both: Kim et al., Shortened LLaMA, arXiv:2402.02834; written here from the paper)
    joint by ...           attentions and MLPs in one order, by cosine, and greedily by loss, as hubprune chooses them
Table 9, by parameters of attentions:
    attention by ...       the same for attentions
    Wanda                  the weights with the least |weight| x norm of its input go from every row of every matrix of
                           every layer, in equal shares (Sun et al., arXiv:2306.11695; written here from the paper).
                           They are set to zero: nothing gets smaller or faster by that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from choosing import DATA, Case, Measuring, cases, plans_of
from measuring import Bound, Row, report

from hubprune.core.artifacts import DroppedSublayer, DropPlan, Metric, Ranking, Schedule, SublayerKind
from hubprune.core.errors import PlanError
from hubprune.pruning.selection import Shape

ORDERS: dict[str, tuple[Metric, Schedule]] = {"cosine": ("cosine", "one-shot"), "loss, greedy": ("loss", "iterative")}
Sublayers = Sequence[tuple[SublayerKind, int]]


class Model(Measuring):
    """A base in memory, the documents that choices are made on, and the held-out ones."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.case = case
        self.layers = self._model.model.layers
        self.shape = Shape(num_hidden_layers=len(self.layers), name=case.name)

    def plan(self, gone: Sublayers) -> DropPlan:
        """Make a plan of sublayers."""
        rows = tuple(DroppedSublayer(kind=kind, layer=layer) for kind, layer in gone)
        return DropPlan(selected_by="hand", num_hidden_layers=len(self.layers), dropped=rows)

    def parameters(self, gone: Sublayers) -> int:
        """Count what goes with some sublayers."""
        parts = self._family.parts
        modules = (self.layers[i].get_submodule(part) for kind, i in gone for part in parts[kind])
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    def loss(self, gone: Sublayers = ()) -> Any:
        """Return the mean loss of the tokens that choices are made on, as a tensor."""
        import torch

        from hubprune.core.bypass import bypassed

        rows = [torch.tensor([ids]) for ids in self.case.chosen_on if len(ids) > 1]
        with bypassed(self._model, self.plan(gone), self._family):
            parts = [
                torch.nn.functional.cross_entropy(
                    self._model(row, use_cache=False).logits[0, :-1], row[0, 1:], reduction="sum"
                )
                for row in rows
            ]
        return sum(parts) / sum(row.shape[1] - 1 for row in rows)

    def blocks_by_perplexity(self) -> list[int]:
        """Order the blocks by the loss without each."""
        import torch

        with torch.inference_mode():
            losses = [float(self.loss([("attn", i), ("mlp", i)])) for i in range(len(self.layers))]
        return sorted(range(len(losses)), key=losses.__getitem__)

    def blocks_by_taylor(self) -> list[int]:
        """Order the blocks by the sum of |weight x gradient| over their matrices."""
        self.loss().backward()
        sums = [
            sum(float((p * p.grad).abs().sum()) for p in layer.parameters() if p.grad is not None)
            for layer in self.layers
        ]
        self._model.zero_grad()
        return sorted(range(len(sums)), key=sums.__getitem__)

    def order(self, ranking: Ranking, name: str, *, most: int) -> list[tuple[SublayerKind, int]]:
        """Return the sublayers that hubprune drops, in its order; as many as can go."""
        metric, schedule = ORDERS[name]
        for count in range(most, 0, -1):
            try:
                [plan], _ = plans_of(self.case, ranking, self.shape, metric, schedule, [count])
            except PlanError:  # nothing of some kind would be left
                continue
            return [(row.kind, row.layer) for row in plan.dropped]
        return []

    def until(self, order: Sublayers, parameters: int) -> Sublayers | None:
        """Return the first of an order that are as many parameters, without those that are not needed for that.

        Of these, the last chosen stay; None where all of the order are fewer.
        """
        ends = (n for n in range(1, len(order) + 1) if self.parameters(order[:n]) >= parameters)
        if (end := next(ends, None)) is None:
            return None
        found = list(order[:end])
        for one in reversed(order[: end - 1]):
            left = [other for other in found if other != one]
            found = left if self.parameters(left) >= parameters else found
        return found

    def wanda(self, parameters: int) -> list[float]:
        """Set the weights to zero that say least, as many as parameters, and return the losses of the documents."""
        import torch

        linears = [m for layer in self.layers for m in layer.modules() if isinstance(m, torch.nn.Linear)]
        share = parameters / sum(linear.weight.numel() for linear in linears)
        squares = {linear: torch.zeros(linear.in_features, dtype=torch.float64) for linear in linears}

        def add(linear: Any, inputs: tuple[Any, ...]) -> None:
            squares[linear] += inputs[0].double().flatten(0, -2).square().sum(0)

        handles = [linear.register_forward_pre_hook(add) for linear in linears]
        kept = [linear.weight.detach().clone() for linear in linears]
        with torch.inference_mode():
            self.loss()
        for handle in handles:
            handle.remove()
        gone = 0
        for linear in linears:
            metric = linear.weight.detach().abs() * squares[linear].sqrt().float()
            count = int(share * linear.in_features + 0.999999)  # at least as many as the others lose
            least = metric.argsort(dim=1, stable=True)[:, :count]
            linear.weight.data.scatter_(1, least, 0.0)
            gone += least.numel()
        assert gone >= parameters
        losses = self.losses(self.plan(()))
        for linear, weight in zip(linears, kept, strict=True):
            linear.weight.data.copy_(weight)
        return losses


def compare(case: Case, *, quick: bool) -> Iterator[tuple[str, list[Row], dict[str, Any]]]:
    """Yield the groups of rows of both tables."""
    model = Model(case)
    n = len(model.layers)
    base = model.perplexity(model.losses(model.plan(())))
    most = 2 * n - 2
    joint = {name: model.order("joint", name, most=min(most, 4 if quick else 12)) for name in ORDERS}
    attention = {name: model.order("attn", name, most=2 if quick else n - 1) for name in ORDERS}
    by = {"perplexity": model.blocks_by_perplexity(), "Taylor": model.blocks_by_taylor()}
    for count in range(1, 2 if quick else max(2, n // 3) + 1):
        both: tuple[SublayerKind, ...] = ("attn", "mlp")
        blocks = {name: [(kind, i) for i in order[:count] for kind in both] for name, order in by.items()}
        parameters = model.parameters(blocks["perplexity"])
        gone: dict[str, Sublayers | None] = {f"{count} blocks by {name}": one for name, one in blocks.items()}
        gone |= {f"joint by {name}": model.until(order, parameters) for name, order in joint.items()}
        yield _rows(f"{case.name}, base {base:.4f}, table 8", model, gone, {})
    for count in sorted({1, max(1, n // 4), max(1, n // 2)})[: 1 if quick else None]:
        first = {f"{count} attentions by {name}": order[:count] for name, order in attention.items() if order}
        parameters = model.parameters(next(iter(first.values())))
        yield _rows(f"{case.name}, base {base:.4f}, table 9", model, first, {"Wanda": (parameters, model.wanda)})


def _rows(
    title: str, model: Model, gone: Mapping[str, Sublayers | None], masked: Mapping[str, Any]
) -> tuple[str, list[Row], dict[str, Any]]:
    """Measure a group, of which the first is what the others are compared with."""
    losses = {name: (model.losses(model.plan(one)), model.parameters(one), one) for name, one in gone.items() if one}
    losses |= {name: (of(parameters), parameters, ()) for name, (parameters, of) in masked.items()}
    reference, rows, kept = next(iter(losses.values()))[0], [], {}
    for name, (own, parameters, sublayers) in losses.items():
        ratio, low, high = model.ratio(own, reference)
        told = f"{ratio:.4f} [{low:.4f}, {high:.4f}]" if own is not reference else ""
        named = ", ".join(f"{kind} {layer}" for kind, layer in sublayers)
        rows.append(
            Row(name, (f"{parameters:,}", f"{model.perplexity(own):.4f}"), Bound(f"{told:<26} {named}", holds=True))
        )
        kept[name] = {"parameters": parameters, "perplexity": model.perplexity(own), "ratio": [ratio, low, high]}
    return title, rows, kept


def main() -> int:
    """Run all cases, and print the groups of both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--bases", nargs="+", metavar="NAME", help="only those that are called so")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = []
    for case in cases(asked.data, quick=asked.quick):
        if asked.bases and case.name not in asked.bases:
            continue
        for title, rows, kept in compare(case, quick=asked.quick):
            print(f"\n{title}", flush=True)
            report(("parameters gone", "perplexity"), rows)
            found.append({"title": title, "rows": kept})
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
