"""The workflows: linted, pinned, with no more rights than they need, and the lines of the README that call one."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATE = ROOT / "template" / ".github" / "workflows"
PIN = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
EXPRESSION = re.compile(r"\$\{\{.*?\}\}", re.DOTALL)


def run_tool(name, *arguments, cwd=ROOT):
    """Run a linter that the extra `dev` installs beside this Python, where actionlint finds shellcheck too."""
    tools = Path(sys.executable).parent
    if not (tools / name).is_file():
        pytest.skip(f"{name} has no wheel for this machine")
    done = subprocess.run(
        [tools / name, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{tools}:/usr/bin:/bin"},
    )
    return done.returncode, done.stdout + done.stderr


def parsed(path):
    values = yaml.safe_load(path.read_text())
    return {**values, "on": values[True]}  # YAML takes the word for a boolean


def steps(path):
    return [step for job in parsed(path)["jobs"].values() for step in job.get("steps", ())]


def test_actionlint_and_shellcheck_find_nothing():
    assert run_tool("shellcheck", "--version")[0] == 0
    assert run_tool("actionlint", *map(str, WORKFLOWS)) == (0, "")


def test_zizmor_finds_nothing():
    code, said = run_tool(
        "zizmor", "--offline", "--persona=pedantic", "--min-severity=medium", "--no-progress", ".github"
    )
    assert code == 0, said


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
class TestEveryWorkflow:
    def test_pins_actions_by_commit_and_names_their_version(self, path):
        lines = [line.strip().removeprefix("- ") for line in path.read_text().splitlines() if "uses:" in line]
        assert [line for line in lines if not (PIN.fullmatch(line) or line.startswith("uses: ./"))] == []

    def test_grants_nothing_but_to_single_jobs(self, path):
        assert parsed(path)["permissions"] == {}
        assert all("permissions" in job for job in parsed(path)["jobs"].values())

    def test_puts_nothing_of_others_into_a_shell(self, path):
        assert [step["run"] for step in steps(path) if EXPRESSION.search(step.get("run", ""))] == []

    def test_does_not_wait_for_ever(self, path):
        assert all("timeout-minutes" in job or "uses" in job for job in parsed(path)["jobs"].values())


def test_one_version_of_every_action_is_used():
    used = {line.split("uses: ")[1] for path in WORKFLOWS for line in path.read_text().splitlines() if PIN.search(line)}
    names = [use.split("@")[0] for use in used]
    assert sorted(names) == sorted(set(names))


def test_a_publish_that_is_under_way_is_not_cancelled_and_only_the_job_that_sends_may_write():
    publish = parsed(ROOT / ".github/workflows/publish.yml")
    assert publish["concurrency"]["cancel-in-progress"] is False
    assert "inputs.repo_id" in publish["concurrency"]["group"]
    jobs = publish["jobs"]
    assert jobs["push"]["environment"] == "${{ inputs.environment }}"
    assert [name for name, job in jobs.items() if "secrets.HF_TOKEN" in yaml.safe_dump(job)] == ["push"]
    assert jobs["rehearse"]["permissions"] == {"contents": "read"}
    assert publish["on"]["workflow_call"]["inputs"] == publish["on"]["workflow_dispatch"]["inputs"]


def test_what_is_installed_is_the_version_of_the_workflow():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    inputs = parsed(ROOT / ".github/workflows/publish.yml")["on"]["workflow_call"]["inputs"]
    assert inputs["hubprune"]["default"] == f"hubprune[all]=={version}"
    assert f"HUBPRUNE_REQUIREMENT || 'hubprune[all]=={version}'" in (TEMPLATE / "republish.yml").read_text()


def test_the_template_is_the_workflow_that_can_be_copied_alone():
    """It calls no other file, and runs what `publish.yml` runs."""
    [here] = TEMPLATE.iterdir()
    assert here.read_bytes() == (ROOT / ".github" / "workflows" / here.name).read_bytes()
    jobs, called = parsed(here)["jobs"], parsed(ROOT / ".github/workflows/publish.yml")["jobs"]
    assert not [job for job in jobs.values() if "uses" in job]
    for name in ("build", "push"):
        runs = [[step.get("run") or step["uses"] for step in one[name]["steps"]] for one in (jobs, called)]
        assert runs[0] == runs[1]
        assert jobs[name]["permissions"] == called[name]["permissions"]
    assert [name for name, job in jobs.items() if "secrets.HF_TOKEN" in yaml.safe_dump(job)] == ["push"]


@pytest.mark.parametrize(
    ("asked", "plain"),
    [
        ("hubprune[all]==0.1.0", "hubprune==0.1.0"),
        ("hubprune", "hubprune"),
        ("hubprune[all] @ git+https://github.com/o/hubprune@abc", "hubprune @ git+https://github.com/o/hubprune@abc"),
    ],
)
def test_the_job_that_sends_installs_no_extras(tmp_path, asked, plain):
    (tmp_path / "pip").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    assert run_step("publish", "Install without torch", HUBPRUNE=asked, PATH=path) == (0, f"install|{plain}|")


def run_step(workflow, name, *, cwd=ROOT, **variables):
    """Run the shell of one step as a runner does, with this Python as `python`."""
    [script] = [step["run"] for step in steps(ROOT / f".github/workflows/{workflow}.yml") if step.get("name") == name]
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), **variables}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_tag_of_another_version_is_not_released():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run_step("release", "Refuse a tag of another version", GITHUB_REF_NAME=f"v{version}") == (0, "")
    code, said = run_step("release", "Refuse a tag of another version", GITHUB_REF_NAME="v99.0.0")
    assert (code, said) == (1, f"::error::the tag is v99.0.0 and pyproject.toml has the version {version}\n")


def test_a_pull_request_that_breaks_its_recipe_fails(tmp_path):
    recipe = tmp_path / "recipe of mine.yaml"
    recipe.write_text(
        "base: {repo_id: a/b}\ndrop: {attn_drop: 1}\ncalibration: {name: c, subsets: [{dataset: a/t, weight: 1}]}\n"
    )
    assert run_step("publish", "Check the recipe", RECIPE=str(recipe))[0] == 0
    recipe.write_text(recipe.read_text().replace("attn_drop: 1", "attn_drop: 0"))
    code, said = run_step("publish", "Check the recipe", RECIPE=str(recipe))
    assert code == 2
    assert "recipe of mine.yaml, line 2: drop.attn_drop: 0 is neither a number of 1 or more nor a share" in said


def test_the_lines_of_the_readme_are_a_workflow_that_calls_publish(tmp_path):
    section = (ROOT / "README.md").read_text().split("## Publish from CI")[1].split("\n## ")[0]
    text = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1]
    assert len(text.splitlines()) <= 12
    # As a local call, so that actionlint checks the inputs against those that the workflow has.
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    (folder / "publish.yml").write_text((ROOT / ".github/workflows/publish.yml").read_text())
    called = re.sub(r"uses: \S+/publish\.yml@v[\d.]+", "uses: ./.github/workflows/publish.yml", text)
    assert called != text
    (folder / "caller.yml").write_text(called)
    (tmp_path / ".git").mkdir()
    assert run_tool("actionlint", str(folder / "caller.yml"), cwd=tmp_path) == (0, "")
    (folder / "caller.yml").write_text(called.replace("recipe:", "recip:"))
    code, said = run_tool("actionlint", str(folder / "caller.yml"), cwd=tmp_path)
    assert code
    assert 'input "recip" is not defined' in said


def test_a_broken_workflow_would_be_found(tmp_path):
    broken = (ROOT / ".github/workflows/republish.yml").read_text()
    (tmp_path / "broken.yml").write_text(broken.replace('"$CHANGED_REPO" "$RECIPE"', "$CHANGED_REPO $RECIPE"))
    assert "SC2086" in run_tool("actionlint", str(tmp_path / "broken.yml"))[1]
    (tmp_path / "loose.yml").write_text(re.sub(r"@[0-9a-f]{40}", "@v5", broken))
    code, said = run_tool("zizmor", "--offline", "--no-progress", str(tmp_path / "loose.yml"))
    assert code
    assert "unpinned-uses" in said
