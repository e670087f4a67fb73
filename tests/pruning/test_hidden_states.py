"""Hidden states that are too many for memory are kept in a mapped file, and nothing else changes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from hubprune.core import streaming
from hubprune.core.architectures import ARCHITECTURES
from hubprune.core.artifacts import CalibrationRecord, CalibrationSource
from hubprune.core.errors import DiskSpaceError
from hubprune.core.streaming import empty_states
from hubprune.pruning.calibration import CalibrationSet, Document
from hubprune.pruning.importance import Scoring, score

CPU = torch.device("cpu")


@pytest.fixture
def documents():
    """Seven random documents of different lengths."""
    made = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 256, (length,), generator=made).tolist() for length in (40, 3, 17, 17, 1, 33, 8)]
    source = CalibrationSource(
        dataset="random", config=None, split="train", commit=None, weight=1.0, documents=7, tokens=sum(map(len, rows))
    )
    record = CalibrationRecord(
        mix="random", sources=(source,), max_tokens=40, seed=1, shuffle_buffer=1, token_sha256="0" * 64
    )
    return CalibrationSet(tuple(Document(0, tuple(row)) for row in rows), record)


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(streaming, "available_bytes", lambda: 0)


@pytest.fixture
def mapped_files(monkeypatch):
    """The sizes, in elements, of the files that were mapped."""
    sizes, really = [], torch.from_file

    def from_file(name, **options):
        sizes.append(options["size"])
        return really(name, **options)

    monkeypatch.setattr(torch, "from_file", from_file)
    return sizes


def scores_of(llama, documents, reporter, dtype):
    how = Scoring(architecture=ARCHITECTURES["llama"], batch_size=2, dtype=dtype)
    return score(Path(llama.folder), documents, how, reporter=reporter)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_the_same_from_a_mapped_file(llama, documents, reporter, dtype, mapped_files, monkeypatch):
    in_memory = scores_of(llama, documents, reporter, dtype)
    assert mapped_files == []
    monkeypatch.setattr(streaming, "available_bytes", lambda: 0)
    assert scores_of(llama, documents, reporter, dtype) == in_memory
    padded_tokens = 2 * 40 + 2 * 17 + 2 * 8 + 1
    assert mapped_files == [padded_tokens * 32]


def test_states_go_to_a_file_where_they_would_take_over_half_of_the_memory(mapped_files, monkeypatch):
    monkeypatch.setattr(streaming, "available_bytes", lambda: 2 * 4 * 600)
    empty_states([(10, 10, 4), (5, 10, 4)], torch.float32, CPU)
    assert mapped_files == []
    states = empty_states([(10, 10, 4), (5, 10, 4), (1, 1, 4)], torch.float32, CPU)
    assert mapped_files == [604]
    assert [tuple(s.shape) for s in states] == [(10, 10, 4), (5, 10, 4), (1, 1, 4)]


def test_the_file_is_gone_at_once_and_the_states_live_on(no_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one, other = empty_states([(2, 3), (4, 5)], torch.bfloat16, CPU)
    one.fill_(1.0)
    other.fill_(2.0)
    assert list(tmp_path.iterdir()) == []
    assert one.sum() == 6.0
    assert other.sum() == 40.0


def test_states_that_no_disk_holds_are_refused_before_anything_is_written(no_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DiskSpaceError, match=rf"take 4000.00 TB, which neither memory nor {tmp_path} has free"):
        empty_states([(10**6, 10**9)], torch.float32, CPU)
    assert list(tmp_path.iterdir()) == []
