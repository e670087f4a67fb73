"""Commands of a card are run as they stand.  What stands in for a runtime's programs are scripts."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from hubprune.core.errors import VerificationError
from hubprune.runtimes.typed import Files, run_typed

SERVER = """
import json, os, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

model, rest = sys.argv[4], sys.argv[5:]  # -m vllm.entrypoints.openai.api_server --model ...
assert os.path.isfile(os.path.join(model, "config.json"))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({pids!r}, "w").write(str(child.pid))

class Handler(BaseHTTPRequestHandler):
    def answer(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        self.answer("")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/completions" and asked["prompt"] == [1, 2] and asked["model"] == model, asked
        self.answer(json.dumps({{"choices": [{{"text": {text!r}}}]}}))

    def log_message(self, *_):
        pass

HTTPServer(("127.0.0.1", int(rest[rest.index("--port") + 1])), Handler).serve_forever()
"""
PYTHON = """#!{real}
import os, runpy, sys
if sys.argv[1:2] == ["-m"]:
    exec(compile(open({server!r}).read(), "server", "exec"))
elif sys.argv[1:2] == ["-c"] or sys.argv[1:2] == ["-S"]:
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
else:
    sys.executable = {own!r}
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "out.put").mkdir()
    (tmp_path / "out.put" / "config.json").write_text("{}")
    return Files(repo_id="me/a-model", folder=tmp_path / "out.put", own_code=True, ids=(1, 2))


@pytest.fixture
def python(tmp_path):
    """An interpreter whose vLLM is a server that answers `text`, and whose `vllm` does not start."""

    def write(text="there"):
        place = tmp_path / "bin"
        place.mkdir(exist_ok=True)
        (tmp_path / "server.py").write_text(SERVER.format(pids=str(tmp_path / "pid"), text=text))
        own = str(place / "python")
        program(own, PYTHON.format(real=sys.executable, server=str(tmp_path / "server.py"), own=own))
        program(place / "vllm", f"#!{sys.executable}\nraise SystemExit('no package metadata was found')\n")
        return place / "python"

    return write


def program(path, text):
    Path(path).write_text(text)
    Path(path).chmod(0o755)


def test_the_first_command_that_makes_a_text_is_the_one_that_is_shown(python, files, tmp_path):
    command = run_typed("vllm", files, python=python())
    assert command == "python -m vllm.entrypoints.openai.api_server --model me/a-model --trust-remote-code"
    left = int((tmp_path / "pid").read_text())
    for _ in range(50):  # what the server had started goes with it
        if not alive(left):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {left} is left")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_server_that_says_nothing_made_no_text(python, files):
    with pytest.raises(VerificationError):
        run_typed("vllm", files, python=python(text=" "))


def test_a_program_finds_the_files_under_the_id_of_the_repo(files, tmp_path):
    script = "import os, sys; assert os.path.isfile(sys.argv[2] + '/config.json'); print(os.environ['HF_HUB_OFFLINE'])"
    program(tmp_path / "mlx_lm.generate", f"#!{sys.executable}\n{script}\n")
    command = run_typed("mlx", files, python=tmp_path / "python")
    assert command == "mlx_lm.generate --model me/a-model --prompt 'Paris is the capital of' --max-tokens 40"
    program(tmp_path / "mlx_lm.generate", f"#!{sys.executable}\nraise SystemExit('ValueError: not supported')\n")
    with pytest.raises(VerificationError, match="ValueError: not supported"):
        run_typed("mlx", files, python=tmp_path / "python")
    with pytest.raises(VerificationError, match=r"there is no .*mlx_lm.generate"):
        run_typed("mlx", files, python=tmp_path / "elsewhere" / "python")


def test_for_llama_cpp_the_export_is_shown_too_and_only_with_a_file(files, tmp_path):
    llama = "class Llama:\n    def __init__(self, path, verbose): self.path = open(path).read()\n"
    llama += "    def __call__(self, text, max_tokens): return {'choices': [{'text': text + self.path}]}\n"
    (tmp_path / "llama_cpp.py").write_text(llama)
    program(tmp_path / "python", f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    (tmp_path / "some.gguf").write_text(" France")
    given = Files(repo_id=files.repo_id, folder=files.folder, own_code=True, gguf=tmp_path / "some.gguf")
    first, second = run_typed("llama.cpp", given, python=tmp_path / "python").splitlines()
    assert first == "hubprune export gguf me/a-model --outtype f32 --out model.gguf"
    assert second.startswith("python -c 'from llama_cpp import Llama; ")
    with pytest.raises(VerificationError):
        run_typed("llama.cpp", files, python=tmp_path / "python")
