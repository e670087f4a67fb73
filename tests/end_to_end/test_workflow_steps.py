"""The shell of the workflow that others copy, and of `publish.yml`, run as a runner would, against a local Hub."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi
from little import TASK
from plain import WITHOUT_TORCH

WORKFLOWS = Path(__file__).parents[2] / "template" / ".github" / "workflows"
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
RECIPE = """
base: {repo_id: meta/tiny}
drop: {attn_layers: [1]}
calibration: {name: unused, subsets: [{dataset: meta/texts, config: plain, weight: 1}]}
evaluation: {tasks: [little], include_path: tasks, prompts: [The birds], max_new_tokens: 8, max_loss: {mean: 100}}
"""


class Runner:
    """Runs the `run:` blocks of a job in order, each with the environment that it declares and nothing else."""

    def __init__(self, hubprune, workspace, **values):
        self.hubprune, self.workspace, self.values = hubprune, workspace, values
        self.tools = workspace.parent / "bin"
        self.tools.mkdir()

    def __call__(self, workflow, job):
        """Return exit code, stderr, the summary and the outputs of a job's last step; installing is passed over.

        A job that installs without torch has none, whatever else is here.
        """
        steps = yaml.safe_load((WORKFLOWS / f"{workflow}.yml").read_text())["jobs"][job]["steps"]
        [install] = [step["name"] for step in steps if step.get("name", "").startswith("Install")] or ["Install"]
        program = ["-m", "hubprune"] if install == "Install" else ["-c", WITHOUT_TORCH]
        shim = self.tools / "hubprune"
        shim.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *program])} "$@"\n')
        shim.chmod(0o755)
        ended = [self._run(step) for step in steps if "run" in step and step["name"] != install]
        return ended[-1]

    def _run(self, step):
        files = {name: self.workspace.parent / name for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
        for file in files.values():
            file.write_text("")
        declared = {name: self._resolved(value) for name, value in step.get("env", {}).items()}
        inherited = self.hubprune.environment({})
        own = {name: str(file) for name, file in files.items()}
        environment = {
            **{k: v for k, v in inherited.items() if k != "HF_TOKEN"},
            **own,
            "PATH": f"{self.tools}:/usr/bin:/bin",
            **declared,
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            command, cwd=self.workspace, env=environment, capture_output=True, text=True, check=False, timeout=240
        )
        outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
        return done.returncode, done.stderr, files["GITHUB_STEP_SUMMARY"].read_text(), outputs

    def _resolved(self, text):
        """Put in what an expression stands for; one that this test does not know is a KeyError."""
        return EXPRESSION.sub(lambda found: self.values[found[1]], text)


@pytest.fixture
def workspace(tmp_path):
    folder = tmp_path / "workspace"
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "little.yaml").write_text(TASK)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def test_one_job_computes_without_any_token_and_the_other_sends_as_a_trusted_publisher(hubprune, hub, api, workspace):
    api.create_repo("acme/from-ci")
    hubprune.variables["HF_OIDC_ID_TOKEN"] = hub.trust("acme/from-ci")  # which the client asks GitHub for
    run = Runner(
        hubprune,
        workspace,
        **{
            "vars.HUBPRUNE_RECIPE || 'recipe.yaml'": "recipe.yaml",
            "vars.HUBPRUNE_REPO_ID": "acme/from-ci",
            "vars.HUBPRUNE_GATED_READER": "",
            "secrets.HF_READ_TOKEN": "",
            "secrets.HF_TOKEN": "",
            "secrets.HF_TOKEN == '' && vars.HUBPRUNE_REPO_ID || ''": "acme/from-ci",
        },
    )
    code, said, summary, outputs = run("republish", "build")
    assert code == 0, said
    assert outputs == {"outcome": "dry-run"}
    assert "needs a token, and there is none" in summary
    assert "| mean | " in summary
    assert len(api.list_repo_commits("acme/from-ci")) == 1

    code, said, summary, outputs = run("republish", "push")
    assert code == 0, said
    info = api.model_info("acme/from-ci")
    assert outputs["commit"] == info.sha
    assert (outputs["outcome"], outputs["created"]) == ("published", "true")
    assert "every file is what was sent; to load it back too: pip install" in said
    assert json.loads((workspace / "published.json").read_text())["loaded_back"] is None
    assert summary.startswith(f"## hubprune: Published\n\nacme/from-ci at [{info.sha[:12]}](")
    assert (workspace / "published.json").is_file()
    told = said + summary + (workspace / "published.json").read_text()
    assert "hf_jwt_" not in told
    assert hubprune.variables["HF_OIDC_ID_TOKEN"] not in told

    (workspace / "result" / "config.json").write_text("{}")
    code, said, summary, outputs = run("republish", "push")
    assert (code, outputs) == (1, {"outcome": "failed"})
    assert "config.json is not what the dry run left in result" in said
    assert r"config\.json is not what the dry run left" in summary
    shutil.rmtree(workspace / "result")
    code, said, summary, outputs = run("republish", "build")
    assert (code, outputs["outcome"], outputs["commit"]) == (0, "up-to-date", info.sha), said
    assert not (workspace / "result").exists()
    assert HfApi(endpoint=hub.endpoint).model_info("acme/from-ci").sha == info.sha


@pytest.mark.parametrize(("changed", "wanted"), [("", "true"), ("meta/tiny", "true"), ("meta/else", "false")])
def test_a_webhook_of_another_repo_is_none_of_the_recipes(hubprune, workspace, changed, wanted):
    values = {"vars.HUBPRUNE_RECIPE || 'recipe.yaml'": "recipe.yaml", "github.event.client_payload.repo": changed}
    code, said, summary, outputs = Runner(hubprune, workspace, **values)("republish", "select")
    assert (code, outputs) == (0, {"wanted": wanted}), said
    assert bool(summary) == (wanted == "false")
