"""A published repo is served by `vllm serve` from a Hub, and answers the OpenAI client as transformers does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from little import CommandLine, put_on_hub, write_files
from served import NEW_TOKENS, PROMPTS, config_of, weights

REPO = "local/tiny-attn-drop-2"
SECONDS = 420
"""How long a server may take until it answers: it imports vLLM in two processes."""
CLIENT = """
import json, sys
from openai import OpenAI
address, model, prompts, tokens = json.load(sys.stdin)
client = OpenAI(base_url=address, api_key="none", max_retries=0)
assert [model.id for model in client.models.list()] == [model]
done = client.completions.create(
    model=model, prompt=prompts, max_tokens=tokens, temperature=0, logprobs=0,
    extra_body={"ignore_eos": True, "return_token_ids": True},
)
chosen = sorted(done.choices, key=lambda choice: choice.index)
print(json.dumps([{"ids": choice.token_ids, "logprobs": choice.logprobs.token_logprobs} for choice in chosen]))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub of its own; heads of 8 numbers, as other bases of the tests have, are too small for vLLM on a CPU."""
    pytest.importorskip("starlette")
    from bases import write_base
    from huggingface_hub import HfApi

    from hubprune.localhub import running_hub

    base = tmp_path_factory.mktemp("base") / "tiny"
    write_base(base, config_of("llama"), weights(config_of("llama")))
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n")
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        put_on_hub(HfApi(endpoint=running.endpoint, token=running.token), base)
        yield running


@pytest.fixture(scope="module")
def hubprune(hub, tmp_path_factory):
    return CommandLine(hub, write_files(tmp_path_factory.mktemp("home")), hub.token)


@pytest.fixture(scope="module")
def published(vllm_python, hubprune):
    """The id of a repo without the attentions of the first layer and another."""
    done = hubprune("publish", "meta/tiny", "--attn-layers", "0,3", "--tasks", "none", "--prompts", "prompts.txt",
                    "--repo-id", REPO, "--runtimes", "none")  # fmt: skip
    assert done.code == 0, done.err
    return REPO


@pytest.fixture(scope="module")
def address(vllm_python, hubprune, published, tmp_path_factory):
    """Where `vllm serve` answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = tmp_path_factory.mktemp("serve")
    log = place / "log"
    variables = {
        "HF_TOKEN": "", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(named_vllm(vllm_python, place)),
    }  # fmt: skip
    options = ["--trust-remote-code", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    with log.open("w") as out:
        server = subprocess.Popen(
            [str(vllm_python.with_name("vllm")), "serve", published, *options, "--port", str(port)],
            env=hubprune.environment(variables), cwd=hubprune.home, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        answers(server, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def named_vllm(python: Path, folder: Path) -> Path:
    """Return what has to be on the path of the `vllm` command, which asks for the version of a package of that name.

    The package of vllm-cpu has another, and so its command ends before it reads its arguments.
    """
    asked = "from importlib.metadata import version; version('vllm')"
    if subprocess.run([str(python), "-c", asked], stderr=subprocess.DEVNULL, check=False).returncode:
        (folder / "vllm-0+cpu.dist-info").mkdir()
        (folder / "vllm-0+cpu.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0+cpu\n")
    return folder


def answers(server: subprocess.Popen, port: int, log: Path) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-4000:]
        with socket.socket() as door:
            if door.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])


@pytest.mark.timeout(900)
def test_the_openai_client_gets_what_transformers_computes(vllm_python, hubprune, published, address):
    from huggingface_hub import HfApi

    from hubprune.runtimes import reference

    asked = json.dumps([address, published, PROMPTS, NEW_TOKENS])
    done = subprocess.run([str(vllm_python), "-c", CLIENT], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    api = HfApi(endpoint=hubprune.hub.endpoint, token=hubprune.token)
    folder = api.snapshot_download(published, local_dir=hubprune.home / "downloaded")
    texts = [reference.Text(prompt=prompt, ids=text["ids"]) for prompt, text in zip(PROMPTS, said, strict=True)]
    told = reference.answer(reference.ReferenceRequest(folder=folder, own_code=True, texts=texts))
    assert [list(row.best) for row in told.rows] == [text["ids"] for text in said]
    for text, row in zip(said, told.rows, strict=True):
        assert text["logprobs"] == pytest.approx(list(row.logprobs), abs=1e-4)
    assert {len(text["ids"]) for text in said} == {NEW_TOKENS}
