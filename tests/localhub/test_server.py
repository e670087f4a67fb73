import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubprune.core.errors import HubpruneError, MissingDependencyError
from hubprune.core.extras import install
from hubprune.localhub import running_hub, serve


def port_of(hub) -> int:
    return int(hub.endpoint.rpartition(":")[2])


def test_a_restart_loses_nothing(tmp_path, monkeypatch):
    from huggingface_hub.utils._xet import abort_xet_session

    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    abort_xet_session()
    weights = bytes(range(256)) * 100
    with running_hub(tmp_path / "hub") as hub:
        token, alice, port = hub.token, hub.add_user("alice", orgs=["acme"]), port_of(hub)
        api = HfApi(endpoint=hub.endpoint, token=alice)
        api.create_repo("acme/kept", private=True)
        head = api.upload_file(repo_id="acme/kept", path_or_fileobj=weights, path_in_repo="w.bin").oid
        api.create_tag("acme/kept", tag="v1")
    with running_hub(tmp_path / "hub", port=port) as hub:
        assert hub.token == token
        assert api.model_info("acme/kept", revision="v1").sha == head
        path = api.hf_hub_download("acme/kept", "w.bin", cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == weights
        api.upload_file(repo_id="acme/kept", path_or_fileobj=weights + b"more", path_in_repo="w.bin")
        assert api.get_paths_info("acme/kept", "w.bin")[0].size == len(weights) + 4
    abort_xet_session()


def test_a_directory_has_one_server(tmp_path):
    with (
        running_hub(tmp_path),
        pytest.raises(HubpruneError, match=r"has .* open already") as error,
        running_hub(tmp_path),
    ):
        pass
    assert "--dir" in error.value.hint
    with running_hub(tmp_path) as again:
        assert HfApi(endpoint=again.endpoint, token=again.token).whoami()["name"] == "local"


def test_what_a_killed_server_left_is_no_obstacle_to_the_next(tmp_path):
    with running_hub(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("me/model")
    git = tmp_path / "repos" / "models" / "me" / "model.git"
    left = [git / "refs" / "heads" / "main.lock", git / "packed-refs.lock", git / "incoming-x" / "index"]
    left += [tmp_path / "lfs" / ".incoming-x", tmp_path / "repos" / ".new-x" / "git" / "HEAD"]
    left += [tmp_path / "xet" / "xorbs" / ".incoming-x", tmp_path / "repos" / ".old-x" / "git" / "HEAD"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    with running_hub(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        assert not any(path.exists() for path in left)
        api.upload_file(repo_id="me/model", path_or_fileobj=b"x", path_in_repo="a.txt")
        assert [org["name"] for org in api.whoami()["orgs"]] == ["me"]


def test_tokens_are_for_their_owner_to_read(tmp_path):
    with running_hub(tmp_path) as hub:
        (file,) = [path for path in tmp_path.iterdir() if path.is_file() and hub.token in path.read_text()]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_port_in_use_is_one_clear_error(local_hub, tmp_path):
    port = port_of(local_hub)
    with pytest.raises(HubpruneError, match=f"port {port}: it is already in use") as error:
        serve(tmp_path, port=port)
    assert error.value.hint


def test_without_git_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="no git program"):
        serve(tmp_path)


def test_serve_announces_itself_and_ends_cleanly(tmp_path):
    source = f"from pathlib import Path; from hubprune.localhub import serve; serve(Path({str(tmp_path)!r}))"
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) as process:
            endpoint, token = (process.stdout.readline().strip().partition("=") for _ in range(2))
            assert (endpoint[0], token[0]) == ("HF_ENDPOINT", "HF_TOKEN")
            assert endpoint[2].startswith("http://127.0.0.1:")
            assert HfApi(endpoint=endpoint[2], token=token[2]).whoami()["name"] == "local"
            process.send_signal(number)
            rest, _ = process.communicate(timeout=60)
        assert (process.returncode, rest) == (0, "")


def test_it_listens_on_loopback_only(local_hub):
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {"127.0.0.1"}:
        if not address.startswith("127."):
            with pytest.raises(OSError, match=r"(?i)refused|timed out"):
                socket.create_connection((address, port_of(local_hub)), timeout=5).close()


def test_a_foreign_host_name_is_turned_away(raw):
    assert raw("GET", "/api/whoami-v2", Host="rebound.example.org").status == 400


def test_two_hubs_in_one_process_are_apart(local_hub, api, repo, tmp_path):
    with running_hub(tmp_path) as other:
        assert other.endpoint != local_hub.endpoint
        assert not HfApi(endpoint=other.endpoint, token=other.token).repo_exists(repo)
        assert len(other.log) == 1


def test_the_directory_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with running_hub(Path("here")) as hub:
        assert HfApi(endpoint=hub.endpoint, token=hub.token).create_repo("me/model").repo_id == "me/model"
    assert (tmp_path / "here").is_dir()


def test_the_package_is_light_until_it_is_used():
    source = (
        "import sys, hubprune.localhub; print([n for n in ('starlette', 'uvicorn', 'yaml', 'lz4') if n in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", source], text=True).strip() == "[]"


def test_a_missing_package_is_named_with_what_to_install():
    source = """
import sys
sys.modules["starlette"] = None
from hubprune.core.errors import MissingDependencyError
import hubprune.localhub
try:
    hubprune.localhub.serve
except MissingDependencyError as error:
    print(error.hint)
"""
    assert subprocess.check_output([sys.executable, "-c", source], text=True).strip() == install("localhub")


def test_git_variables_of_the_caller_lead_nowhere_else(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    subprocess.run(["git", "init", "-q", str(elsewhere)], check=True)
    monkeypatch.setenv("GIT_DIR", str(elsewhere / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(elsewhere / "index"))
    with running_hub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("me/model")
        assert api.list_repo_files("me/model") == [".gitattributes"]
    assert not (elsewhere / "index").exists()


def test_a_place_that_is_no_folder_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "hubprune", "hub", "--dir", str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: Cannot write to {tmp_path / 'file'}: File exists.\n"
