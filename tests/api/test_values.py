"""What a call takes: values as Python has them, bounds as on the command line, and one Hub at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import hubprune
from hubprune.core import errors, memory, requests
from hubprune.core.options import options_of
from hubprune.core.privacy import use_endpoint
from hubprune.workflows import score
from hubprune.workflows.recipes import recipe_of


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("sweep", {"base": "a/b", "max_loss": -1}, "max_loss is -1.0, and has to be at least 0."),
        ("sweep", {"base": "a/b", "speed_rounds": 5}, "speed_rounds is 5, and has to be at least 20."),
        ("sweep", {"base": "a/b", "counts": 3}, "counts cannot be 3."),
        ("sweep", {"base": "a/b", "max_loss": "x"}, "max_loss cannot be 'x'."),
        ("speed", {"first": "a/b", "batch_size": 0}, "batch_size is 0, and has to be at least 1."),
        ("score", {"base": "a/b", "num_samples": 8.5}, "num_samples cannot be 8.5."),
        ("score", {"base": 3}, "base cannot be 3."),
        ("prune", {"base": "a/b", "out": None}, "out cannot be None."),
        ("load", {"checkpoint": "a/b", "device": None}, "device cannot be None."),
        ("load", {"checkpoint": "a/b", "endpoint": 3}, "endpoint cannot be 3."),
    ],
)
def test_a_value_that_the_command_line_would_refuse_is_an_error_that_names_the_option(name, arguments, told):
    with pytest.raises(errors.RecipeError) as caught:
        getattr(hubprune, name)(**arguments)
    assert caught.value.message == told
    assert caught.value.hint


@pytest.mark.parametrize("plain", [str, Path])
def test_a_folder_may_be_a_path(plain, tmp_path):
    """Each is taken for what it names: there is nothing there."""
    where = plain(tmp_path / "none")
    for call in (hubprune.verify, hubprune.load, hubprune.export_gguf, lambda path: hubprune.compare(path, path)):
        with pytest.raises(errors.HubpruneError):
            call(where)


def test_values_of_numpy_and_torch_are_taken_as_numbers_and_names():
    import numpy as np
    import torch

    from hubprune.api import _read

    kinds = requests.PublishRequest, requests.LoadRequest
    by_name = {asked.name: asked for kind in kinds for asked in options_of(kind)}
    assert _read(by_name["attn_drop"], np.int64(3)) == 3
    assert _read(by_name["attn_layers"], np.array([2, 5])) == [2, 5]
    assert _read(by_name["attn_layers"], {5, 2}) == [2, 5]
    assert _read(by_name["dtype"], torch.float16) == "torch.float16"
    assert _read(by_name["device"], torch.device("cpu")) == "cpu"


def test_an_endpoint_that_is_refused_changes_nothing_for_the_next_call(monkeypatch):
    import os

    import huggingface_hub.constants  # noqa: F401, it is bound to its Hub from now on

    here = os.environ["HF_ENDPOINT"]
    monkeypatch.setenv("HF_ENDPOINT", here)
    with pytest.raises(errors.RecipeError, match="different Hubs"):
        use_endpoint("http://127.0.0.1:1")
    assert os.environ["HF_ENDPOINT"] == here
    assert use_endpoint(None) == here


def test_the_endpoint_of_one_call_is_not_that_of_the_next(monkeypatch):
    monkeypatch.setattr("hubprune.core.privacy.check_endpoint", lambda endpoint: None)
    monkeypatch.setenv("HF_ENDPOINT", "https://mine")
    assert use_endpoint("https://other") == "https://other"
    assert use_endpoint(None) == "https://mine"


@pytest.mark.parametrize("tasks", ["none", " None ", ["none"], [], ()])
def test_no_tasks_may_be_asked_for_as_text_and_as_a_list(tasks):
    assert recipe_of(requests.PublishRequest("a/b", attn_drop=1, tasks=tasks)).evaluation.tasks == ()


@pytest.mark.parametrize("tasks", ["piqa, boolq", ["piqa", " boolq "], "piqa,boolq,piqa"])
def test_tasks_as_text_and_as_a_list_are_the_same(tasks):
    assert recipe_of(requests.PublishRequest("a/b", attn_drop=1, tasks=tasks)).evaluation.tasks == ("piqa", "boolq")


def test_a_number_of_bytes_is_kept_to_while_a_call_runs(monkeypatch):
    monkeypatch.setattr(score, "conduct", lambda request, reporter: SimpleNamespace(value=memory.told_limit()))
    assert hubprune.score("a/b", max_memory=8_000_000_000) == 8_000_000_000
    assert hubprune.score("a/b", max_memory="2GiB") == 2**31
    assert memory.told_limit() is None
    with pytest.raises(errors.RecipeError, match="too little"):
        hubprune.score("a/b", max_memory=8)
