"""Run a checkpoint in one runtime and say what it computed: a plain script for the interpreter of that runtime.

vLLM, mlx-lm and llama-cpp-python have environments of their own, in which this package is not installed: nothing of it
is imported here.  A request comes in as JSON on stdin (`Asked` of `hubprune.runtimes.asking`), the answer goes out as
JSON on stdout (`Answer`).  Whatever a runtime prints is sent to stderr.

Every prompt is continued greedily, past the end of a text, and each token that was chosen comes with the logarithm of
its probability, by which the continuation can be held against transformers.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Request = dict[str, Any]
Found = dict[str, Any]
START_SECONDS = 3600
"""How long a server may take until it answers; a large model is read from a disk first."""
MARGIN = 16
"""Positions beside prompt and new tokens, in which vLLM counts blocks."""


def main() -> None:
    """Answer one request; stdout holds nothing else."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        request = json.load(sys.stdin)
        start = time.monotonic()
        answer = RUNTIMES[request["runtime"]](request)
        json.dump({**answer, "seconds": round(time.monotonic() - start, 2)}, out)
        out.flush()
        sys.stderr.flush()
        os._exit(0)  # what a runtime does at its end is none of the answer


def versions_of(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def longest(request: Request) -> int:
    """Return the positions that the longest prompt needs with its continuation."""
    return int(max(map(len, request["prompts"]))) + int(request["new_tokens"])


# ---- vLLM ------------------------------------------------------------------------------------------------------------


def ask_vllm(request: Request) -> Found:
    """Run a folder in vLLM, in this one process."""
    import vllm
    from vllm import LLM, SamplingParams

    wanted = min(request["positions"], longest(request) + MARGIN)
    llm = LLM(
        model=request["model"], dtype=request["dtype"], trust_remote_code=request["trust_remote_code"],
        enforce_eager=True, max_model_len=wanted, max_num_seqs=len(request["prompts"]), seed=0, **request["options"],
    )  # fmt: skip
    tokens = request["new_tokens"]
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0)
    given: Any = [{"prompt_token_ids": row} for row in request["prompts"]]
    texts = []
    for done in llm.generate(given, sampling, use_tqdm=False):
        [made] = done.outputs
        chosen = zip(made.logprobs, made.token_ids, strict=True)
        texts.append({"ids": list(made.token_ids), "logprobs": [float(at[token].logprob) for at, token in chosen]})
    config = llm.llm_engine.vllm_config
    tokenizer = llm.get_tokenizer()
    return {
        "versions": {"vllm": vllm.__version__, **versions_of("transformers", "torch")},
        "architecture": llm.apply_model(_class_of)[0],
        "texts": texts,
        "tokens": [list(tokenizer(text).input_ids) for text in request["texts"]],
        "device": str(getattr(config.device_config, "device_type", "")) or None,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "kv_blocks": config.cache_config.num_gpu_blocks,
        "kv_block_tokens": config.cache_config.block_size,
        "kv_layers": len(config.compilation_config.static_forward_context) or None,
    }


def _class_of(model: Any) -> str:
    return f"{type(model).__module__.removeprefix('vllm.model_executor.models.')}.{type(model).__name__}"


# ---- mlx-lm ----------------------------------------------------------------------------------------------------------


def ask_mlx(request: Request) -> Found:
    """Run a folder in mlx-lm."""
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.models.cache import make_prompt_cache

    loaded: Any = load(request["model"])
    model, tokenizer = loaded[0], loaded[1]
    if request["dtype"] != "auto":
        model.set_dtype(getattr(mx, request["dtype"]))

    def continued(row: list[int]) -> Found:
        """Continue one text, always by the most likely token."""
        ids, logprobs, cache, fed = list[int](), list[float](), make_prompt_cache(model), mx.array([row])
        for _ in range(request["new_tokens"]):
            logits = model(fed, cache=cache)[0, -1].astype(mx.float32)
            token = int(mx.argmax(logits).item())
            logprobs.append(float((logits[token] - mx.logsumexp(logits)).item()))
            ids.append(token)
            fed = mx.array([[token]])
        return {"ids": ids, "logprobs": logprobs}

    return {
        "versions": versions_of("mlx-lm", "mlx", "transformers"),
        "architecture": f"{type(model).__module__.removeprefix('mlx_lm.models.')}.{type(model).__name__}",
        "texts": [continued(row) for row in request["prompts"]],
        "tokens": [list(tokenizer.encode(text)) for text in request["texts"]],
        "device": str(mx.default_device()).partition("(")[2].partition(",")[0] or None,
        "dtype": request["dtype"],
        "kv_layers": len(make_prompt_cache(model)),
    }


# ---- llama.cpp -------------------------------------------------------------------------------------------------------

F32 = 0
"""`GGML_TYPE_F32`."""


def ask_llama(request: Request) -> Found:
    """Run a GGUF file in llama.cpp on the CPU, with its KV cache in float32 and without flash attention."""
    import llama_cpp

    room = longest(request)
    llama = llama_cpp.Llama(
        request["model"], n_ctx=room, n_batch=room, n_ubatch=room, n_gpu_layers=0, logits_all=True, flash_attn=False,
        type_k=F32, type_v=F32, verbose=True,
    )  # fmt: skip

    def continued(row: list[int]) -> Found:
        """Continue one text, always by the most likely token."""
        ids, logprobs, fed = list[int](), list[float](), row
        llama.reset()
        for _ in range(request["new_tokens"]):
            llama.eval(fed)
            logits = llama.scores[llama.n_tokens - 1].astype("float64")
            token = int(logits.argmax())
            top = float(logits.max())
            logprobs.append(float(logits[token]) - top - math.log(float(math.fsum(_exponentials(logits - top)))))
            ids.append(token)
            fed = [token]
        return {"ids": ids, "logprobs": logprobs}

    return {
        "versions": versions_of("llama_cpp_python"),
        "architecture": llama.metadata["general.architecture"],
        "texts": [continued(row) for row in request["prompts"]],
        "tokens": [llama.tokenize(text.encode(), add_bos=True, special=True) for text in request["texts"]],
        "device": "cpu",
        "dtype": request["dtype"],
    }


def _exponentials(values: Any) -> Any:
    import numpy as np

    return np.exp(values)


# ---- a server --------------------------------------------------------------------------------------------------------


def ask_server(request: Request) -> Found:
    """Start the server that a command line names, and let it continue a prompt over HTTP as a client of OpenAI's asks.

    `command` is what is typed, found beside this interpreter; the first prompt is sent as token ids.
    """
    import signal
    import subprocess

    program, *rest = request["command"]
    place = sys.executable if program == "python" else str(Path(sys.executable).with_name(program))
    server = subprocess.Popen([place, *rest], start_new_session=True)
    # A server has processes of its own, which go on if it is killed: once this one is gone, so is their group.
    end = f"import os, sys; sys.stdin.read(); os.killpg({server.pid}, 9)"
    watcher = subprocess.Popen(
        [sys.executable, "-S", "-c", end], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        address = f"http://127.0.0.1:{request['port']}"
        end_of_waiting = time.monotonic() + START_SECONDS
        while not _get(f"{address}/health"):
            if server.poll() is not None:
                raise RuntimeError(f"{program} ended with {server.returncode} before it answered")
            if time.monotonic() > end_of_waiting:
                raise RuntimeError(f"{program} did not answer within {START_SECONDS // 60} minutes")
            time.sleep(0.5)
        body = {
            "model": request["model"], "prompt": request["prompts"][0], "max_tokens": request["new_tokens"],
            "temperature": 0,
        }  # fmt: skip
        said = _get(f"{address}/v1/completions", body)
        if said is None:
            raise RuntimeError(f"{program} serves the model, and did not answer")
        return {"printed": json.loads(said)["choices"][0]["text"]}
    finally:
        server.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        watcher.communicate()
        server.wait()


def _get(address: str, body: Any = None) -> bytes | None:
    """Return what is there, or None where nobody answers yet."""
    from urllib.error import HTTPError
    from urllib.request import Request as HttpRequest
    from urllib.request import urlopen

    data = None if body is None else json.dumps(body).encode()
    asked = HttpRequest(address, data=data, headers={"Content-Type": "application/json"})
    try:
        with urlopen(asked, timeout=600) as answer:
            return bytes(answer.read()) or b"{}"
    except HTTPError as error:
        raise RuntimeError(f"{address} answered {error.code}: {error.read()[:400]!r}") from error
    except OSError:
        return None


RUNTIMES = {"vllm": ask_vllm, "mlx": ask_mlx, "llama.cpp": ask_llama, "server": ask_server}

if __name__ == "__main__":
    main()
