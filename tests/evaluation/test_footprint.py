"""What memory models take: peaks, and the largest batch."""

import shutil
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from hubprune.core.errors import EvaluationError
from hubprune.evaluation import speed
from hubprune.evaluation.models import load_model
from hubprune.evaluation.speed import SpeedSpec

SPEC = SpeedSpec(depth=8, new_tokens=2, rounds=0)


@pytest.fixture(scope="module")
def model(base_folder):
    return load_model(base_folder, device="cpu", dtype="auto", trust_remote_code=False)


@given(st.integers(0, 300), st.integers(1, 200))
def test_the_search_finds_the_largest_that_fits_and_never_tries_beyond_the_limit(most, limit):
    tried = []
    found = speed.largest(lambda n: tried.append(n) or n <= most, limit=limit)
    assert found == min(most, limit)
    assert max(tried) <= limit
    assert len(tried) == len(set(tried)) <= 2 * limit.bit_length() + 1


def limited(forward, most, error):
    def run(self, input_ids, **kwargs):
        if input_ids.shape[0] > most:
            raise error
        return forward(self, input_ids, **kwargs)

    return run


def test_the_largest_batch_is_found_by_running_out_of_memory(model, monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    monkeypatch.setattr(LlamaForCausalLM, "forward", limited(LlamaForCausalLM.forward, 5, error))
    assert speed.largest_batch(model, depth=8, new_tokens=2) == 5


def test_another_error_ends_the_search(model, monkeypatch):
    error = RuntimeError("shapes cannot be multiplied")
    monkeypatch.setattr(LlamaForCausalLM, "forward", limited(LlamaForCausalLM.forward, 2, error))
    with pytest.raises(RuntimeError, match="shapes"):
        speed.largest_batch(model, depth=8, new_tokens=2)


def test_the_peak_of_a_gpu_is_the_weights_and_what_the_run_added(model, monkeypatch):
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
    assert speed.allocated_peak(model, SPEC) is None  # on a CPU there is no such allocator
    calls = []
    told = {"reset_peak_memory_stats": None, "memory_allocated": 10_000, "max_memory_allocated": 10_700}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name, value=value: calls.append(name) or value)
    monkeypatch.setattr(speed, "_run", lambda *_: calls.append("run"))
    on_gpu = speed.LoadedModel(model.model, model.tokenizer, "cuda:0", model.dtype)
    buffers = sum(b.numel() * b.element_size() for b in model.model.buffers())
    # The 10,000 bytes before the run are another model's, or this one's weights: they do not count twice.
    assert speed.allocated_peak(on_gpu, SPEC) == weights + buffers + 700
    assert calls == ["reset_peak_memory_stats", "memory_allocated", "run", "max_memory_allocated"]


def test_the_peak_of_a_process_is_its_own_and_holds_the_libraries(base_folder):
    found = speed.resident_peak(base_folder, SPEC, dtype="float32", trust_remote_code=False)
    assert 10**8 < found < 2 * 10**9  # torch alone takes more than the one, and nothing here as much as the other


def test_a_system_that_tells_no_peak_gives_none(base_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "STATUS", tmp_path / "absent")
    assert speed.resident_peak(base_folder, SPEC, dtype="float32", trust_remote_code=False) is None


def test_a_process_that_ends_early_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(EvaluationError, match="ended with code"):
        speed.resident_peak(tmp_path, SPEC, dtype="float32", trust_remote_code=False)
