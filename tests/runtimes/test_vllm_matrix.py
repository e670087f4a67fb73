"""What vLLM computes of every family and layout is what transformers computes, and its KV cache fits what is left.

Choose families with `-k "llama or granite"`; HUBPRUNE_RUNTIMES_TABLE=FILE writes what was seen as a table.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from served import NEW_TOKENS, POSITIONS, PROMPTS, Served, matrix, write_folder

from hubprune.runtimes import asking, reference
from hubprune.runtimes.comparing import compare

pytestmark = pytest.mark.timeout(3000)  # the first test waits for the answers of all
KV_BYTES = 2**30
JOBS = 2
DISTINCT = 40
"""Tokens that are said at least, of 240: a model that always says the same is equal in any runtime."""


@pytest.fixture(scope="module")
def answers(request, tmp_path_factory, vllm_python):
    """What vLLM says of each of the folders whose tests were selected, with the folder."""
    root = tmp_path_factory.mktemp("served")
    asked = [item.callspec.params["served"] for item in request.session.items if item.fspath == request.fspath]
    folders = [write_folder(served, root) for served in asked]
    script = Path(__file__).with_name("many_vllm.py")
    environment = asking.environment(vllm_python, modules=root / "modules")
    done = subprocess.run(
        [str(vllm_python), str(script), str(asking.SCRIPT), str(JOBS)],
        input=json.dumps([question(*both).model_dump() for both in zip(asked, folders, strict=True)]),
        env={**environment, "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": str(KV_BYTES // 2**30)},
        cwd=root, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    said = {line.pop("number"): line for line in map(json.loads, done.stdout.splitlines())}
    seen = {served: (folder, said[i]) for i, (served, folder) in enumerate(zip(asked, folders, strict=True))}
    rows = {}
    yield seen, rows
    if table := os.environ.get("HUBPRUNE_RUNTIMES_TABLE"):
        write_table(Path(table), rows)


def question(served: Served, folder: Path) -> asking.Asked:
    return asking.Asked(
        runtime="vllm", model=str(folder), prompts=PROMPTS, new_tokens=NEW_TOKENS, texts=("Hello, world",),
        trust_remote_code=served.layout != "stock", positions=POSITIONS,
        options={} if served.model_impl == "auto" else {"model_impl": served.model_impl},
    )  # fmt: skip


@pytest.mark.parametrize("served", matrix(), ids=lambda served: served.name)
def test_vllm_computes_what_transformers_computes(answers, served):
    seen, rows = answers
    folder, said = seen[served]
    assert "error" not in said, said["error"][-3000:]
    answer = asking.Answer(**said)
    texts = [reference.Text(prompt=prompt, ids=text.ids) for prompt, text in zip(PROMPTS, answer.texts, strict=True)]
    own_code = served.layout != "stock"
    told = reference.answer(reference.ReferenceRequest(folder=str(folder), own_code=own_code, texts=texts))
    run = compare("vllm", answer, told.rows)
    distinct = len({token for text in answer.texts for token in text.ids})
    blocks = served.kv_blocks(KV_BYTES, answer.kv_block_tokens)
    rows[served.name] = (run.architecture, f"{run.equal_texts}/{run.texts}", f"{run.largest_difference:.1e}",
                         f"{run.kv_blocks}/{blocks}", distinct, run.versions)  # fmt: skip
    assert distinct >= DISTINCT
    assert run.equal_texts == run.texts == 20, run.detail
    assert run.largest_difference <= 1e-4, run.detail
    assert (run.kv_blocks, run.kv_layers) == (blocks, served.attentions), "the KV cache is that of the attentions left"
    assert ("transformers." in run.architecture) == served.by_transformers


def write_table(path: Path, rows) -> None:
    """Write what was seen, with the versions that it was seen with."""
    versions = {name: value for *_, found in rows.values() for name, value in found.items()}
    lines = [", ".join(f"{name} {value}" for name, value in sorted(versions.items())), ""]
    lines += ["| folder | vLLM's class | equal texts | log-probabilities | KV blocks seen/expected | distinct tokens |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(map(str, row[:-1]))} |" for name, row in rows.items()]
    path.write_text("\n".join(lines) + "\n")
