"""Run folders in vLLM, each in a fork of one process that has imported it: that takes longer than a tiny model.

A plain script for vLLM's interpreter, called as `python many_vllm.py INSIDE.py JOBS`: a list of requests for INSIDE.py
comes in as JSON on stdin, and out go as many answers, a line each, or `{"error": ...}` with what was said.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path


def main() -> None:
    """Keep stdout for answers: vLLM prints there too."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = importlib.util.spec_from_file_location("inside", sys.argv[1])
    inside = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inside)
    from vllm import LLM  # noqa: F401

    waiting, running = list(enumerate(json.load(sys.stdin)))[::-1], {}
    with tempfile.TemporaryDirectory() as place:
        while waiting or running:
            while waiting and len(running) < int(sys.argv[2]):
                number, request = waiting.pop()
                log, answer = Path(place, f"{number}.log"), Path(place, f"{number}.json")
                running[forked(inside.ask_vllm, request, log, answer)] = number, log, answer
            pid, status = os.wait()
            number, log, answer = running.pop(pid)
            found = {"error": log.read_text(errors="replace")} if status else json.loads(answer.read_text())
            print(json.dumps({"number": number, **found}), file=out, flush=True)


def forked(ask, request, log: Path, answer: Path) -> int:
    """Answer a request in a fork, whose number is returned."""
    log.touch()
    if pid := os.fork():
        return pid
    code = 1
    try:
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream)
        answer.write_text(json.dumps({**ask(request), "seconds": 0}))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
