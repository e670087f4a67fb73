"""How runtimes are found and asked.  The interpreters here are stand-ins: scripts that answer as a runtime's would."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from hubprune.core.errors import MissingDependencyError, RecipeError, VerificationError
from hubprune.core.extras import install
from hubprune.runtimes import asking
from hubprune.runtimes.asking import Asked

STAND_IN = """#!{python}
import json, os, sys
if sys.argv[1] == "-c":  # asked what it has
    print(json.dumps({{"vllm": "9.9"}} if sys.argv[3] == "vllm" else None))
else:
    request = json.load(sys.stdin)
    {act}
"""
ANSWER = """
    print(json.dumps({
        "versions": {"vllm": "9.9", "transformers": "5.0"}, "architecture": "Some", "seconds": 1.0, "tokens": [],
        "texts": [{"ids": [len(row)], "logprobs": [-0.5]} for row in request["prompts"]], "kv_blocks": 7,
        "device": " ".join([os.environ.get("HF_HUB_OFFLINE", ""), os.environ.get("PYTHONPATH", "none"),
                            os.path.basename(request["model"]), os.environ.get("RANK", "none")]),
    }))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Write an interpreter that does one thing when it is asked, and name it as vLLM's."""
    monkeypatch.setattr(asking.importlib.util, "find_spec", lambda name: None)  # whatever this environment has
    for runtime in asking.RUNTIMES.values():
        monkeypatch.delenv(runtime.variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(act=ANSWER, *, name="python", named=True):
        path = tmp_path / name
        path.write_text(STAND_IN.format(python=sys.executable, act=act.strip()))
        path.chmod(0o755)
        if named:
            monkeypatch.setenv("HUBPRUNE_VLLM_PYTHON", str(path))
        asking.versions.cache_clear()
        return path

    yield write
    asking.versions.cache_clear()


def asked(tmp_path, **changes):
    (tmp_path / "some.model-v1").mkdir(exist_ok=True)
    values = {"runtime": "vllm", "model": str(tmp_path / "some.model-v1"), "prompts": ((1, 2, 3),), "new_tokens": 1}
    return Asked(**{**values, **changes})


def test_a_variable_names_the_interpreter(stand_in):
    path = stand_in()
    assert asking.find("vllm") == path
    assert asking.find("mlx") is None


def test_a_variable_that_names_no_such_interpreter_is_an_error_with_how_to_install(stand_in, monkeypatch):
    monkeypatch.setenv("HUBPRUNE_MLX_PYTHON", str(stand_in()))  # which has vLLM alone
    with pytest.raises(RecipeError, match="no Python that can import mlx_lm") as error:
        asking.find("mlx")
    assert install("mlx") in str(error.value.hint)
    monkeypatch.setenv("HUBPRUNE_MLX_PYTHON", "/no/such/python")
    with pytest.raises(RecipeError):
        asking.find("mlx")


def test_a_folder_of_that_name_is_no_runtime_and_nothing_in_this_folder_is_run(tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "json.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("HUBPRUNE_VLLM_PYTHON", raising=False)
    if importlib.util.find_spec("vllm").origin is None:  # none is installed here
        assert asking.find("vllm") is None
    asking.versions.cache_clear()
    python = Path(sys.executable)
    assert asking.versions(python, "pytest")["pytest"] == pytest.__version__
    assert asking.versions(python, "vllm") is None or importlib.util.find_spec("vllm").origin
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("first", ["#!{python}\n", "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"])
def test_the_program_on_the_path_says_which_interpreter_it_has(stand_in, tmp_path, first):
    path = stand_in(named=False)
    (tmp_path / "vllm").write_text(first.format(python=path) + "from vllm import main\n")
    (tmp_path / "vllm").chmod(0o755)
    assert asking.find("vllm") == path
    (tmp_path / "vllm").write_text("#!/bin/sh\necho\n")
    assert asking.find("vllm") is None


def test_a_runtime_that_is_not_there_is_an_error_that_names_the_next_step(stand_in):
    with pytest.raises(MissingDependencyError) as error:
        asking.require("vllm")
    assert "pip install vllm" in error.value.hint
    assert "HUBPRUNE_VLLM_PYTHON" in error.value.hint


def test_it_is_asked_offline_in_an_environment_of_its_own(stand_in, tmp_path, monkeypatch):
    python = stand_in()
    monkeypatch.setenv("PYTHONPATH", "/of/this/process")
    monkeypatch.setenv("RANK", "0")
    answer = asking.ask(asked(tmp_path), python=python)
    assert (answer.texts[0].ids, answer.texts[0].logprobs, answer.kv_blocks) == ((3,), (-0.5,), 7)
    assert answer.device == "1 none model none"  # whatever the folder is called


def test_what_it_says_when_it_gives_up_is_the_message(stand_in, tmp_path):
    python = stand_in("sys.exit('(Worker pid=1) noise\\nValueError: Model type %s not supported' % request['model'])")
    with pytest.raises(VerificationError, match=r"^ValueError: Model type it not supported$"):
        asking.ask(asked(tmp_path), python=python)


@pytest.mark.parametrize(
    ("stderr", "told"),
    [
        ("[rank0]: Traceback\n[rank0]: ValueError: Layer 8\n[rank0]:[W] destroyed", "ValueError: Layer 8"),
        ("pydantic.ValidationError: 1 error\n  Value error, The repository it is [type=x]", "Value error, The repo"),
        ("llama_model_load: error loading model: wrong shape\nValueError: Failed to load", "error loading model"),
        ("ValueError: Received 144 parameters not in model:\nmodel.a,\nmodel.b.", "not in model: model.a,"),
        ("", "it ended without a word"),
    ],
)
def test_of_many_words_the_telling_ones_are_taken(stderr, told):
    done = asking.subprocess.CompletedProcess([], 1, "", stderr)
    assert told in asking.said(done, name="/x")


def test_a_runtime_that_is_killed_is_told_of(stand_in, tmp_path):
    python = stand_in("os.kill(os.getpid(), 9)")
    with pytest.raises(VerificationError, match="killed by signal 9"):
        asking.ask(asked(tmp_path), python=python)


def test_an_answer_that_is_none_is_no_answer(stand_in, tmp_path):
    with pytest.raises(VerificationError):
        asking.ask(asked(tmp_path), python=stand_in("print(json.dumps({'versions': {}}))"))


def test_names_are_known_or_refused():
    assert asking.known("mlx, vLLM,mlx") == ("mlx", "vllm")
    assert asking.known(["llama.cpp"]) == ("llama.cpp",)
    for wrong in ("sglang", "", []):
        with pytest.raises(RecipeError, match="runtime") as error:
            asking.known(wrong)
        assert "vllm, llama.cpp, mlx" in error.value.hint


def test_the_script_of_a_runtime_needs_nothing_of_this_package(tmp_path):
    source = asking.SCRIPT.read_text(encoding="utf-8")
    assert "import hubprune" not in source
    assert "from hubprune" not in source
    env = {"PATH": os.environ["PATH"]}
    done = asking.run_to_end(
        [sys.executable, "-I", str(asking.SCRIPT)], input=json.dumps({"runtime": "none"}), env=env, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == ""
    assert "KeyError: 'none'" in done.stderr
