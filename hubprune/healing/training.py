"""Train a student: the steps, the looks at held-out documents, and the checkpoints, by the Trainer of transformers.

The Trainer is what brings accumulation, mixed precision, several processes, and the place in the data after a restart.
Its checkpoints hold the trained parameters alone, and count once they are whole.

Of several processes each computes its part of every step, and all see the same losses and the same looks, so that they
end together; the first one alone saves and is listened to.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hubprune.core.artifacts import CurvePoint
from hubprune.core.console import Reporter, end_if_interrupted
from hubprune.core.devices import rank, world_size
from hubprune.core.errors import HealingError
from hubprune.core.files import write_atomically
from hubprune.healing.models import IGNORED, Distillation, Look, look
from hubprune.healing.texts import batches_of

TRAINED = "trained.safetensors"
WHOLE = "whole.json"
"""The last file of a checkpoint; it holds the looks up to then."""
LOOKS = 10
"""Looks at the held-out documents in a whole training."""
PATIENCE, LEAST_FALL = 3, 0.002
"""Training ends after so many looks in a row in which the held-out loss did not fall by this share."""
SAVE_SECONDS = 180.0
WARMUP_STEPS = 10
LAST_RATE = 0.05
"""Share of the learning rate at the end."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a training is told."""

    steps: int
    batch_size: int
    """Documents per step."""
    micro_batch: int
    """Of these, as many as are in memory at once, in each of the processes: an equal part."""
    learning_rate: float
    seed: int
    device: str
    dtype: str
    checkpointing: bool = False
    """Whether activations are computed again instead of kept."""

    def with_steps(self, steps: int) -> Settings:
        """Return the same with another number of steps, 1 at least."""
        return replace(self, steps=max(1, steps))


@dataclass(frozen=True)
class Trained:
    """What a training found."""

    curve: tuple[CurvePoint, ...]
    first: Look
    last: Look
    steps: int
    tokens: int
    seconds: float
    """Of all runs that it took, as far as checkpoints tell."""


def collate(documents: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Pad documents on the right; int64 [documents, tokens], labels ignored where padded."""
    rows = [torch.tensor(ids) for ids in documents]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True), "labels": pad(rows, batch_first=True, padding_value=IGNORED),
    }  # fmt: skip


def in_order(documents: Sequence[Sequence[int]], count: int, *, seed: int) -> list[Sequence[int]]:
    """Return so many documents: all of them in an order that the seed gives, then all in another one, and so on."""
    generator, numbers = torch.Generator().manual_seed(seed), list[int]()
    while len(numbers) < count:
        numbers += torch.randperm(len(documents), generator=generator).tolist()
    return [documents[number] for number in numbers[:count]]


def train(
    pair: Distillation, documents: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]], settings: Settings, *,
    folder: Path, reporter: Reporter,
) -> Trained:  # fmt: skip
    """Train the student of a pair, or go on from the last whole checkpoint in a folder that is for this training alone.

    Documents are token ids; see `in_order`.  Several processes call it with the same, and each with a pair of its own.

    Raises:
        HealingError: the loss is no number any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batches = [collate(rows) for rows in batches_of(held_out, size=settings.micro_batch)]
    per_device = settings.micro_batch
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=settings.steps, per_device_train_batch_size=per_device,
        gradient_accumulation_steps=settings.batch_size // (per_device * world_size()),
        learning_rate=settings.learning_rate, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
        seed=settings.seed, data_seed=settings.seed, use_cpu=settings.device == "cpu",
        bf16=settings.device != "cpu" and settings.dtype == "bfloat16",
        fp16=settings.device != "cpu" and settings.dtype == "float16",
        logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=settings.device != "cpu", log_level="error", save_total_limit=1,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    if settings.checkpointing:
        pair.student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    parameters = [parameter for parameter in pair.parameters() if parameter.requires_grad]
    arguments._n_gpu = min(1, arguments.n_gpu)  # it would put copies of the student alone on several
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    last = _last_whole(folder)
    watch = _Watch(pair, batches, settings, reporter, kept=json.loads((last / WHOLE).read_text()) if last else {})
    trainer = _Trainer(
        model=pair, args=arguments, data_collator=collate, callbacks=[watch], optimizers=(optimizer, schedule),
        train_dataset=in_order(documents, settings.steps * settings.batch_size, seed=settings.seed),
    )  # fmt: skip
    trainer.model_accepts_loss_kwargs = True  # the loss is divided by all positions of a step
    trainer.remove_callback(PrinterCallback)
    watch.save, trainer.note = trainer.save_whole, watch.note_loss
    with reporter.progress("healing", total=settings.steps, unit="steps") as advance:
        watch.advance = advance
        if last:
            reporter.note(f"going on after step {last.name.rpartition('-')[2]}")
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return watch.ended()


def seconds_per_step(pair: Distillation, documents: Sequence[Sequence[int]], settings: Settings) -> float:
    """Time a step, forward and backward, on the longest documents; the first of two is not counted."""
    rows = batches_of(documents, size=settings.micro_batch)[:2]
    begun = 0.0
    for documents_of_one in [rows[0], rows[-1]]:
        begun = time.monotonic()
        pair(**collate(documents_of_one))["loss"].backward()
    pair.zero_grad()
    return (time.monotonic() - begun) * settings.batch_size / (settings.micro_batch * world_size())


def _rate(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: up from nothing, then down in a line."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * (LAST_RATE + (1 - LAST_RATE) * max(0.0, 1 - step / steps))


class _Trainer(Trainer):
    """The Trainer, whose data are in order already, and whose checkpoints hold the trained parameters alone."""

    note: Callable[[float, int], None]

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        # Of a sequence, several processes take the documents of a step that one would take.
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        tokens = (inputs["labels"] != IGNORED).sum()
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        # A process's loss is its share times their number.  It is told before a step is made of what may be no number.
        told = self.accelerator.reduce(torch.stack([loss.float() / world_size(), tokens.float()]), "sum")
        self.note(float(told[0]), int(told[1]))
        return loss

    def store_flos(self) -> None:
        """Count nothing: all processes would have to meet for it, where the first one alone saves."""

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        pair = self.accelerator.unwrap_model(self.model)
        trained = {n: p.detach().cpu().contiguous() for n, p in pair.named_parameters() if p.requires_grad}
        save_file(trained, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        kept = load_file(Path(resume_from_checkpoint) / TRAINED)
        with torch.no_grad():
            for name, parameter in (model or self.model).named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(kept[name])

    def save_whole(self, told: Mapping[str, Any]) -> None:
        """Write a checkpoint, and last of all what says that it is whole."""
        self._save_checkpoint(self.model, trial=None)
        if self.args.should_save:
            place = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            write_atomically(place / WHOLE, json.dumps(told))


def _last_whole(folder: Path) -> Path | None:
    """Return the newest whole checkpoint; what a killed run left half of goes."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in found:
        if not (path / WHOLE).is_file():
            shutil.rmtree(path, ignore_errors=True)
    return next((path for path in reversed(found) if (path / WHOLE).is_file()), None)


@dataclass
class _Watch(TrainerCallback):
    """Looks at the held-out documents, tells how it goes, saves now and then, and ends what no longer helps."""

    pair: Distillation
    batches: list[dict[str, torch.Tensor]]
    settings: Settings
    reporter: Reporter
    kept: Mapping[str, Any]
    advance: Callable[[int], None] = lambda _: None
    save: Callable[[Mapping[str, Any]], None] = lambda _: None
    looks: dict[int, Look] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.curve = [CurvePoint.model_validate(point) for point in self.kept.get("curve", ())]
        self.losses, self.tokens = list(self.kept.get("losses", ())), int(self.kept.get("tokens", 0))
        if first := self.kept.get("first"):
            self.looks[0] = Look(*(torch.tensor(values, dtype=torch.float64) for values in first))
        self.every = max(1, math.ceil(self.settings.steps / LOOKS))
        self.begun, self.spent = time.monotonic(), float(self.kept.get("seconds", 0.0))
        self.saved, self.steps, self.partial = self.begun, 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Look at what there is before the first step."""
        self.batches = [{key: value.to(args.device) for key, value in batch.items()} for batch in self.batches]
        self.pair.teacher.to(args.device)
        if not self.curve:
            self._look(0)
        self.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Count a step, and look, save or end where it is time to."""
        self.steps = state.global_step
        self.losses.append(self.partial)
        self.partial = 0.0
        self.advance(1)
        if self.steps % self.every == 0 or self.steps == self.settings.steps:
            self._look(self.steps)
            if self._has_settled():
                self.reporter.note(f"the held-out loss no longer falls: ended after step {self.steps:,}")
                control.should_training_stop = True
        if rank() > 0:
            return  # saving and ending early is for the first process to do
        try:
            end_if_interrupted()
        except KeyboardInterrupt:
            self.keep()
            raise
        if time.monotonic() - self.saved >= SAVE_SECONDS or control.should_training_stop:
            self.keep()

    def note_loss(self, loss: float, tokens: int) -> None:
        """Take the loss of a part of a step.

        Raises:
            HealingError: it is no number.
        """
        if not math.isfinite(loss):
            raise HealingError(
                f"The loss of step {self.steps + 1:,} is {loss}.",
                hint="Pass a lower --learning-rate, or --dtype float32; the checkpoint before it is kept.",
            )
        self.partial += loss
        self.tokens += tokens

    def keep(self) -> None:
        """Save, so that another run can go on from here."""
        first = self.looks[0]
        columns = (first.kl, first.nll, first.base_nll, first.agreed, first.positions)
        curve = [point.model_dump(mode="json") for point in self.curve]
        self.save({
            "curve": curve, "losses": self.losses, "tokens": self.tokens, "first": [c.tolist() for c in columns],
            "seconds": self.seconds,
        })  # fmt: skip
        self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has taken, in the runs before too."""
        return round(self.spent + time.monotonic() - self.begun, 1)

    def _look(self, step: int) -> None:
        seen = self.looks[step] = self._seen()
        loss = math.fsum(self.losses) / len(self.losses) if self.losses else None
        self.losses.clear()
        self.curve.append(CurvePoint(step=step, loss=loss, held_out=seen.told()))
        told = self.curve[-1].held_out
        trained = "before" if loss is None else f"step {step:,}: loss {loss:.4f}"
        self.reporter.note(f"{trained}, held out: KL {told.kl:.4f}, perplexity {told.perplexity:.3f}")

    def _seen(self) -> Look:
        """Look at every document, each process at its part of the batches."""
        count = world_size()
        mine = {n: look(self.pair, [self.batches[n]]) for n in range(rank(), len(self.batches), count)}
        parts = gather_object([mine]) if count > 1 else [mine]
        found: dict[int, Look] = {number: seen for part in parts for number, seen in part.items()}
        return Look.joined([found[number] for number in range(len(self.batches))])

    def _has_settled(self) -> bool:
        values = [point.held_out.kl for point in self.curve]
        if len(values) <= PATIENCE + 1:
            return False
        best = min(values[:-PATIENCE])
        return min(values[-PATIENCE:]) > best * (1 - LEAST_FALL)

    def ended(self) -> Trained:
        """Tell what was found; the last look is at the end."""
        if self.curve[-1].step not in self.looks:
            self.looks[self.curve[-1].step] = self._seen()
        last = self.curve[-1].step
        return Trained(tuple(self.curve), self.looks[0], self.looks[last], last, self.tokens, self.seconds)
