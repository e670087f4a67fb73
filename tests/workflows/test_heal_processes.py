"""A healing that is killed goes on as if it had not been, and several processes train what one would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from hashlib import sha256
from time import sleep

import pytest
from bases import LLAMA, write_base
from safetensors.torch import load_file

from hubprune.core.console import Reporter
from hubprune.core.requests import HealRequest, PruneRequest
from hubprune.healing import training
from hubprune.pruning import loading, verify
from hubprune.workflows import heal as workflow
from hubprune.workflows import prune as pruning

STEPS, KILLED = 24, 9
PRELUDE = """
import json, sys, time
from pathlib import Path
from hubprune.core.console import Reporter
from hubprune.core.devices import rank
from hubprune.core.requests import HealRequest
from hubprune.evaluation import computing
from hubprune.healing import training
from hubprune.pruning import loading, verify
from hubprune.workflows import heal

verify.NEW_TOKENS = 2
verify._in_fresh_process = lambda action, request, answer, **_: loading._ACTIONS[action][1](request)
folder = Path(sys.argv[1])
asked = HealRequest(
    str(folder / "pruned"), out=folder / sys.argv[2], steps=24, held_out=6, base=str(folder / "base"),
    data=str(folder / "texts.jsonl"), learning_rate=0.01, device="cpu",
)
"""
HANGING = """
training.SAVE_SECONDS = 0.0
keep = training._Watch.keep

def kept(self):
    keep(self)
    if self.steps == 9:
        (folder / "kept").touch()
        time.sleep(60)

training._Watch.keep = kept
heal.heal(asked, reporter=Reporter(quiet=True))
"""
TOGETHER = """
seen, step = [], training._Trainer.training_step

def noted(self, model, inputs, *rest):
    seen.append([ids[labels != -100].tolist() for ids, labels in zip(inputs["input_ids"], inputs["labels"])])
    return step(self, model, inputs, *rest)

training._Trainer.training_step = noted
if rank():
    computing.follow()
else:
    heal.heal(asked, reporter=Reporter())
    computing.dismiss()
(folder / f"seen-{rank()}.json").write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, a pruned folder of it, documents, and what a healing in one process makes of them."""
    folder = tmp_path_factory.mktemp("processes")
    write_base(folder / "base", LLAMA)
    rows = [{"text": " ".join(f"word{(n * k) % 17}" for k in range(3 + n % 4))} for n in range(1, 60)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch, folder / "home")
        asked = PruneRequest(str(folder / "base"), out=folder / "pruned", attn_layers=(1, 3))
        pruning.prune(asked, reporter=Reporter(quiet=True))
        seen, step = [], training._Trainer.training_step

        def noted(self, model, inputs, *rest):
            rows = zip(inputs["input_ids"], inputs["labels"], strict=True)
            seen.append([ids[labels != -100].tolist() for ids, labels in rows])
            return step(self, model, inputs, *rest)

        patch.setattr(training._Trainer, "training_step", noted)
        done = heal(folder, "whole")
    return folder, done, seen


def in_this_process(patch, home):
    patch.setenv("HUBPRUNE_HOME", str(home))
    patch.setattr(verify, "NEW_TOKENS", 2)
    patch.setattr(
        verify, "_in_fresh_process", lambda action, request, answer, **_: loading._ACTIONS[action][1](request)
    )


def heal(folder, out):
    asked = HealRequest(
        str(folder / "pruned"), out=folder / out, steps=STEPS, held_out=6, base=str(folder / "base"),
        data=str(folder / "texts.jsonl"), learning_rate=0.01, device="cpu",
    )  # fmt: skip
    return workflow.heal(asked, reporter=Reporter(quiet=True))


def start(place, home, script, out, *launcher):
    (place / f"{out}.py").write_text(PRELUDE + script)
    environment = {**os.environ, "HUBPRUNE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(place / f"{out}.py"), str(place), out]
    return partial(subprocess.Popen, command, env=environment, text=True)


def test_a_healing_that_was_killed_goes_on_bit_for_bit_with_the_steps_that_are_left(place, tmp_path, monkeypatch):
    folder, whole, _ = place
    process = start(folder, tmp_path, HANGING, "killed")()
    while not (folder / "kept").exists() and process.poll() is None:
        sleep(0.1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "killed").exists()
    in_this_process(monkeypatch, tmp_path)
    computed, note = [], training._Watch.note_loss
    monkeypatch.setattr(training._Watch, "note_loss", lambda self, *told: (computed.append(1), note(self, *told)))
    again = heal(folder, "killed")
    assert len(computed) == STEPS - KILLED
    digests = {sha256((folder / name / "model.safetensors").read_bytes()).hexdigest() for name in ("whole", "killed")}
    assert len(digests) == 1
    assert again.record.curve == whole.record.curve
    assert not list((tmp_path / "healing").iterdir())


def test_two_processes_train_on_the_documents_of_one_and_come_to_the_same_weights(place, tmp_path):
    folder, whole, seen = place
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(folder, tmp_path, TOGETHER, "together", *launcher)(stderr=subprocess.PIPE)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert said.count("one set of weights") == 1
    first, second = (json.loads((folder / f"seen-{number}.json").read_text()) for number in (0, 1))
    assert [sorted(one + other) for one, other in zip(first, second, strict=True)] == [sorted(step) for step in seen]
    assert all(len(part) == 4 for part in first + second)
    before, one, other = (load_file(folder / n / "model.safetensors") for n in ("pruned", "whole", "together"))
    moved = max(float((one[name].float() - before[name].float()).abs().max()) for name in one)
    apart = max(float((one[name].float() - other[name].float()).abs().max()) for name in one)
    assert moved > 0.01
    assert apart < 1e-3 * moved
    record = json.loads((folder / "together" / "healing.json").read_text())
    assert record["tokens"] == whole.record.tokens
    for mine, theirs in zip(record["curve"], whole.record.curve, strict=True):
        assert mine["held_out"]["kl"] == pytest.approx(theirs.held_out.kl, rel=1e-3)
        assert mine["loss"] == (theirs.loss and pytest.approx(theirs.loss, rel=1e-3))
