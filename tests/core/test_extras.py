"""What is not installed is named with the command that adds it to this very copy."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from plain import WITHOUT_TORCH

from hubprune.core import extras
from hubprune.core.errors import MissingDependencyError

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "https://git.example/me/hubprune"
ORIGINS = {
    "index": ({}, "pip install 'hubprune[plots]'", "hubprune[plots]=="),
    "checkout": (
        {"url": "file:///home/me/my%20prune", "dir_info": {"editable": True}},
        "pip install -e '/home/me/my prune[plots]'", "hubprune[plots]==",
    ),
    "folder": ({"url": "file:///src/it", "dir_info": {}}, "pip install '/src/it[plots]'", "hubprune[plots]=="),
    "git": (
        {"url": REPO, "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
        f"pip install 'hubprune[plots] @ git+{REPO}@{COMMIT}'", f"hubprune[plots] @ git+{REPO}@{COMMIT}",
    ),
    "wheel": (
        {"url": "file:///tmp/hubprune-0.1.0-py3-none-any.whl", "archive_info": {}},
        "pip install 'hubprune[plots] @ file:///tmp/hubprune-0.1.0-py3-none-any.whl'", "hubprune[plots]==",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("origin", "command", "elsewhere"), ORIGINS.values(), ids=ORIGINS)
def test_an_extra_is_added_from_where_this_copy_came_from(monkeypatch, origin, command, elsewhere):
    class Distribution:
        def read_text(self, name):
            return json.dumps(origin) if origin and name == "direct_url.json" else None

    monkeypatch.setattr(extras, "distribution", lambda name: Distribution())
    assert extras.install("plots") == command
    assert extras.requirement("plots").startswith(elsewhere)
    assert shlex.split(command)[-1].count("[plots]") == 1


def test_every_extra_of_the_package_that_adds_something_is_known_with_what_it_brings():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["optional-dependencies"]
    assert declared.keys() >= extras.EXTRAS.keys()
    plain = " ".join(project["dependencies"]).replace("-", "_")
    for name, extra in extras.EXTRAS.items():
        brought = " ".join(declared[name]).replace("-", "_")
        assert [module for module in extra.modules if module not in brought] == []
        assert [module for module in extra.modules if f" {module}>" in plain] == []


def test_a_module_of_no_extra_is_a_bug_and_no_missing_extra():
    assert extras.missing(ModuleNotFoundError(name="hubprune.nowhere")) is None
    assert extras.missing(ModuleNotFoundError(name="torch.nowhere")) is None  # torch itself is there


# ---- the plain package -------------------------------------------------------------------------------------------


def plain(*arguments, **environment):
    """Run a command where nothing that loads models is installed."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("command", ["score a/b", "prune a/b --attn-drop 1 --out x", "verify x", "publish a/b", "demo"])
def test_what_loads_a_model_says_in_one_line_which_extra_it_takes(command):
    done = plain(*command.split())
    assert (done.returncode, done.stdout) == (1, "")
    told = f"error: hubprune {command.split()[0]} takes torch, which is not installed."
    assert done.stderr.splitlines() == [told, f"hint:  {extras.install('torch')}"]


def test_the_doctor_looks_at_the_rest(tmp_path):
    done = plain("doctor", "--json", HUBPRUNE_HOME=str(tmp_path))
    found = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["device"]["status"] == "warning"
    assert found["device"]["hint"] == extras.install("torch")
    assert found["extra torch"]["told"].startswith("not installed, and only needed for whatever loads a model: ")


def test_a_notebook_is_told_the_same():
    source = WITHOUT_TORCH.replace("from hubprune.cli import main; main()", "import hubprune; hubprune.score('a/b')")
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.splitlines()[-1] == (
        f"{MissingDependencyError.__module__}.MissingDependencyError: score takes torch, which is not installed. "
        f"{extras.install('torch')}"
    )
