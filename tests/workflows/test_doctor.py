"""Looking before anything is computed: what is found, that nothing is written, and what a command exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bases import LLAMA, write_base
from huggingface_hub import try_to_load_from_cache
from on_hub import commit_files
from typer.testing import CliRunner

from hubprune.cli import app
from hubprune.core.requests import DoctorRequest, PublishRequest
from hubprune.hub.session import HubSession
from hubprune.workflows import doctor as looking
from hubprune.workflows.doctor import check_publish, doctor


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, user):
    """A work folder, a token, and a file to be scored on."""
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "work"))
    monkeypatch.setenv("HF_TOKEN", user[1])
    monkeypatch.setattr(looking, "ROWS", 4)
    monkeypatch.setattr(looking, "WIDTH", 64)
    (tmp_path / "texts.txt").write_text("Text about birds.\n" * 4)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Path(write_base(tmp_path_factory.mktemp("base") / "base", LLAMA).folder)


@pytest.fixture(scope="module")
def on_hub(admin, base):
    admin.create_repo("doctor/base")
    commit_files(admin, "doctor/base", {path.name: path.read_bytes() for path in base.iterdir()})
    return "doctor/base"


def found(seen):
    return {finding.name: (finding.status, finding.told) for finding in seen.findings}


def asked(base, tmp_path, **changes):
    values = {"attn_drop": 1, "tasks": "none", "calibration": str(tmp_path / "texts.txt"), "num_samples": 2}
    return PublishRequest(base, **{**values, **changes})


def test_without_a_base_machine_token_and_hub_are_looked_at(user, hub, reporter):
    seen = found(doctor(DoctorRequest(), reporter=reporter))
    assert {"python", "CPU", "device", "memory", "HF_HOME", "HUBPRUNE_HOME", "extra plots", "extra gguf"} <= seen.keys()
    assert seen["Hub"] == ("ok", f"{hub.endpoint} answers")
    assert seen["token"] == ("ok", f"of {user[0]}, role write")


def test_without_a_token_that_is_a_warning_and_no_error(monkeypatch, reporter, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    seen = doctor(DoctorRequest(), reporter=reporter)
    assert found(seen)["token"][0] == "warning"
    assert not [finding for finding in seen.findings if finding.status == "error"]


def test_without_a_network_nothing_else_is_asked_of_the_hub_and_a_folder_is_looked_at(base, reporter, monkeypatch):
    away = "http://127.0.0.1:9"
    monkeypatch.setattr(looking, "open_session", lambda endpoint: HubSession(endpoint=away))
    seen = doctor(DoctorRequest("meta-llama/Llama-3.2-3B"), reporter=reporter)
    assert [(f.name, f.status) for f in seen.findings if f.status == "error"] == [("Hub", "error")]
    assert f"no connection to {away}" in found(seen)["Hub"][1]
    seen = doctor(DoctorRequest(str(base)), reporter=reporter)
    assert found(seen)["base"][0] == "ok"
    assert [f.name for f in seen.findings if f.status == "error"] == ["Hub"]


@pytest.mark.parametrize("where", ["folder", "Hub"])
def test_a_config_and_an_index_are_enough_to_tell_what_a_base_needs(admin, tmp_path, reporter, where):
    """The weights of Llama-3.1-70B are nowhere near."""
    config = {
        **LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256, "torch_dtype": "bfloat16",
    }  # fmt: skip
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    index = {"metadata": {"total_size": 141_107_412_992}, "weight_map": {"lm_head.weight": "model-00001-of-00030"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if where == "Hub":
        admin.create_repo("doctor/large")
        commit_files(admin, "doctor/large", {path.name: path.read_bytes() for path in folder.iterdir()})
    base = "doctor/large" if where == "Hub" else str(folder)
    seen = doctor(DoctorRequest(base, tasks="none"), reporter=reporter)
    assert "80 layers, about 70.55 G parameters, 141.11 GB in bfloat16" in found(seen)["base"][1]
    assert [need.stage for need in seen.stages][:4] == ["download", "scores", "write", "verify"]
    assert seen.stages[1].read == 141_107_412_992


def test_a_publish_that_could_go_ahead_is_said_to_and_nothing_is_downloaded(admin, on_hub, user, tmp_path, reporter):
    seen = check_publish(asked(on_hub, tmp_path), reporter=reporter)
    assert {name: status for name, (status, _) in found(seen).items()} == {
        "device": "ok", "base": "ok", "disk": "ok", "weights": "ok", "token": "ok", "licence": "warning",
        "target": "ok", "calibration": "ok", "tasks": "ok",
    }  # fmt: skip
    assert found(seen)["target"][1] == f"{user[0]}/base-attn-drop-1 is new, in one commit"
    assert not seen.failed
    assert [need.stage for need in seen.stages] == [
        "download", "scores", "write", "verify", "free text", "snippet, load back",
    ]  # fmt: skip
    weights = (file.path for file in admin.list_repo_tree(on_hub) if file.path.endswith(".safetensors"))
    assert not [name for name in weights if isinstance(try_to_load_from_cache(on_hub, name), str)]
    assert {path.name for path in (tmp_path / "work").rglob("*")} <= {"stages", "checked.json"}


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({"license": "mit", "repo_id": "nobody-else/x"}, "target", "may not"),
        ({"calibration": "no-such-mix"}, None, "no-such-mix"),
        ({"tasks": "no_such_task"}, "tasks", "no_such_task"),
        ({"attn_drop": 99}, "base", "99"),
    ],
)
def test_what_would_stop_a_publish_is_an_error_with_what_to_do(on_hub, tmp_path, reporter, changes, name, told):
    if name is None:
        with pytest.raises(looking.HubpruneError, match=told):
            check_publish(asked(on_hub, tmp_path, **changes), reporter=reporter)
        return
    seen = check_publish(asked(on_hub, tmp_path, **changes), reporter=reporter)
    assert seen.failed
    (error,) = (finding for finding in seen.findings if finding.status == "error")
    assert error.name == name
    assert told in error.told


def test_the_command_prints_a_table_or_json_and_exits_by_what_it_found(base, on_hub, tmp_path):
    texts = str(tmp_path / "texts.txt")
    arguments = ["publish", on_hub, "--attn-drop", "1", "--tasks", "none", "--calibration", texts, "--check"]
    plain = CliRunner().invoke(app, [*arguments, "--num-samples", "2"])
    assert plain.exit_code == 0, plain.output
    for text in ("ok    base", "one model after the other", "together about"):
        assert text in plain.stdout
    wrong = CliRunner().invoke(app, ["publish", on_hub, "--attn-drop", "99", "--tasks", "none", "--check", "--json"])
    assert wrong.exit_code == 1
    assert json.loads(wrong.stdout)["findings"][-1]["status"] == "error"
    elsewhere = CliRunner().invoke(app, [*arguments, "--on", "hf-jobs", "--flavor", "x"])
    assert elsewhere.exit_code == 2
    assert "--check looks at this machine" in elsewhere.output
