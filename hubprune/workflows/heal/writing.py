"""What a training leaves: the healed checkpoint, written and verified as any other, and the adapters by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import BaseCheckpoint, DropPlan, HealingRecord, Verification, WrittenCheckpoint
from hubprune.core.config import CONFIG_NAME, read_structure, write_json
from hubprune.core.console import Reporter
from hubprune.core.files import scratch_folder, staged_folder
from hubprune.core.strict import parse_json
from hubprune.pruning import checkpoint, verify
from hubprune.pruning.checkpoint import read_back, take_inventory
from hubprune.pruning.layouts import make_runnable
from hubprune.workflows.healed import HEALED, RECORD, told_of_healed


def write_healed(
    healed: BaseCheckpoint, plan: DropPlan, out: Path, *, how: str, record: HealingRecord | None, reporter: Reporter
) -> tuple[WrittenCheckpoint, Verification]:
    """Write a healed checkpoint and verify it against the base with the trained tensors; then it appears.

    Args:
        healed: the base with the trained tensors in it.
        how: what config.json says of the training.

    Raises:
        VerificationError: it does not compute what it should.
    """
    architecture = read_structure(healed.config).architecture
    with scratch_folder(out.absolute().parent, name=out.name) as work, staged_folder(out) as staged:
        total = sum(path.stat().st_size for path in Path(healed.folder or "").rglob("*.safetensors"))
        with reporter.progress("writing", total=total, unit="B") as advance:
            checkpoint.write_checkpoint(healed, plan, staged, advance=advance)
        config = parse_json((staged / CONFIG_NAME).read_bytes(), where=CONFIG_NAME)
        config["hubprune"] = {**config["hubprune"], HEALED: how}
        write_json(config, staged)
        runnable = make_runnable(healed, work / "base")
        stored = runnable.weights()
        read = read_back(stored, staged, plan=plan, architecture=architecture)
        seen: Verification = verify.verify(
            runnable, staged, plan=plan, config=healed.config, architecture=architecture, read=read, reporter=reporter
        )
        verify.require_passed(seen)
        if record:
            (staged / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        written = take_inventory(
            stored, staged, plan=plan, config=healed.config, architecture=architecture, known=read.files
        )
    reporter.note(f"verified in a fresh process: {len(seen.checks)} checks passed")
    return written, seen.model_copy(update={"checks": told_of_healed(seen.checks, how)})


def write_adapter(student: Any, plan: DropPlan, out: Path, *, of: str) -> None:
    """Write the adapters of a student that was trained, for peft to put on the pruned model `of`.

    In memory the layers have the base's numbers; in the files they have those of the pruned model.
    """
    import torch
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    prefix, numbers = f"{student.get_base_model().base_model_prefix}.layers.", plan.published_numbers

    def renamed(name: str) -> str:
        """Give a name that leads into a layer the number that it has in the pruned model."""
        before, found, rest = name.partition(prefix)
        if not found:
            return name
        number, _, inside = rest.partition(".")
        return f"{before}{prefix}{numbers[int(number)]}.{inside}"

    [config] = student.peft_config.values()
    values = config.to_dict() | {
        "base_model_name_or_path": of, "inference_mode": True,
        "target_modules": sorted(renamed(name) for name in config.target_modules),
    }  # fmt: skip
    tensors = get_peft_model_state_dict(student)
    with staged_folder(out) as staged:
        text = json.dumps(values, indent=2, sort_keys=True, default=str)
        (staged / "adapter_config.json").write_text(f"{text}\n", encoding="utf-8")
        save_file(
            {renamed(name): tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()},
            staged / "adapter_model.safetensors", metadata={"format": "pt"},
        )  # fmt: skip
