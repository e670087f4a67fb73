"""Types that llama.cpp's own quantizer makes, from a file of plain values, in a process of its own.

The quantizer asserts and aborts where it does not like a file, and says why on stderr only: so it runs as
`python -m hubprune.exporting.quantizing`, JSON in.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from hubprune.core.artifacts import OUTTYPES, PLAIN_TYPES, Outtype
from hubprune.core.devices import run_to_end
from hubprune.core.errors import MissingDependencyError, RecipeError, VerificationError
from hubprune.core.extras import install
from hubprune.core.fresh import SAFE_PATH

if TYPE_CHECKING:
    from hubprune.exporting.tensors import GgufTensor

BITS: Mapping[Outtype, float] = {
    "q6_k": 6.6, "q5_k_m": 5.7, "q5_k_s": 5.6, "q4_k_m": 4.9, "q4_k_s": 4.7, "q3_k_l": 4.3, "q3_k_m": 4.0,
    "q3_k_s": 3.6, "q2_k": 3.4, "q5_1": 6.0, "q5_0": 5.6, "q4_1": 5.1, "q4_0": 4.6, "iq4_nl": 4.6, "iq4_xs": 4.4,
}  # fmt: skip
"""Bits per weight of a whole model, about: some tensors get better types than most.  For the room on the disk."""
FALLBACK_BITS = 8.6
"""The same where rows are no multiple of 256, and the quantizer takes other types for them."""
SUPERBLOCK = 256
"""Values of a row that k-quants take together."""
NEEDS_IMATRIX = ("iq1", "iq2", "iq3", "tq", "q2_k_s")
"""Beginnings of types that llama.cpp makes with an importance matrix only, or for models that were trained for them."""


class QuantizeRequest(BaseModel):
    """Make a quantized file of a plain one."""

    source: str
    target: str
    type: str
    """As llama.cpp's `LLAMA_FTYPE_MOSTLY_...` ends."""
    threads: int


def check_outtype(text: str) -> Outtype:
    """Return the type that a text names.

    Raises:
        RecipeError: it names none.
        MissingDependencyError: it takes llama.cpp's quantizer, which is not here.
    """
    name = text.lower()
    known: dict[str, Outtype] = {known: known for known in OUTTYPES}
    if name not in known:
        hint = f"There are {', '.join(OUTTYPES)}."
        if name.startswith(NEEDS_IMATRIX):
            hint = f"Types of fewer bits take an importance matrix, which export does not make. {hint}"
        raise RecipeError(f"There is no --outtype {text!r:.40}.", hint=hint)
    if name not in PLAIN_TYPES and importlib.util.find_spec("llama_cpp") is None:
        message = f"{name} is made by llama.cpp's quantizer, and llama-cpp-python is not installed."
        hint = f"{install('gguf')}; or choose one of {', '.join(PLAIN_TYPES)}."
        raise MissingDependencyError(message, hint=hint)
    return known[name]


def quantized_bytes(tensors: Sequence[GgufTensor], outtype: Outtype) -> int:
    """Return about how large a file becomes; 0 for types that no quantizer is needed for."""
    if outtype in PLAIN_TYPES:
        return 0
    values = sum(math.prod(tensor.shape) for tensor in tensors)
    fits = all(tensor.shape[-1] % SUPERBLOCK == 0 for tensor in tensors if len(tensor.shape) == 2)
    return math.ceil(values * (BITS[outtype] if fits else FALLBACK_BITS) / 8)


def quantize(source: Path, target: Path, outtype: Outtype) -> None:
    """Make a quantized file of a plain one.

    Raises:
        VerificationError: the quantizer failed; the message is what it said last.
    """
    request = QuantizeRequest(
        source=str(source.resolve()), target=str(target.absolute()), type=outtype.upper(), threads=os.cpu_count() or 1
    )
    command = [sys.executable, SAFE_PATH, "-m", "hubprune.exporting.quantizing"]
    done = run_to_end(command, input=request.model_dump_json(), capture_output=True, text=True, errors="replace")
    if done.returncode == 0 and target.is_file():
        return
    lines = [line.strip() for line in done.stderr.splitlines() if "rror" in line or "fail" in line or "ASSERT" in line]
    why = lines[-1] if lines else f"it ended with {done.returncode}"
    hint = "With 'No space left', free some; else choose another --outtype, such as q8_0, and report it."
    raise VerificationError(f"llama.cpp's quantizer made no {outtype}: {why:.200}", hint=hint)


def type_notes(file: Path, outtype: Outtype) -> tuple[str, ...]:
    """Say which matrices of a quantized file have another kind of type, since their rows do not fit."""
    from gguf import GGUFReader

    if not outtype.endswith(("_k", "_k_s", "_k_m", "_k_l", "iq4_xs")):
        return ()
    matrices = [tensor for tensor in GGUFReader(file).tensors if len(tensor.shape) == 2]
    other = [tensor.tensor_type.name.lower() for tensor in matrices if int(tensor.shape[0]) % SUPERBLOCK]
    if not other:
        return ()
    counted = ", ".join(f"{count} {name}" for name, count in Counter(other).most_common())
    return (
        f"{len(other)} of {len(matrices)} matrices have rows that are no multiple of {SUPERBLOCK} values, as {outtype} "
        f"wants them; llama.cpp's quantizer made them {counted}",
    )


def main() -> None:
    """Read a request from stdin and quantize."""
    import llama_cpp

    request = QuantizeRequest.model_validate_json(sys.stdin.read())
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{request.type}")
    options.nthread = request.threads
    failed = llama_cpp.llama_model_quantize(request.source.encode(), request.target.encode(), ctypes.byref(options))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
