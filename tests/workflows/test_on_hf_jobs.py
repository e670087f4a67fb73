"""`--on hf-jobs`: what is sent, how its log is followed, and how its end is told."""

from __future__ import annotations

import json
import subprocess

import pytest
import typer
from on_hub import BASE_FILES, commit_files

from hubprune import __version__
from hubprune.commands.terminal import errors_shown
from hubprune.core.errors import HubError, JobError, RecipeError
from hubprune.core.files import StageStore
from hubprune.core.options import options_of
from hubprune.core.recipe import read_recipe
from hubprune.core.requests import JobRequest, PublishRequest
from hubprune.hub.session import HubSession
from hubprune.localhub import JobScript
from hubprune.workflows import jobs
from hubprune.workflows.jobs import FLAGS, HANDED_ON, HERE_ONLY, run_on_jobs
from hubprune.workflows.recipes import recipe_of
from hubprune.workflows.run import Run

BASE = "meta-llama/Llama-Small"
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4, "hidden_size": 32,
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
LOG = ("[1/6] Base and preflight", "a\x1b[31mred\u202e")


@pytest.fixture(scope="module")
def small_base(admin):
    admin.create_repo(BASE)
    return commit_files(admin, BASE, {**BASE_FILES, "config.json": json.dumps(CONFIG).encode()})


@pytest.fixture
def on_jobs(session, reporter, small_base, tmp_path, monkeypatch):
    """Publish on Jobs with some options of the command."""
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)

    def run(*, session=session, **given):
        asked = {"attn_layers": "1", "tasks": "none", "on": "hf-jobs", "flavor": "t4-small", **given}
        request = JobRequest(BASE, **asked)
        return run_on_jobs(Run(recipe_of(request), session, reporter, StageStore(tmp_path / "work")), request)

    return run


def test_the_job_gets_the_recipe_this_version_and_the_token_as_a_secret_only(on_jobs, hub, user, tmp_path, capsys):
    hub.script_job(JobScript(lines=LOG))
    told = on_jobs(timeout="90m", overwrite_card=True, overwrite=True)
    [name, token], job = user, hub.jobs[-1]
    assert told["job"] == f"{name}/{job.id}"
    assert told["target"] == f"{name}/Llama-Small-attn-drop-1"
    assert capsys.readouterr().err.splitlines() == [LOG[0], "a\\x1b[31mred\\u202e"]

    assert job.spec["secrets"] == {"HF_TOKEN": token}
    assert token not in str({key: value for key, value in job.spec.items() if key != "secrets"})
    assert (job.spec["flavor"], job.spec["timeoutSeconds"]) == ("t4-small", 5400)
    assert job.spec["environment"]["HF_ENDPOINT"] == hub.endpoint
    assert f"--with 'hubprune[torch,plots]=={__version__}' hubprune publish" in job.spec["command"][-1]

    # The command runs: its shell finds the recipe, and what it starts gets the options.
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "uv").write_text('#!/bin/sh\necho "$@"\n')
    (tools / "uv").chmod(0o755)
    environment = {**job.spec["environment"], "PATH": f"{tools}:/usr/bin:/bin"}
    done = subprocess.run(
        job.spec["command"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("hubprune publish --recipe recipe.yaml --overwrite-card --overwrite\n")
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert (recipe.base.revision, recipe.target.repo_id) == ("main", f"{name}/Llama-Small-attn-drop-1")


def test_a_job_that_fails_is_an_error_with_its_message(on_jobs, hub):
    hub.script_job(JobScript(lines=("error: no",), stage="ERROR", message="Job failed with exit code: 4"))
    with pytest.raises(JobError, match="ended as ERROR: Job failed with exit code: 4") as caught:
        on_jobs()
    assert caught.value.exit_code == 1
    assert f"hf jobs logs {hub.jobs[-1].namespace}/{hub.jobs[-1].id}" in caught.value.hint


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(on_jobs, hub, monkeypatch, capsys):
    def interrupted(line):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "visible", lambda *_, **__: interrupted(""))
    hub.script_job(JobScript(lines=("working",), holds=True))
    with pytest.raises(typer.Exit) as caught, errors_shown():
        on_jobs()
    job = hub.jobs[-1]
    assert (caught.value.exit_code, job.stage) == (130, "RUNNING")
    said = capsys.readouterr().err
    assert f"The job goes on.  Follow it again: hf jobs logs -f {job.namespace}/{job.id}" in said
    assert f"Cancel it: hf jobs cancel {job.namespace}/{job.id}" in said
    job.cancel()


def test_a_lost_answer_starts_no_second_job(on_jobs, hub):
    before = len(hub.jobs)
    hub.set_faults([{"match": "POST /api/jobs/[^/]+$", "do": "lose"}])
    on_jobs()
    assert len(hub.jobs) == before + 1
    hub.set_faults([{"match": "POST /api/jobs/[^/]+$", "do": "reset"}])
    with pytest.raises(HubError, match="Cannot run a job as"):
        on_jobs()
    assert len(hub.jobs) == before + 1


def test_a_log_that_cannot_be_read_does_not_lose_the_end(on_jobs, hub, reporter):
    hub.set_faults([{"match": "GET .*/logs", "do": "status", "status": 404}])
    hub.script_job(JobScript(lines=()))
    job = len(hub.jobs)

    def end_it(text):
        hub.jobs[job].ended.set()

    reporter.warn = end_it
    assert "job" in on_jobs()


SEEN = set()


BEFORE = "from_sweep", "adopt", "adopt_revision"
"""Become a number, or layers that are named, before there is a recipe."""


class Watched(PublishRequest):
    """A request that remembers which of its options somebody asked for."""

    def __getattribute__(self, name):
        SEEN.add(name)
        return super().__getattribute__(name)


def test_every_option_of_a_publish_is_in_the_recipe_or_reaches_the_job_or_is_refused():
    recipe_of(Watched(BASE, attn_layers="1"))
    names, publish = ({option.name for option in options_of(kind)} for kind in (JobRequest, PublishRequest))
    told = {name for name, _ in FLAGS} | {*HERE_ONLY, *HANDED_ON, "endpoint", *BEFORE}
    assert names <= SEEN | told | (names - publish)


def test_what_is_asked_beside_the_recipe_reaches_the_job(on_jobs, hub):
    told = on_jobs(dry_run=True, speed=True, primer=False, max_memory="8GB")
    command = hub.jobs[-1].spec["command"][-1]
    assert command.endswith("--recipe recipe.yaml --dry-run --speed --no-primer --max-memory 8GB")
    assert told["dry run"] == "nothing was published"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"flavor": None}, "A job needs a machine."),
        ({"on": "moon"}, "--on 'moon' is no place to run."),
        ({"on": None}, "--on None is no place to run."),
        ({"timeout": "soon"}, "--timeout 'soon' is no time span."),
        ({"out": "x"}, "What --out names is on this machine"),
        ({"include_path": "tasks"}, "The folder of tasks tasks is on this machine"),
        ({"attn_layers": None, "attn_drop": "1", "calibration": "texts.jsonl"}, "The calibration file texts.jsonl"),
    ],
)
def test_what_a_job_cannot_do_is_refused_before_anything_is_sent(on_jobs, hub, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    before = len(hub.jobs)
    with pytest.raises(RecipeError) as caught:
        on_jobs(**given)
    assert said in str(caught.value)
    assert len(hub.jobs) == before


def test_the_preflight_comes_first(on_jobs, hub):
    before = len(hub.jobs)
    reader = HubSession.open(endpoint=hub.endpoint, token=hub.add_user("jobless", role="read"))
    with pytest.raises(HubError, match="read-only"):
        on_jobs(session=reader)
    assert len(hub.jobs) == before


def test_a_token_that_ends_before_the_job_is_refused(on_jobs, hub, user, monkeypatch):
    monkeypatch.setattr(jobs, "SHORT_LIVED", ("hf_",))
    with pytest.raises(RecipeError, match="ends before the job does"):
        on_jobs()
