"""What a check gets: a published folder, the base that it was made of, and how to load either.

This module and the `checks_*` next to it run inside environments that are too old for hubprune: they import torch,
transformers and the standard library only.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
OLDER = VERSION < (4, 48)
"""Whether this transformers is older than all that the modeling files run on."""
DTYPE = "dtype" if VERSION >= (4, 56) else "torch_dtype"
"""How `from_pretrained` calls the dtype."""
HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-4
NEW_TOKENS = 12


class MismatchError(AssertionError):
    """A result is not the reference's."""


class AbsentError(Exception):
    """This transformers does not have what is checked, whatever the model."""


@dataclass(frozen=True)
class Case:
    """One published folder."""

    kind: str
    drops: str
    folder: str
    base: str
    trust: bool
    """Whether the folder ships code."""
    zeroed: tuple[str, ...] = ()
    """Projections of the base that are zero in the reference: the dropped sublayers' outputs."""
    narrowed: tuple[tuple[str, int], ...] = ()
    """Output projections of MLPs of the base, with the number of neurons that the folder keeps."""
    cached: tuple[int, ...] = ()
    """Layers of the base whose attention is left."""
    slots: int = 0
    """Slots of a cache up to the last one that is used; more than attentions where one of a kind comes late."""
    layers: int = 0
    """Layers of the base."""
    saved: str = ""
    """The folder as the newest transformers saves it again; empty where there is no such copy."""
    texts: tuple[str, ...] = ()
    """What tokenizers are compared on; `{bos}` and `{eos}` stand for the special tokens."""
    ids: tuple[tuple[int, ...], ...] = ()
    """Token ids of the texts, and of a chat, by the base's tokenizer and the newest transformers."""
    for_words: bool = False
    """Whether it is there for its tokenizer alone."""

    def load(self, auto: Any = AutoModelForCausalLM, *, dtype: Any = torch.float32, **options: Any) -> Any:
        """Load the folder as a reader would."""
        options = {DTYPE: dtype, "trust_remote_code": self.trust, **options}
        found = auto.from_pretrained(self.folder, **options)
        model = (found[0] if isinstance(found, tuple) else found).eval()
        if self.folder == self.base and auto is not AutoModel:
            self._bypassed(model)
        return found

    def stock(self, auto: Any = AutoModelForCausalLM, *, dtype: Any = torch.float32, **options: Any) -> Any:
        """Load the base."""
        return auto.from_pretrained(self.base, **{DTYPE: dtype}, **options).eval()

    def reference(self, auto: Any = AutoModelForCausalLM, **options: Any) -> Any:
        """Load the base and make the dropped sublayers add zero."""
        return self._bypassed(self.stock(auto, **options))

    def control(self) -> Case:
        """Return the case of an unpruned model of the stock class that says the same: the reference.

        The base as it is would not do: what assisted decoding raises depends on the drafts that the target rejects.
        """
        return replace(
            self, folder=self.base, trust=False, cached=tuple(range(self.layers)), slots=self.layers
        )  # fmt: skip

    def _bypassed(self, model: Any) -> Any:
        with torch.no_grad():
            for name in self.zeroed:
                model.get_parameter(name).zero_()
            for name, width in self.narrowed:
                model.get_parameter(name)[:, width:] = 0
        return model


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    run: Callable[[Case], None]
    drops: tuple[str, ...] | None
    """Drop sets that it runs on; all but `widths` where None."""
    older: bool = False
    """Whether it is for a transformers that is too old, and for no other."""
    of_words: bool = False
    """Whether it is for bases that are there for their tokenizer, and for no others."""

    def takes(self, case: Case) -> bool:
        """Tell whether it runs on a case, with this transformers."""
        if case.for_words != self.of_words:
            return False
        return self.older == OLDER and (case.drops != "widths" if self.drops is None else case.drops in self.drops)


CHECKS: dict[str, Check] = {}
FEW = ("none", "first", "joint")


def check(
    name: str, *, drops: tuple[str, ...] | None = None, older: bool = False, of_words: bool = False
) -> Callable[[Callable[[Case], None]], Any]:
    """Add a row."""

    def add(run: Callable[[Case], None]) -> Callable[[Case], None]:
        CHECKS[name] = Check(name, run, drops, older, of_words)
        return run

    return add


# ---- what became of it -------------------------------------------------------------------------------------------


def judge(one: Check, case: Case) -> tuple[str, str]:
    """Run a check on a case and return its status (`ok`, `FAIL` or `refused`) and a message.

    Refused means that transformers itself raised, and raises the same for the unpruned base, which is tried right then.
    """
    error = _attempt(one, case)
    if error is None:
        return "ok", ""
    message = _message(error, case)
    if not _own(error):
        control = case.control()
        other = _attempt(one, control)
        if other is not None and not _own(other) and _message(other, control) == message:
            return "refused", message
    return "FAIL", message + _place(error)


def _attempt(one: Check, case: Case) -> Exception | None:
    try:
        one.run(case)
    except Exception as error:
        return error
    return None


def _own(error: Exception) -> bool:
    """Tell whether a check raised it, not transformers: a wrong result, or a call that does not fit."""
    frames = traceback.extract_tb(error.__traceback__)
    return not isinstance(error, AbsentError) and Path(frames[-1].filename).resolve().parent == HERE


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" [{Path(frame.filename).name}:{frame.lineno}]"


def _message(error: Exception, case: Case) -> str:
    """Say what was raised in words that do not depend on which of the two models it was."""
    text = f"{type(error).__name__}: {error}".replace(case.folder, "FOLDER")
    text = re.sub(r"0x[0-9a-f]+", "0x0", re.sub(r"Pruned(?=[A-Z])|pruned_", "", text))
    return " ".join(text.split())[:400]


# ---- words that the checks share ---------------------------------------------------------------------------------


def prompt(length: int = 20, *, seed: int = 0) -> Any:
    """Token ids of one row; the last third repeats the first, so that a lookup finds something."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 250, (length,), generator=made)
    if third := length // 3:
        ids[-third:] = ids[:third]
    return ids[None]


def greedy(model: Any, ids: Any, **options: Any) -> list[list[int]]:
    """Decode greedily and return the new tokens of every row."""
    plain = {
        "do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)
    }  # fmt: skip
    found: list[list[int]] = model.generate(ids, **{**plain, **options})[:, ids.shape[1] :].tolist()
    return found


def same(found: Any, expected: Any, what: str) -> None:
    """Raise MismatchError where two values differ."""
    if found != expected:
        raise MismatchError(f"{what}: {str(found)[:80]} instead of {str(expected)[:80]}")


def close(found: Any, expected: Any, what: str, *, tolerance: float = TOLERANCE) -> None:
    """Raise MismatchError where two tensors differ by more than the tolerance, or hold what is no number."""
    if found.shape != expected.shape:
        raise MismatchError(f"{what}: shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    difference = float((found.float() - expected.float()).abs().max())
    if not difference <= tolerance:
        raise MismatchError(f"{what}: off by {difference:.2g}")
