"""What a run computes on: its processes, device and dtype, and the machine.

`torchrun` and `accelerate launch` start several processes.  The first one runs the command.  The others follow it: they
load the models that it loads and compute their share.

The command line starts with this module: nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.core import __version__
from hubprune.core.errors import RecipeError

if TYPE_CHECKING:
    from hubprune.core.artifacts import Environment

PROGRESS = re.compile(r"\d%\|")
"""What a line of tqdm has in it."""
NAMED_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)(:|$)")
"""How the last paragraph of a traceback begins; its message may have more lines."""
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What tells a process that it is one of several; a program that it starts by itself is none of them."""
COMPUTE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
"""The dtypes that a run can compute in."""
NAMED_OTHERWISE = {"float": "float32", "half": "float16"}
"""What torch calls two of them as well, and a config.json may."""
STORED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""dtypes of safetensors that a model can be built in."""
BFLOAT16_UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"})
"""Capabilities of CPUs, Intel's and AMD's, then ARM's, that multiply matrices of bfloat16."""
CPU_INFO = Path("/proc/cpuinfo")
NVIDIA = Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0")
TORCH_BUILDS = "https://pytorch.org/get-started/locally"
LIBRARIES = ("torch", "transformers", "huggingface_hub", "hf-xet", "datasets", "lm_eval", "safetensors", "tokenizers")


def rank() -> int:
    """Return the number of this process among those of the run; the first is 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return its number among those on this machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of processes on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def spare() -> None:
    """Let this process, and those that it starts, spend no CPU time on waiting, and little on looking for garbage.

    To be called before torch is loaded.  By default each of its threads spins for a while after every operation: on a
    small model, or where other programs want the processors too, that can take several times what is computed.  And
    loading the libraries makes 400,000 objects that stay: a fifth of that time went to looking through them.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.set_threshold(50_000, 20, 100)


# ---- programs that are started ---------------------------------------------------------------------------------------


def run_to_end(
    command: Sequence[str], *, listen: Callable[[str], object] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program and return how it ended; on Linux it never outlives this process, not even one that is killed.

    The options are those of `subprocess.run`.  With `listen`, which is called with each line of its stdout as it comes,
    text is what goes in and out, and all that it writes is captured.
    """
    first: Callable[[], None] | None = None
    if sys.platform == "linux":
        import ctypes

        parent, prctl, set_signal = os.getpid(), ctypes.CDLL(None, use_errno=True).prctl, 1

        def ask() -> None:
            """Ask, in the new process, for a SIGKILL once this one is gone."""
            prctl(set_signal, signal.SIGKILL)
            if os.getppid() != parent:  # it went before anybody could be asked
                os._exit(1)

        first = ask
    if listen is not None:
        return _listened(command, listen, preexec_fn=first, **options)
    pipe, given, seconds = subprocess.PIPE, options.pop("input", None), options.pop("timeout", None)
    options |= {"stdout": pipe, "stderr": pipe} if options.pop("capture_output", False) else {}
    options |= {} if given is None else {"stdin": pipe}
    with _started(command, preexec_fn=first, **options) as process:
        try:
            out, errors = process.communicate(given, timeout=seconds)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, errors)


def _listened(
    command: Sequence[str], listen: Callable[[str], object], *, input: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    pipe, lines = subprocess.PIPE, []
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,  # a pipe could fill up unread
        _started(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, **options) as process,
    ):
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(input)
            for line in process.stdout:
                lines.append(line)
                listen(line)
            process.wait()
        except BaseException:
            process.kill()
            raise
        errors.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, "".join(lines), errors.read())


def _started(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a program; an interruption waits until it runs: Python drops those that come amid a fork, with noise."""
    handlers, came = dict[int, Any](), list[int]()
    for number in (signal.SIGINT, signal.SIGTERM):
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(number)):
            handlers[number] = signal.signal(number, lambda number, _frame: came.append(number))
    try:
        process = subprocess.Popen(command, **options)
    finally:
        for which, handler in handlers.items():
            signal.signal(which, handler)
    if came:
        process.kill()
        process.communicate()
        signal.raise_signal(came[0])
    return process


def last_words(stderr: str) -> str:
    """Return the line of a process's stderr that says why it ended: the error, or the last line that is no progress."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr) if line.strip() and not PROGRESS.search(line)]
    errors = [line for line in lines if NAMED_ERROR.match(line)]
    return (errors or lines or ["it ended without a word."])[-1]


# ---- device and dtype ------------------------------------------------------------------------------------------------


def resolve_device(device: str) -> str:
    """Return the device that a name stands for; `auto` is the first GPU, else the CPU.

    Raises:
        RecipeError: it names none, or this machine has no such device.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", device, re.ASCII):
        raise RecipeError(f"There is no device {device!r:.60}.", hint="Pass auto, cpu, mps, cuda or cuda:N.")
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    number = int(device.partition(":")[2] or 0)
    if device.startswith("cuda") and number >= torch.cuda.device_count():
        raise RecipeError(f"This machine has no device {device!r}.", hint="Leave --device out, or pass --device cpu.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("This machine has no device 'mps'.", hint="Leave --device out, or pass --device cpu.")
    return device


def stored_dtype(config: Mapping[str, Any]) -> str:
    """Return the dtype that config.json names, of those that a run can compute in, else float32.

    Where it names none, transformers takes that of the weights: see `with_dtype`.
    """
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    named = NAMED_OTHERWISE.get(named, named)
    return named if named in COMPUTE_BITS else "float32"


def resolve_dtype(dtype: str, config: Mapping[str, Any], *, device: str | None = None) -> str:
    """Return the dtype that a name stands for on a device; None for any, as of files.

    `auto` is the one that config.json names where the device computes it natively; else float16 on a GPU, whose older
    ones know no bfloat16, and float32 on a CPU: there half precision without units of its own is several times slower.
    """
    stored = stored_dtype(config)
    if dtype != "auto":
        return dtype
    if device is None or computes(stored, device):
        return stored
    return "float16" if device.startswith("cuda") else "float32"


def computes(dtype: str, device: str) -> bool:
    """Tell whether a device has units of its own for a dtype."""
    import torch

    if dtype == "float32" or device == "mps":
        return True
    if device.startswith("cuda"):
        return dtype == "float16" or bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
    return dtype == "bfloat16" and not cpu_capabilities().isdisjoint(BFLOAT16_UNITS)


def why_cast(config: Mapping[str, Any], *, computed: str, device: str) -> str | None:
    """Say why a run that was told no dtype computes in another than the files have; None where it is theirs."""
    if computed == (stored := stored_dtype(config)):
        return None
    return f"the {'GPU' if device.startswith('cuda') else 'CPU'} has no units for {stored}"


def cpu_capabilities() -> frozenset[str]:
    """Return what this machine's CPU can do, by the names of `torch.cpu.get_capabilities`, which Linux uses too."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):  # since torch 2.11 or so
        return frozenset(name for name, found in torch.cpu.get_capabilities().items() if found is True)
    told = CPU_INFO.read_text(encoding="utf-8", errors="replace") if CPU_INFO.is_file() else ""
    flags = (line.partition(":")[2].split() for line in told.splitlines() if line.startswith(("flags", "Features")))
    return frozenset(name for line in flags for name in line)


def with_dtype(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a config.json that names a dtype: where it names none, the one that transformers takes from the weights.

    That is the one which their index names, or that of the first file's first floating tensor by name.
    """
    if config.get("dtype") or config.get("torch_dtype"):
        return dict(config)
    from safetensors import safe_open

    from hubprune.core.strict import parse_json

    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    files = [single] if single.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not single.is_file() and index.is_file():
        named = (parse_json(index.read_bytes(), where=str(index)).get("metadata") or {}).get("dtype")
        if isinstance(named, str):
            return {**config, "dtype": named}
    with safe_open(files[0], framework="np") as weights:
        kinds = [weights.get_slice(name).get_dtype() for name in sorted(weights.keys())]
    return {**config, "dtype": next((STORED[kind] for kind in kinds if kind in STORED), "float32")}


def unused_gpu(device: str) -> str | None:
    """Say which GPU of this machine a run on a device leaves alone, and what to do about it; None where there is none.

    Even a build of torch that knows nothing of NVIDIA's can tell from their driver's files that one is there.
    """
    import torch

    if device != "cpu":
        return None
    if torch.cuda.is_available():
        return f"--device cpu leaves {torch.cuda.get_device_name(0)} unused: leave it out to compute there"
    if torch.backends.mps.is_available():
        return "--device cpu leaves the GPU of this machine unused: leave it out to compute there"
    if not (any(path.exists() for path in NVIDIA) or shutil.which("nvidia-smi")):
        return None
    there, cuda = f"this machine has an NVIDIA GPU, and torch {torch.__version__}", torch.version.cuda
    if cuda is None:
        return f"{there} is a build that cannot use it: see {TORCH_BUILDS}"
    return f"{there} finds none: its driver may be too old for CUDA {cuda}"


# ---- the machine -----------------------------------------------------------------------------------------------------


def describe_environment(*, device: str = "cpu") -> Environment:
    """Describe this machine and its libraries; for a GPU, `device` names which."""
    from hubprune.core.artifacts import Environment

    machine = None
    if device.startswith("cuda"):
        import torch

        machine = str(torch.cuda.get_device_name(device))
    elif CPU_INFO.is_file():
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        machine = next(named, None)
    # torch takes as many threads as the process may use processors, unless OMP_NUM_THREADS says otherwise.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return Environment(
        hubprune=__version__, python=platform.python_version(),
        machine=platform.processor() or platform.machine() if machine is None else machine,
        platform=f"{platform.system()} {platform.machine()}",
        threads=min(allowed, int(wanted)) if wanted.isdigit() else allowed, versions=library_versions(),
    )  # fmt: skip


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a run goes through, of those that are installed."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
