from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hubprune.core.errors import EvaluationError
from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation import generation, harness
from hubprune.evaluation.models import load_model

NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.fixture
def folder(pruned_folder, tmp_path):
    """A pruned folder that may be changed."""
    return shutil.copytree(pruned_folder, tmp_path / "changed")


def load(folder):
    return load_model(folder, device="cpu", dtype="auto", trust_remote_code=True)


@pytest.mark.parametrize("named", [["tokenization_own.Own", None], [None, "tokenization_own.Own"]])
def test_code_of_a_tokenizer_is_never_run(folder, tmp_path, named):
    marker = tmp_path / "marker"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    auto_map = {"AutoTokenizer": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    (folder / "tokenization_own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import PreTrainedTokenizerFast\n"
        f"Path({str(marker)!r}).touch()\n"
        "class Own(PreTrainedTokenizerFast):\n"
        "    pass\n"
    )
    assert load(folder).tokenizer("a")["input_ids"]
    assert not marker.exists()


def test_a_folder_may_have_any_name(pruned_folder, tmp_path):
    long = shutil.copytree(pruned_folder, tmp_path / ("a-b." * 40))  # transformers makes 600 characters of it
    assert type(load(long).model).__name__ == "PrunedLlamaForCausalLM"


def test_weights_are_never_unpickled(folder):
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        load(folder)


@pytest.fixture
def fail(monkeypatch):
    """Let a method of a model raise an error."""

    def let(owner, name, error):
        def raise_it(*args, **kwargs):
            raise error

        monkeypatch.setattr(owner, name, raise_it)

    return let


@pytest.fixture
def benchmark(base_folder, task_folder, reporter):
    def run():
        spec = EvaluationSpec(tasks=("pets",), include_path=str(task_folder), batch_size=3)
        return harness.run(
            *[harness.ModelFolder(base_folder)] * 2, spec=spec, seed=0, device="cpu", dtype="auto", reporter=reporter
        )

    return run


@pytest.fixture
def write(base_folder, reporter):
    def run():
        request = generation.Request(prompts=("Why?",), max_new_tokens=2)
        folders = [harness.ModelFolder(base_folder)] * 2
        with harness.Pair(*folders, device="cpu", dtype="auto", reporter=reporter) as pair:
            return generation.compare(pair, request, reporter=reporter)

    return run


@pytest.mark.parametrize("error", NO_MEMORY)
def test_benchmarks_without_memory_for_a_single_row_say_what_to_pass(error, fail, benchmark):
    fail(LlamaForCausalLM, "forward", error)
    with pytest.raises(EvaluationError, match="out of memory over a single row") as caught:
        benchmark()
    assert "--dtype bfloat16" in caught.value.hint


@pytest.mark.parametrize("error", NO_MEMORY)
def test_free_text_without_memory_says_what_to_ask_less_of(error, fail, write):
    fail(LlamaForCausalLM, "forward", error)
    with pytest.raises(EvaluationError, match="out of memory while it continued a single prompt") as caught:
        write()
    assert "max_new_tokens" in caught.value.hint


@pytest.mark.parametrize("error", NO_MEMORY)
def test_a_model_too_large_to_load_is_named(error, fail, folder):
    fail(AutoModelForCausalLM, "from_pretrained", error)
    with pytest.raises(EvaluationError, match=r"out of memory while loading .*changed"):
        load(folder)


def test_other_errors_of_a_model_pass_through(fail, benchmark, write):
    fail(LlamaForCausalLM, "forward", RuntimeError("shapes cannot be multiplied"))
    for run in (benchmark, write):
        with pytest.raises(RuntimeError, match="shapes"):
            run()
