"""Jobs on the local Hub, through the real client: recorded, told from a script, never run."""

import pytest
from huggingface_hub.errors import HfHubHTTPError

from hubprune.localhub import JobScript

ASKED = {"image": "python:3.12", "command": ["python", "-c", "print(1)"], "namespace": "acme", "flavor": "t4-small"}


def test_a_job_is_recorded_and_its_script_is_played(api, local_hub):
    local_hub.script_job(JobScript(lines=("one", "two | 2"), stage="ERROR", message="exit code 1"))
    job = api.run_job(
        **ASKED, env={"A": "1"}, secrets={"HF_TOKEN": "hf_secret"}, timeout="2h", name="x", labels={"k": "v"}
    )
    assert (job.status.stage, job.flavor, job.owner.name) == ("SCHEDULING", "t4-small", "acme")
    assert job.secrets == {"HF_TOKEN": ""}
    spec = local_hub.jobs[-1].spec
    assert spec["secrets"] == {"HF_TOKEN": "hf_secret"}
    assert (spec["timeoutSeconds"], spec["labels"]) == (7200, {"k": "v", "name": "x"})

    assert api.inspect_job(job_id=job.id, namespace="acme").status.stage == "RUNNING"
    assert list(api.fetch_job_logs(job_id=job.id, namespace="acme", follow=True)) == ["one", "two | 2"]
    ended = api.inspect_job(job_id=job.id, namespace="acme")
    assert (ended.status.stage, ended.status.message) == ("ERROR", "exit code 1")
    assert list(api.fetch_job_logs(job_id=job.id, namespace="acme", tail=1)) == ["two | 2"]
    found = api.list_jobs(namespace="acme", labels={"k": "v"}, status="error")
    assert [found.id for found in found] == [job.id]
    assert list(api.list_jobs(namespace="acme", labels={"k": "other"})) == []


def test_a_job_that_holds_goes_on_until_it_is_cancelled(api, local_hub):
    local_hub.script_job(JobScript(lines=("waiting",), holds=True))
    job = api.run_job(**ASKED)
    lines = iter(api.fetch_job_logs(job_id=job.id, namespace="acme", follow=True))
    assert next(lines) == "waiting"
    api.cancel_job(job_id=job.id, namespace="acme")
    assert list(lines) == []
    assert api.inspect_job(job_id=job.id, namespace="acme").status.stage == "CANCELED"


def test_strangers_neither_see_nor_run_jobs_of_others(api, local_hub):
    from huggingface_hub import HfApi

    job = api.run_job(**ASKED)
    stranger = HfApi(endpoint=local_hub.endpoint, token=local_hub.add_user("job-stranger"))
    reader = HfApi(endpoint=local_hub.endpoint, token=local_hub.add_user("job-reader", role="read", orgs=["acme"]))
    for call in (
        lambda: stranger.run_job(**ASKED),
        lambda: stranger.inspect_job(job_id=job.id, namespace="acme"),
        lambda: list(stranger.fetch_job_logs(job_id=job.id, namespace="acme")),
        lambda: reader.run_job(**ASKED),
        lambda: reader.cancel_job(job_id=job.id, namespace="acme"),
    ):
        with pytest.raises(HfHubHTTPError, match="403"):
            call()
    assert reader.inspect_job(job_id=job.id, namespace="acme").id == job.id


@pytest.mark.parametrize("change", [{"flavor": "no such/flavor"}, {"command": [1]}, {"env": [1]}])
def test_an_order_that_makes_no_sense_is_refused(api, change):
    with pytest.raises(HfHubHTTPError) as caught:
        api.run_job(**{**ASKED, "name": "x", **change})
    assert caught.value.response.status_code == 400
