"""Base and pruned model in memory at once, and the loss between them.

With adapters, both are one set of weights: the pruned model is made of copies of the base's modules that hold the very
same parameters, without the sublayers that went, and with adapters around the matrices that stay.  So teacher and
student take the memory of one model.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import DropPlan, HealingLoss, HeldOut, Recovered
from hubprune.core.bypass import layers_without

IGNORED = -100
"""Label of a position that is not trained on, as transformers has it."""
ALPHA_OVER_RANK = 2
"""Scale of the adapters."""
POSITIONS = 64
"""Whose logits are in float32 at once."""


def shared_copy(module: nn.Module) -> nn.Module:
    """Copy a module with everything below it, but for parameters and buffers, which both then have in common."""
    made = copy(module)
    # Whatever is registered of one, a hook for example, must not be of both.
    vars(made).update({name: copy(value) for name, value in vars(module).items() if isinstance(value, dict)})
    made._modules = {name: child and shared_copy(child) for name, child in module._modules.items()}
    return made


def without_sublayers(base: Any, plan: DropPlan, architecture: Architecture) -> Any:
    """Return a base without the sublayers of a plan; its weights are the base's own.

    The layers keep the base's numbers, so that it is for passes without a KV cache.
    """
    student: Any = shared_copy(base)
    student.model.layers = nn.ModuleList(layers_without(student, plan, architecture))
    return student


def with_adapters(student: Any, *, rank: int, seed: int) -> Any:
    """Put adapters around all matrices of a model's layers; only these learn, and they begin with adding nothing."""
    from peft import LoraConfig, get_peft_model

    layers = student.get_submodule(f"{student.base_model_prefix}.layers")
    prefix = f"{student.base_model_prefix}.layers"
    names = [f"{prefix}.{name}" for name, module in layers.named_modules() if type(module) is nn.Linear]
    asked = LoraConfig(
        r=rank, lora_alpha=ALPHA_OVER_RANK * rank, lora_dropout=0.0, bias="none", target_modules=names,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers 5.24 for an attribute by its old name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(student, asked)


class Distillation(nn.Module):
    """A student that is trained, its teacher, and the loss between them; only the student's parameters are its own."""

    def __init__(
        self, teacher: Any, student: Any, loss: HealingLoss, *, layers: Sequence[tuple[nn.Module, nn.Module]] = ()
    ) -> None:
        """`layers` are those of both whose outputs are compared, if the loss looks at hidden states."""
        super().__init__()
        self.student, self.loss = student, loss
        self.__dict__["teacher"] = teacher  # no part of it: neither moved, nor saved, nor trained
        self.__dict__["pairs"] = [(_Noting(one), _Noting(other)) for one, other in layers if loss == "kl+hidden"]

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> dict[str, torch.Tensor]:
        """Compute the loss of a batch: ids and labels are int64 [documents, tokens], padded on the right.

        It is the sum over positions whose next token is one, divided by the number of them in all batches of the step
        where that is given, else by the number in this one.

        Padding on the right needs no mask: a causal attention never looks there.
        """
        kept = labels[:, 1:] != IGNORED
        if self.loss != "ce":
            with torch.no_grad():  # before anything of the student waits for the way back
                known = self.teacher(input_ids=input_ids, use_cache=False).logits[:, :-1][kept]
        logits = self.student(input_ids=input_ids, use_cache=False).logits[:, :-1][kept]
        if self.loss == "ce":
            total = nn.functional.cross_entropy(logits.float(), labels[:, 1:][kept], reduction="sum")
        else:
            total = divergence(known, logits).sum()
            if self.pairs:
                turned = [_turned(one.states[:, :-1][kept], other.states[:, :-1][kept]) for one, other in self.pairs]
                total = total + torch.stack(turned).mean(0).sum()
        count = kept.sum() if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / count}


class _Noting:
    """Notes what a layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        self.states = torch.empty(0)
        layer.register_forward_hook(self._note)

    def _note(self, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.states = output if isinstance(output, torch.Tensor) else output[0]


def divergence(known: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """Compute KL(known || told) of logits [positions, vocabulary], as float32 [positions], in nats.

    Only `told` gets a gradient.
    """
    found: torch.Tensor = _Divergence.apply(known, told)
    return found


class _Divergence(torch.autograd.Function):
    """The divergence, whose slope is known with it: the difference of both distributions.

    Some positions at a time: of a large vocabulary, every float32 copy for all of them takes more than a layer.
    """

    @staticmethod
    def forward(ctx: Any, known: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Compute it in float32, and keep its slope in the dtype of the logits; float16 would lose it."""
        values = torch.empty(len(told), device=told.device)
        slope = torch.empty_like(told, dtype=torch.float32 if told.dtype == torch.float16 else told.dtype)
        for start in range(0, len(told), POSITIONS):
            part = slice(start, start + POSITIONS)
            one, other = known[part].float().log_softmax(-1), told[part].float().log_softmax(-1)
            likely = one.exp()
            values[part] = (likely * one.sub_(other)).sum(-1)
            if ctx.needs_input_grad[1]:
                slope[part] = other.exp_().sub_(likely)
        ctx.save_for_backward(slope)
        ctx.dtype = told.dtype
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor]:
        """Scale the slope."""
        [slope], [gradient] = ctx.saved_tensors, gradients
        return None, (slope * gradient[:, None].to(slope.dtype)).to(ctx.dtype)


def _turned(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return 1 - nn.functional.cosine_similarity(one.float(), other.float(), dim=-1)


# ---- held-out documents ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What was seen of every held-out document; all are sums over its positions, float64 [documents]."""

    kl: torch.Tensor
    nll: torch.Tensor
    """Of the student."""
    base_nll: torch.Tensor
    agreed: torch.Tensor
    """Positions with the same most likely token."""
    positions: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence[Look]) -> Look:
        """Put what was seen of parts of the documents one after the other."""
        return cls(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(cls)))

    def told(self) -> HeldOut:
        """Average over all positions."""
        count = self.positions.sum()
        return HeldOut(
            kl=float(self.kl.sum() / count), perplexity=float((self.nll.sum() / count).exp()),
            top1=float(self.agreed.sum() / count),
        )  # fmt: skip

    @property
    def base_perplexity(self) -> float:
        """The teacher's."""
        return float((self.base_nll.sum() / self.positions.sum()).exp())


@torch.no_grad()
def look(pair: Distillation, batches: list[Mapping[str, torch.Tensor]]) -> Look:
    """Run both models on held-out documents; batches as of `Distillation.forward`."""
    was_training = pair.training
    pair.eval()
    rows: list[torch.Tensor] = []
    for batch in batches:
        ids, labels = batch["input_ids"], batch["labels"]
        kept, wanted = labels[:, 1:] != IGNORED, ids[:, 1:]
        known = pair.teacher(input_ids=ids, use_cache=False).logits[:, :-1]
        told = pair.student(input_ids=ids, use_cache=False).logits[:, :-1]
        for row, there in enumerate(kept):
            one, other = known[row][there].float(), told[row][there].float()
            targets = wanted[row][there]
            seen = (
                divergence(one, other), nn.functional.cross_entropy(other, targets, reduction="none"),
                nn.functional.cross_entropy(one, targets, reduction="none"), one.argmax(-1) == other.argmax(-1),
                torch.ones_like(targets),
            )  # fmt: skip
            rows.append(torch.stack([values.double().sum() for values in seen]).cpu())
    pair.train(was_training)
    return Look(*torch.stack(rows).unbind(dim=1))


def recovered(before: Look, after: Look, *, seed: int, draws: int = 2000) -> Recovered | None:
    """Return the share of the lost log-perplexity that came back, and its 95 % interval over the documents.

    The interval is that of a bootstrap over documents, drawn alike for base, pruned and healed model.  Where pruning
    lost nothing, a share says nothing: None then.
    """
    if float(before.nll.sum()) <= float(before.base_nll.sum()):
        return None
    weights = torch.ones(1, len(before.nll), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(before.nll), (draws, len(before.nll)), generator=generator)
    counts = torch.zeros(draws, len(before.nll), dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))

    def share(counted: torch.Tensor) -> torch.Tensor:
        """Return the share for each way to count the documents, float64 [ways]."""
        lost, back = counted @ (before.nll - before.base_nll), counted @ (before.nll - after.nll)
        return torch.where(lost > 0, back / lost, torch.nan)

    [whole] = share(weights).tolist()
    low, high = torch.nanquantile(share(counts), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Recovered(value=whole, low=low, high=high)
