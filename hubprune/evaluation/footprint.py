"""What memory a model takes: its KV cache, the most that a run needs, and the largest batch that fits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from hubprune.core.devices import held_bytes, run_to_end
from hubprune.core.errors import EvaluationError
from hubprune.evaluation.models import LoadedModel, is_memory_error, load_model, release_memory
from hubprune.evaluation.speed import SpeedSpec, answer, inputs

LIMIT = 4096
"""Where the search for the largest batch ends."""
STATUS = Path("/proc/self/status")
"""Where Linux tells the peak of a process.  `getrusage` would begin with the peak of the process that started it."""


def cache_bytes(model: LoadedModel, *, tokens: int) -> int:
    """Fill the KV cache of one sequence with so many tokens, and count its bytes."""
    return held_bytes(_run(model, SpeedSpec(depth=tokens, new_tokens=0, rounds=0)))


def allocated_peak(model: LoadedModel, spec: SpeedSpec) -> int | None:
    """Return the bytes of a model's weights and of the most that the allocator held beside them while it ran.

    Other models on the device do not count.  None where the device's allocator keeps no peak.
    """
    if not model.device.startswith("cuda"):
        return None
    release_memory()
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    _run(model, spec)
    return int(model.model.get_memory_footprint() + torch.cuda.max_memory_allocated(model.device) - before)


def _run(model: LoadedModel, spec: SpeedSpec) -> Any:
    """Run one shape, and return the KV cache."""
    with torch.inference_mode():
        return answer(model, inputs(model, spec), spec, between=lambda: None)


class ResidentRequest(BaseModel):
    """What a fresh process loads and runs."""

    folder: str
    dtype: str
    trust_remote_code: bool
    spec: SpeedSpec


def resident_peak(folder: Path, spec: SpeedSpec, *, dtype: str, trust_remote_code: bool) -> int | None:
    """Load a folder on the CPU in a fresh process, run one shape, and return the most bytes that were resident.

    Libraries and loading are part of it.  None where the system does not tell.

    Raises:
        EvaluationError: the process ended early.
    """
    if not STATUS.is_file():
        return None
    place = str(folder.resolve())
    request = ResidentRequest(folder=place, dtype=dtype, trust_remote_code=trust_remote_code, spec=spec)
    command = [sys.executable, "-m", "hubprune.evaluation.footprint"]
    done = run_to_end(command, input=request.model_dump_json(), capture_output=True, text=True)
    if done.returncode:
        raise EvaluationError(
            f"The fresh process that measures the memory of {folder} ended with code {done.returncode}.",
            hint="Most likely the memory was too small: ask for less depth or a smaller batch size.",
        )
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    """Read a request from stdin, write the peak in bytes as the last line of stdout."""
    request = ResidentRequest.model_validate_json(sys.stdin.read())
    own_code = request.trust_remote_code
    model = load_model(Path(request.folder), device="cpu", dtype=request.dtype, trust_remote_code=own_code)
    _run(model, request.spec)
    (line,) = (line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
    print(1024 * int(line.split()[1]))


def largest_batch(model: LoadedModel, *, depth: int, new_tokens: int) -> int:
    """Return the largest batch of prompts and new tokens that fits beside the weights; 0 where none does.

    Everything else on the device counts against it, so that another model has to be moved away first.
    """

    def fits(batch_size: int) -> bool:
        """Run a batch of this size."""
        try:
            _run(model, SpeedSpec(depth=depth, new_tokens=new_tokens, rounds=0, batch_size=batch_size))
        except RuntimeError as error:
            if not is_memory_error(error):
                raise
            return False
        finally:
            release_memory()
        return True

    return largest(fits, limit=LIMIT)


def largest(fits: Callable[[int], bool], *, limit: int) -> int:
    """Return the largest number up to a limit that fits, where all smaller ones do: by doubling, then by halving."""
    good, bad = 0, 1
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, limit + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


if __name__ == "__main__":
    main()
