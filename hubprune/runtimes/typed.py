"""Commands as a reader types them, each run as it stands before a card shows it.

They find the files under the id of the repo, as somebody would who has downloaded them, and the Hub nowhere.  A server
gets a port beside what is shown, and is asked for one completion.
"""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hubprune.core.artifacts import RuntimeName
from hubprune.core.devices import run_to_end
from hubprune.core.errors import VerificationError
from hubprune.core.files import scratch_folder
from hubprune.runtimes.asking import SCRIPT, environment, said

NEW_TOKENS = 40
GGUF = "model.gguf"
TWO_LINES = (
    "from llama_cpp import Llama; "
    'print(Llama("model.gguf", verbose=False)({prompt}, max_tokens={tokens})["choices"][0]["text"])'
)


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a command is run on."""

    repo_id: str
    folder: Path
    own_code: bool
    """Whether loading it in transformers runs its code, which is ours or trusted."""
    gguf: Path | None = None
    """What `hubprune export gguf` made of it."""
    prompt: str = "Paris is the capital of"
    ids: tuple[int, ...] = ()
    """Of the prompt."""


def commands(name: RuntimeName, files: Files) -> Iterator[list[str]]:
    """Yield the ways in which one runs a model with a runtime, the usual one first."""
    trust = ["--trust-remote-code"] if files.own_code else []
    tokens = str(NEW_TOKENS)
    if name == "vllm":
        yield ["vllm", "serve", files.repo_id, *trust]
        # The program of some builds does not start: it asks for the version of a package of another name.
        yield ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", files.repo_id, *trust]
    elif name == "mlx":
        yield ["mlx_lm.generate", "--model", files.repo_id, "--prompt", files.prompt, "--max-tokens", tokens]
    elif files.gguf:
        yield ["python", "-c", TWO_LINES.format(prompt=json.dumps(files.prompt), tokens=tokens)]


def run_typed(name: RuntimeName, files: Files, *, python: Path) -> str:
    """Run a model with a runtime as a reader would, and return the first command that made a text.

    Raises:
        VerificationError: none did; the message is what the last one said.
    """
    failed = VerificationError("there is no command for it")
    for command in commands(name, files):
        try:
            _run(name, command, files, python=python)
        except VerificationError as error:
            failed = error
            continue
        shown = shlex.join(command)
        if name == "llama.cpp":
            export = shlex.join(["hubprune", "export", "gguf", files.repo_id, "--outtype", "f32", "--out", GGUF])
            return f"{export}\n{shown}"
        return shown
    raise failed


def _run(name: RuntimeName, command: list[str], files: Files, *, python: Path) -> None:
    """Run one command line where the repo's id names the folder.

    Raises:
        VerificationError: it fails, or makes no text.
    """
    with scratch_folder(name="hubprune-typed") as work:
        link = work / "run" / files.repo_id
        link.parent.mkdir(parents=True)
        link.symlink_to(files.folder.resolve(), target_is_directory=True)
        if files.gguf:
            (work / "run" / GGUF).symlink_to(files.gguf.resolve())
        request = None
        if name == "vllm":
            (script := work / SCRIPT.name).write_bytes(SCRIPT.read_bytes())
            port = _free_port()
            served = [*command, "--host", "127.0.0.1", "--port", str(port)]
            request = {
                "runtime": "server", "command": served, "port": port, "model": files.repo_id, "prompts": [files.ids],
                "new_tokens": NEW_TOKENS,
            }  # fmt: skip
            line = [str(python), str(script)]
        else:
            program = python if command[0] == "python" else python.with_name(command[0])
            if not program.exists():
                raise VerificationError(f"there is no {program}")
            line = [str(program), *command[1:]]
        variables = environment(python, modules=work / "modules")
        variables.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        done = run_to_end(
            line, cwd=work / "run", env=variables, capture_output=True, text=True, errors="replace",
            **({"stdin": subprocess.DEVNULL} if request is None else {"input": json.dumps(request)}),
        )  # fmt: skip
    printed = done.stdout if request is None or done.returncode else json.loads(done.stdout)["printed"]
    if done.returncode or not printed.strip():
        raise VerificationError(said(done, name=files.repo_id))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
