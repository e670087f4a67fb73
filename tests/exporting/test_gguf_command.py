"""`hubprune export gguf` as a user meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from exported import base, export, pruned
from typer.testing import CliRunner

from hubprune.cli import app
from hubprune.core.artifacts import GgufExport, ParityFigures
from hubprune.core.extras import install
from hubprune.exporting import bounds, parity
from hubprune.exporting.parity import ParitySeen

PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
SAME = ParityFigures(
    positions=100,
    agreed=100,
    undecided=0,
    max_logit_difference=1e-5,
    relative_difference=1e-6,
    greedy_texts=4,
    equal_greedy_texts=4,
    tokenized_texts=12,
    equal_tokenized_texts=12,
)


@pytest.fixture
def folder(tmp_path):
    return pruned(base(tmp_path / "b"), tmp_path / "pruned", attn=[2], mlp=[4])


def run(*arguments):
    return CliRunner().invoke(app, ["export", "gguf", *map(str, arguments)], env=PLAIN)


def without_llama_cpp(monkeypatch):
    monkeypatch.setattr(parity, "obstacle", lambda folder: "llama-cpp-python is not installed (pip install ...)")


def test_the_command_explains_itself():
    done = run("--help")
    assert done.exit_code == 0
    assert "Usage: hubprune export gguf" in done.output
    assert {"--out", "--outtype", "--base", "--revision", "--endpoint", "--json", "--no-verify"} <= set(
        re.findall(r"--[a-z-]+", done.output)
    )


def test_a_file_that_could_not_be_compared_is_said_to_be_unverified(folder, tmp_path, monkeypatch):
    without_llama_cpp(monkeypatch)
    done = run(folder, "--out", tmp_path / "x.gguf")
    assert done.exit_code == 0, done.output
    *_, written, said = done.stdout.splitlines()
    assert written == f"written: {tmp_path / 'x.gguf'}"
    assert said == "not verified: llama-cpp-python is not installed (pip install ...)"
    assert (tmp_path / "x.gguf").stat().st_size > 1000


def test_a_missing_llama_cpp_python_is_named_with_its_installation(folder, monkeypatch):
    monkeypatch.setattr(parity.importlib.util, "find_spec", lambda name: None)
    assert parity.obstacle(folder) == f"llama-cpp-python is not installed ({install('gguf')})"


def test_a_model_that_does_not_fit_into_memory_is_not_compared(folder, monkeypatch):
    monkeypatch.setattr(parity.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(parity, "available_bytes", lambda: 1000)
    assert re.fullmatch(
        r"transformers would need .* kB of memory in float32, and 1.00 kB are free", parity.obstacle(folder)
    )


def test_json_holds_everything_and_reads_back(folder, tmp_path):
    done = run(folder, "--out", tmp_path / "x.gguf", "--outtype", "Q8_0", "--no-verify", "--json")
    made = GgufExport.model_validate_json(done.stdout)
    assert (made.outtype, made.layers, made.architecture) == ("q8_0", 5, "deci")
    assert (made.layers_without_attention, made.layers_without_mlp) == ((2,), (4,))
    assert (made.parity, made.not_verified) == (None, "--no-verify was passed")
    assert made.size == (tmp_path / "x.gguf").stat().st_size


def test_the_file_is_named_after_the_checkpoint_and_its_type(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(folder, "--no-verify").exit_code == 0
    assert (tmp_path / "pruned-F16.gguf").is_file()


def test_out_is_a_folder_for_files_of_several_types(folder, tmp_path):
    for kind in ("f16", "q8_0"):
        assert run(folder, "--no-verify", "--out", tmp_path / "files", "--outtype", kind).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["pruned-F16.gguf", "pruned-Q8_0.gguf"]
    again = run(folder, "--no-verify", "--out", tmp_path / "files")
    assert "pruned-F16.gguf exists already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere/"], 1, "nowhere/ is neither a folder nor a repo id."),
        (["x", "--outtype", "q4_k"], 2, "There is no --outtype 'q4_k'."),
    ],
)
def test_a_request_that_cannot_be_right_is_an_error_in_one_line(arguments, code, message, tmp_path):
    done = run(*arguments, "--out", tmp_path / "x.gguf")
    assert (done.exit_code, done.stdout) == (code, "")
    assert f"error: {message}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_comparison_that_fails_removes_the_file(folder, tmp_path, monkeypatch):
    wrong = SAME.model_copy(update={"agreed": 40, "max_logit_difference": 3.0})
    seen = ParitySeen(figures=wrong, first_different_text=None, transformers="5", llama_cpp_python="0")
    monkeypatch.setattr(parity, "obstacle", lambda folder: None)
    monkeypatch.setattr(parity, "measure", lambda *given, **named: seen)
    done = run(folder, "--out", tmp_path / "x.gguf", "--outtype", "f32")
    assert done.exit_code == 1
    assert "a logit differs by 3.00e+00; another next token at 60 of 100 positions" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "pruned"]


def test_the_lines_show_the_figures_beside_those_of_the_control(folder, tmp_path, monkeypatch):
    seen = ParitySeen(figures=SAME, first_different_text=None, transformers="5", llama_cpp_python="0")
    monkeypatch.setattr(parity, "obstacle", lambda folder: None)
    monkeypatch.setattr(parity, "measure", lambda *given, **named: seen)
    done = run(folder, "--out", tmp_path / "x.gguf", "--base", tmp_path / "b")
    assert done.exit_code == 0, done.output
    assert re.search(r"llama.cpp against transformers +this model +unpruned base\n", done.stdout)
    assert re.search(r"same next token +100 of 100 +100 of 100\n", done.stdout)
    assert f"written and verified: {tmp_path / 'x.gguf'}" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "pruned", "x.gguf"]


def test_a_base_that_is_not_here_is_said_to_be_missing(folder, tmp_path, monkeypatch):
    seen = ParitySeen(figures=SAME, first_different_text=None, transformers="5", llama_cpp_python="0")
    monkeypatch.setattr(parity, "obstacle", lambda folder: None)
    monkeypatch.setattr(parity, "measure", lambda *given, **named: seen)
    made = export(folder, tmp_path / "x.gguf")
    assert made.parity.without_control == "the base tiny is not on this machine; pass --base FOLDER_OR_REPO"


def test_a_base_of_which_only_a_part_is_here_is_no_control(folder, tmp_path, monkeypatch):
    seen = ParitySeen(figures=SAME, first_different_text=None, transformers="5", llama_cpp_python="0")
    monkeypatch.setattr(parity, "obstacle", lambda folder: None)
    monkeypatch.setattr(parity, "measure", lambda *given, **named: seen)
    (tmp_path / "b" / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["hubprune"]["base_model"] = str(tmp_path / "b")
    (folder / "config.json").write_text(json.dumps(config))
    made = export(folder, tmp_path / "x.gguf")
    assert made.parity.without_control.startswith(f"the base {tmp_path / 'b'} cannot be exported (")


def test_code_of_the_checkpoint_is_never_run(folder, tmp_path):
    pytest.importorskip("llama_cpp")
    (folder / "modeling_pruned_llama.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert export(folder, tmp_path / "x.gguf", outtype="f32").parity.failures == ()
    assert not (tmp_path / "ran").exists()


# ---- the rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, True),
        ({"agreed": 99, "undecided": 1}, True),
        ({"agreed": 99}, False),
        ({"max_logit_difference": 1.1e-3}, False),
        ({"equal_greedy_texts": 3}, False),
        ({"equal_tokenized_texts": 11}, False),
    ],
)
def test_float32_has_to_agree_in_everything(changes, passes):
    assert (bounds.failures("f32", SAME.model_copy(update=changes), None) == ()) is passes


@pytest.mark.parametrize(
    ("relative", "control", "passes"),
    [(0.03, None, True), (0.11, None, False), (0.03, 0.02, True), (0.09, 0.02, False), (0.009, 0.0001, True)],
)
def test_rounded_types_are_held_to_a_limit_and_to_the_control(relative, control, passes):
    model = SAME.model_copy(update={"relative_difference": relative, "agreed": 90, "max_logit_difference": 0.3})
    other = None if control is None else SAME.model_copy(update={"relative_difference": control})
    assert (bounds.failures("q8_0", model, other) == ()) is passes


def test_a_control_that_fails_fails_the_export():
    other = SAME.model_copy(update={"agreed": 50})
    assert bounds.failures("f32", SAME, other) == ("control: another next token at 50 of 100 positions",)


def test_exporting_is_loaded_only_where_it_is_asked_for():
    source = "import sys, hubprune.cli; print([m for m in sys.modules if 'exporting' in m or m in ('gguf', 'numpy')])"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
    assert Path(parity.__file__).is_file()
