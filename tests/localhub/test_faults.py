import http.client
import io
import re
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError

from hubprune.core.extras import client_library
from hubprune.localhub import Fault


def test_an_injected_status_hits_the_requests_that_it_is_meant_for(local_hub, api, repo):
    local_hub.set_faults([Fault(match=r"^GET /api/models/", do="status", status=503, skip=1, times=2)])
    assert api.whoami()["name"] == "local"
    assert api.model_info(repo).id == repo
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as error:
            api.model_info(repo)
        assert error.value.response.status_code == 503
    assert api.model_info(repo).id == repo
    assert [record.fault for record in local_hub.log[-4:]] == [None, "status", "status", None]


def test_a_fault_can_be_given_as_its_fields(local_hub, api, repo):
    local_hub.set_faults([{"match": "model", "do": "status", "status": 429, "headers": {"Retry-After": "7"}}])
    with pytest.raises(HfHubHTTPError) as error:
        api.model_info(repo)
    assert error.value.response.headers["Retry-After"] == "7"


@pytest.mark.parametrize("fields", [{"match": "x", "do": "explode"}, {"match": "(", "do": "slow"}, {"do": "slow"}])
def test_a_fault_that_cannot_happen_is_refused_at_once(local_hub, fields):
    with pytest.raises((ValueError, TypeError, re.error)):
        local_hub.set_faults([fields])


def test_an_upload_survives_a_hub_that_is_busy_for_a_moment(local_hub, api, repo):
    content = b"\0" * 5000
    busy = Fault(match="^PUT /_lfs/object/", do="status", status=503, headers={"Retry-After": "0"})
    local_hub.set_faults([busy])
    api.upload_file(repo_id=repo, path_or_fileobj=io.BytesIO(content), path_in_repo="w.bin")
    assert api.get_paths_info(repo, "w.bin")[0].size == len(content)
    assert [record.status for record in local_hub.log if record.method == "PUT"][-2:] == [503, 200]


def test_a_lost_answer_leaves_the_work_done(local_hub, api, repo):
    head = api.model_info(repo).sha
    local_hub.set_faults([Fault(match="^POST .*/commit/main", do="lose")])
    operations = [CommitOperationAdd("a.txt", b"x")]
    with pytest.raises(Exception, match=r"(?i)disconnect|reset|closed"):
        api.create_commit(repo, operations, commit_message="Lost", parent_commit=head)
    assert [commit.title for commit in api.list_repo_commits(repo)] == ["Lost", "initial commit"]


def test_a_reset_connection_leaves_nothing_done(local_hub, api, repo):
    local_hub.set_faults([Fault(match="^POST .*/commit/main", do="reset")])
    with pytest.raises(Exception, match=r"(?i)disconnect|reset|closed"):
        api.create_commit(repo, [CommitOperationAdd("a.txt", b"x")], commit_message="Never arrives")
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_a_connection_cut_in_the_middle_of_a_commit_leaves_nothing_done(local_hub, api, repo):
    big = CommitOperationAdd("a.txt", b"x" * 300_000)
    for first_bytes in (0, 1000, 100_000, 10_000_000):
        local_hub.set_faults([Fault(match="^POST .*/commit/main", do="cut", bytes=first_bytes)])
        with pytest.raises(Exception, match=r"(?i)disconnect|reset|closed|broken pipe"):
            api.create_commit(repo, [big], commit_message="Comes in half")
        cut = local_hub.log[-1]
        assert (cut.fault, cut.status) == ("cut", None)
        assert min(first_bytes, 1) <= cut.bytes_in < 500_000
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_an_upload_cut_in_the_middle_is_sent_again_and_stored_whole(local_hub, api, repo, tmp_path):
    content = bytes(range(256)) * 1000
    local_hub.set_faults([Fault(match="^PUT /_lfs/object/", do="cut", bytes=50_000)])
    api.upload_file(repo_id=repo, path_or_fileobj=io.BytesIO(content), path_in_repo="w.bin")
    assert Path(api.hf_hub_download(repo, "w.bin", cache_dir=tmp_path)).read_bytes() == content


def test_a_reset_is_a_reset(local_hub, repo, raw):
    local_hub.set_faults([Fault(match="model", do="reset")])
    with pytest.raises(ConnectionResetError):
        raw("GET", f"/api/models/{repo}")


def test_a_stalled_request_waits_until_its_client_has_gone_and_does_nothing(local_hub, api, repo):
    from huggingface_hub.utils import get_session

    local_hub.set_faults([Fault(match="^POST .*/branch/", do="stall")])
    headers = {"Authorization": f"Bearer {api.token}"}
    with pytest.raises(client_library().ReadTimeout):
        get_session().post(f"{api.endpoint}/api/models/{repo}/branch/x", json={}, headers=headers, timeout=0.2)
    assert local_hub.log[-1].fault == "stall"
    assert [branch.name for branch in api.list_repo_refs(repo).branches] == ["main"]


def test_a_withheld_answer_leaves_the_work_done(local_hub, api, repo):
    from huggingface_hub.utils import get_session

    local_hub.set_faults([Fault(match="^POST .*/branch/", do="withhold")])
    headers = {"Authorization": f"Bearer {api.token}"}
    with pytest.raises(client_library().ReadTimeout):
        get_session().post(f"{api.endpoint}/api/models/{repo}/branch/x", json={}, headers=headers, timeout=1)
    assert sorted(branch.name for branch in api.list_repo_refs(repo).branches) == ["main", "x"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 429, 500, 503])
def test_every_status_comes_with_its_headers_and_leaves_nothing_done(local_hub, api, repo, raw, status):
    local_hub.set_faults([Fault(match="/branch/", do="status", status=status, headers={"Retry-After": "3"})])
    answer = raw("POST", f"/api/models/{repo}/branch/x", token=api.token, body=b"{}")
    assert (answer.status, answer.headers["Retry-After"], "error" in answer.json()) == (status, "3", True)
    assert [branch.name for branch in api.list_repo_refs(repo).branches] == ["main"]


def test_a_truncated_answer_ends_early(local_hub, api, repo, raw):
    api.upload_file(repo_id=repo, path_or_fileobj=b"0123456789", path_in_repo="a.txt")
    local_hub.set_faults([Fault(match="resolve/main/a.txt", do="truncate", bytes=4)])
    with pytest.raises(http.client.IncompleteRead) as error:
        raw("GET", f"/{repo}/resolve/main/a.txt")
    assert error.value.partial == b"0123"
    assert local_hub.log[-1].bytes_out == 4


def test_a_slow_answer_is_an_answer(local_hub, api, repo):
    local_hub.set_faults([Fault(match="model", do="slow", seconds=0.01)])
    assert api.model_info(repo).id == repo
    assert local_hub.log[-1].fault == "slow"


def test_the_log_knows_what_was_asked_and_answered(local_hub, api, repo, raw):
    local_hub.clear_log()
    raw("POST", f"/api/models/{repo}/paths-info/main?a=b", body=b'{"paths": []}', Range="bytes=0-1")
    (record,) = local_hub.log
    assert (record.line, record.query) == (f"POST /api/models/{repo}/paths-info/main", "a=b")
    assert (record.status, record.bytes_in, record.bytes_out, record.range) == (200, 13, 2, "bytes=0-1")
    assert not record.authorized
