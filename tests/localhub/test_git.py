"""The real git against the local Hub."""

import contextlib
import gzip
import hashlib
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import CommitOperationAdd

from hubprune.localhub.large_files import parse_pointer

WEIGHTS = bytes(range(256)) * 40


def commit(api, repo, files, **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo, operations, **{"commit_message": "Change files", **options})


@pytest.fixture
def git(tmp_path):
    """Run git without the settings of whoever runs the tests; return how it ended."""

    def run(*args, cwd=tmp_path):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        command = ["git", "-c", "advice.detachedHead=false", "-c", "credential.helper=", *args]
        return subprocess.run(
            command, cwd=cwd, env={**kept, **alone}, capture_output=True, text=True, check=False, timeout=60
        )

    return run


def with_token(hub, path, token, user="anybody"):
    return hub.endpoint.replace("://", f"://{user}:{token}@") + path


def test_a_clone_has_the_files_the_history_the_branches_and_the_tags(local_hub, api, repo, git, tmp_path):
    first = commit(api, repo, {"README.md": b"---\nlicense: mit\n---\n# A model\n", "w.safetensors": WEIGHTS}).oid
    api.create_tag(repo, tag="v1")
    api.create_branch(repo, branch="next")
    head = commit(api, repo, {"folder/a.txt": b"new\n"}).oid
    done = git("clone", f"{local_hub.endpoint}/{repo}", "clone")
    assert done.returncode == 0, done.stderr
    clone = tmp_path / "clone"
    assert (clone / "README.md").read_text().endswith("# A model\n")
    assert (clone / "folder" / "a.txt").read_text() == "new\n"
    pointer = parse_pointer((clone / "w.safetensors").read_bytes())
    assert (pointer.sha256, pointer.size) == (hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    assert git("log", "--format=%H", cwd=clone).stdout.split()[:2] == [head, first]
    assert git("rev-parse", "v1", "origin/next", cwd=clone).stdout.split() == [first, first]
    assert git("status", "--short", cwd=clone).stdout == ""
    assert git("fsck", "--strict", cwd=clone).returncode == 0


def test_a_fetch_brings_what_is_new_and_pull_requests_by_name(local_hub, api, repo, git, tmp_path):
    assert git("clone", "-q", f"{local_hub.endpoint}/{repo}.git", "clone").returncode == 0
    clone = tmp_path / "clone"
    head = commit(api, repo, {"a.txt": b"x"}).oid
    proposed = commit(api, repo, {"b.txt": b"x"}, create_pr=True)
    api.create_discussion(repo, "Not a branch")
    assert git("pull", "-q", cwd=clone).returncode == 0
    assert git("rev-parse", "HEAD", cwd=clone).stdout.strip() == head
    assert git("fetch", "-q", "origin", "refs/pr/1:proposed", cwd=clone).returncode == 0
    assert git("rev-parse", "proposed", cwd=clone).stdout.strip() == proposed.oid
    assert "discussions" not in git("ls-remote", cwd=clone).stdout


@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_version_of_the_protocol_is_spoken(local_hub, api, repo, git, version):
    head = commit(api, repo, {"a.txt": b"x"}).oid
    chosen = ("-c", f"protocol.version={version}")
    assert head in git(*chosen, "ls-remote", f"{local_hub.endpoint}/{repo}").stdout
    done = git(*chosen, "clone", "-q", "--depth=1", f"{local_hub.endpoint}/{repo}", "clone")
    assert done.returncode == 0, done.stderr


def test_a_clone_may_leave_the_contents_for_later(local_hub, api, repo, git, tmp_path):
    commit(api, repo, {"a.txt": b"content\n"})
    done = git("clone", "-q", "--filter=blob:none", "--no-checkout", f"{local_hub.endpoint}/{repo}", "clone")
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in git("rev-list", "--objects", "--all", "--missing=print", cwd=tmp_path / "clone").stdout
    assert git("show", "HEAD:a.txt", cwd=tmp_path / "clone").stdout == "content\n"


def test_many_commits_are_told_in_a_packed_request(local_hub, api, repo, git, tmp_path):
    commit(api, repo, {"a.txt": b"x"})
    git("clone", "-q", f"{local_hub.endpoint}/{repo}", "clone")
    clone, who = tmp_path / "clone", ("-c", "user.name=x", "-c", "user.email=x@localhost")
    for number in range(40):
        git(*who, "commit", "-q", "--allow-empty", "-m", str(number), cwd=clone)
    head = commit(api, repo, {"b.txt": b"x"}).oid
    assert git("fetch", "-q", cwd=clone).returncode == 0
    assert git("rev-parse", "origin/main", cwd=clone).stdout.strip() == head


def test_a_data_set_is_cloned_from_its_own_address(local_hub, api, git, tmp_path):
    api.create_repo("acme/cloned-rows", repo_type="dataset", exist_ok=True)
    assert git("clone", "-q", f"{local_hub.endpoint}/datasets/acme/cloned-rows", "clone").returncode == 0
    assert (tmp_path / "clone" / ".gitattributes").exists()
    no_model = git("clone", "-q", with_token(local_hub, "/acme/cloned-rows", api.token), "other")
    assert "Repository not found" in no_model.stderr


def test_what_is_private_takes_a_token_as_the_password(local_hub, api, repo, git):
    api.update_repo_settings(repo, private=True)
    member = local_hub.add_user("member", role="read", orgs=["acme"])
    refused = git("clone", f"{local_hub.endpoint}/{repo}", "no")
    assert refused.returncode == 128
    assert "could not read Username" in refused.stderr
    for address in (with_token(local_hub, f"/{repo}", member), with_token(local_hub, f"/{repo}", "", user=member)):
        assert git("ls-remote", address).returncode == 0
    header = f"http.extraHeader=Authorization: Bearer {member}"
    assert git("-c", header, "ls-remote", f"{local_hub.endpoint}/{repo}").returncode == 0
    stranger = git("ls-remote", with_token(local_hub, f"/{repo}", local_hub.add_user("stranger")))
    assert "Repository not found" in stranger.stderr
    wrong = git("ls-remote", with_token(local_hub, f"/{repo}", "hf_wrong"))
    assert "Authentication failed" in wrong.stderr


def test_what_is_gated_is_for_those_who_were_let_in(local_hub, api, repo, git):
    api.update_repo_settings(repo, gated="auto")
    refused = git("clone", with_token(local_hub, f"/{repo}", local_hub.add_user("stranger")), "no")
    assert "is restricted and you are not in the authorized list" in refused.stderr
    granted = local_hub.add_user("granted", granted=[repo])
    assert git("clone", "-q", with_token(local_hub, f"/{repo}", granted), "clone").returncode == 0


def test_a_push_is_refused_with_the_way_that_is_open(local_hub, api, repo, git, tmp_path):
    git("clone", "-q", with_token(local_hub, f"/{repo}", api.token), "clone")
    clone, who = tmp_path / "clone", ("-c", "user.name=x", "-c", "user.email=x@localhost")
    git(*who, "commit", "-q", "--allow-empty", "-m", "Mine", cwd=clone)
    pushed = git("push", "origin", "main", cwd=clone)
    assert pushed.returncode == 128
    assert "takes no git push. Use `hf upload`" in pushed.stderr
    assert len(api.list_repo_commits(repo)) == 1


def test_junk_is_refused_and_ends_no_server(api, repo, raw):
    packed = {"Content_Encoding": "gzip"}
    assert raw("POST", f"/{repo}/git-upload-pack", body=b"\x00junk", **packed).status == 400
    bomb = gzip.compress(bytes(17 << 20))
    assert raw("POST", f"/{repo}/git-upload-pack", body=bomb, **packed).status == 413
    assert raw("POST", f"/{repo}/git-upload-pack", body=b"junk").status == 200  # git's own word for it: nothing
    assert raw("POST", f"/{repo}/git-receive-pack", body=b"junk").status == 403
    for query in ("", "?service=git-upload-archive", "?service=../x"):
        assert raw("GET", f"/{repo}/info/refs{query}").status == 403
    assert raw("GET", "/acme/../x/info/refs?service=git-upload-pack").status in (400, 401, 404)
    junk = {"Git_Protocol": "version=2; rm -rf /", "Authorization": "Basic %%%"}
    assert raw("GET", f"/{repo}/info/refs?service=git-upload-pack", **junk).status == 401


def lfs_batch(raw, repo, operation, objects, **options):
    body = json.dumps({"operation": operation, "transfers": ["basic"], "objects": objects}).encode()
    return raw("POST", f"/{repo}.git/info/lfs/objects/batch", body=body, **options)


def test_git_lfs_is_told_where_the_large_files_are(local_hub, api, repo, raw):
    from huggingface_hub.utils import get_session

    commit(api, repo, {"w.safetensors": WEIGHTS})
    known = {"oid": hashlib.sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS)}
    unknown = {"oid": "0" * 64, "size": 5}
    answer = lfs_batch(raw, repo, "download", [known, unknown])
    assert answer.headers["Content-Type"] == "application/vnd.git-lfs+json"
    found, missing = answer.json()["objects"]
    assert get_session().get(found["actions"]["download"]["href"]).content == WEIGHTS
    assert (missing["error"]["code"], "actions" in missing) == (404, False)


def test_a_large_file_is_given_only_from_a_repository_that_has_it(local_hub, api, repo, raw):
    commit(api, repo, {"w.safetensors": WEIGHTS[::-1]})
    api.update_repo_settings(repo, private=True)
    known = {"oid": hashlib.sha256(WEIGHTS[::-1]).hexdigest(), "size": len(WEIGHTS)}
    api.create_repo("acme/elsewhere", exist_ok=True)
    assert "error" in lfs_batch(raw, "acme/elsewhere", "download", [known]).json()["objects"][0]
    refused = lfs_batch(raw, repo, "download", [known])
    assert (refused.status, "Basic" in refused.headers["LFS-Authenticate"]) == (401, True)
    assert "actions" in lfs_batch(raw, repo, "download", [known], token=api.token).json()["objects"][0]


def wait_until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes as Linux shows them")
def test_a_client_that_leaves_in_the_middle_leaves_no_process(local_hub, api, repo):
    # More than the buffers of both ends hold.
    noise = {f"{n}.txt": hashlib.shake_256(b"%d" % n).hexdigest(4_000_000).encode() for n in range(5)}
    head = commit(api, repo, noise).oid
    path, address = str(local_hub._hub.find_repo("models", repo).git.path), urlsplit(local_hub.endpoint)

    def running() -> bool:
        lines = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has just ended
                lines.append(file.read_text(errors="replace"))
        return any(path in line for line in lines)

    body = f"0032want {head}\n00000009done\n"
    request = f"POST /{repo}/git-upload-pack HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((address.hostname, address.port))
        connection.sendall((request + body).encode())
        assert connection.recv(2000).startswith(b"HTTP/1.1 200")
        wait_until(running)  # the answer begins before the process does
    wait_until(lambda: not running())
