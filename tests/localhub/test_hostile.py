"""Requests that no honest client sends: each gets an answer of the 4xx kind, and nothing outside is touched."""

import base64
import contextlib
import json
import socket
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubprune.localhub import checks
from hubprune.localhub.checks import RefusedError
from hubprune.localhub.xet_format import SHARD_TAG

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
OUTSIDE = [
    "../escape",
    "a/../../escape",
    "/etc/passwd",
    "a//b",
    ".",
    "..",
    "",
    "a/.git/config",
    ".GIT/x",
    "git~1/config",
    "GIT~1/config",
    ".git\u200c/config",
    ".g\u206ait/config",
    ".git./config",
    ".git /config",
    ".git::$INDEX_ALLOCATION/config",
    "a\nb",
    "a\0b",
]


@pytest.fixture(scope="module")
def repo(api):
    """One repository for all: nothing here is meant to change it."""
    api.create_repo("acme/besieged")
    return "acme/besieged"


def commit_body(path: str, key: str = "file", **value) -> bytes:
    content = {"content": base64.b64encode(b"x").decode(), "path": path, "encoding": "base64", **value}
    header = {"key": "header", "value": {"summary": "s", "description": ""}}
    return "\n".join(json.dumps(line) for line in (header, {"key": key, "value": content})).encode()


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("key", ["file", "lfsFile", "deletedFile", "deletedFolder"])
def test_no_path_leads_out_of_a_repository(api, repo, raw, path, key):
    body = commit_body(path, key, oid="0" * 64)
    assert raw("POST", f"/api/models/{repo}/commit/main", token=api.token, body=body).status == 400
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_names_that_only_look_like_git_folders_are_files(api, repo):
    for path in (".gitignore", "git~2/x", ".github/x", "a.git/x", ".gitx"):
        assert checks.is_file_path(path)


def test_nothing_is_a_file_and_a_folder_in_one_commit(api, repo, raw):
    def body(*paths: str) -> bytes:
        return b"\n".join([commit_body("x").splitlines()[0], *[commit_body(path).splitlines()[1] for path in paths]])

    for paths in (("zz", "zz/b"), ("zz/b/c", "zz")):
        answer = raw("POST", f"/api/models/{repo}/commit/main", token=api.token, body=body(*paths))
        assert (answer.status, "cannot be a file and the folder of" in answer.json()["error"]) == (400, True)
    assert api.list_repo_files(repo) == [".gitattributes"]


@pytest.mark.parametrize("host", ["LOCALHOST", "LocalHost"])
def test_names_of_hosts_are_read_without_regard_to_case(local_hub, api, raw, host):
    from huggingface_hub import CommitOperationAdd

    api.create_repo("acme/large", exist_ok=True)
    add = CommitOperationAdd("w.bin", bytes(3000))
    api.create_commit("acme/large", [add], commit_message="w")
    port = urlsplit(local_hub.endpoint).port
    answer = raw("GET", "/acme/large/resolve/main/w.bin", token=api.token, Host=f"{host}:{port}")
    assert (answer.status, urlsplit(answer.headers["Location"]).hostname) == (302, "127.0.0.1")


def test_who_was_not_asked_to_upload_a_file_is_not_told_whether_it_is_there(local_hub, api, raw):
    import hashlib

    from huggingface_hub import CommitOperationAdd

    api.create_repo("acme/secret", exist_ok=True, private=True)
    data = b"secret" * 1000
    api.create_commit("acme/secret", [CommitOperationAdd("w.bin", data)], commit_message="w")
    sha256 = hashlib.sha256(data).hexdigest()
    body = json.dumps({"oid": sha256, "size": len(data)}).encode()
    other = hashlib.sha256(b"other").hexdigest()
    stamped = json.dumps({"operation": "upload", "objects": [{"oid": other, "size": 5}]}).encode()
    row = raw("POST", "/acme/secret.git/info/lfs/objects/batch", token=api.token, body=stamped).json()["objects"][0]
    address = row["actions"]["verify"]["href"].removeprefix(local_hub.endpoint)
    for path in ("/_lfs/verify", f"/_lfs/verify/{sha256}", address.replace(other, sha256)):
        assert raw("POST", path, body=body).status in (403, 404, 405)
        assert raw("POST", path, token=api.token, body=body).status in (403, 404, 405)
    assert raw("POST", address, body=body).status == 404


@pytest.mark.parametrize(
    "path", ["%2e%2e/%2e%2e/config", "..%2f..%2fconfig", "../../config", "%00", ".git/HEAD", "a%0ab"]
)
def test_no_address_leads_out_of_a_repository(api, repo, raw, path):
    for address in (f"/{repo}/resolve/main/{path}", f"/api/models/{repo}/tree/main/{path}"):
        assert 400 <= raw("GET", address, token=api.token).status < 500


@pytest.mark.parametrize(
    "name", ["..", ".", "a/../../b", "%2e%2e", "..%2f..", "-x", ".x", "x.git", "a--b", "a" * 97, "ä"]
)
def test_no_repository_name_leads_out_of_the_hub(api, raw, name):
    body = json.dumps({"name": name, "organization": "acme"}).encode()
    assert raw("POST", "/api/repos/create", token=api.token, body=body).status == 400
    body = json.dumps({"name": "x", "organization": name}).encode()
    assert raw("POST", "/api/repos/create", token=api.token, body=body).status == 400
    quoted = name.encode("ascii", "ignore").decode() or ".."
    assert 400 <= raw("GET", f"/api/models/acme/{quoted}", token=api.token).status < 500


@pytest.mark.parametrize(
    "name", ["--force", "a..b", "a b", "a/", "/a", "a.lock", "@{1}", "a^{}", "HEAD:x", "x~1", "a\\b"]
)
def test_no_revision_is_more_than_a_name(api, repo, raw, name):
    quoted = quote(name, safe="")
    assert 400 <= raw("GET", f"/api/models/{repo}/revision/{quoted}", token=api.token).status < 500
    assert 400 <= raw("POST", f"/api/models/{repo}/branch/{quoted}", token=api.token, body=b"{}").status < 500
    tag = json.dumps({"tag": name}).encode()
    assert 400 <= raw("POST", f"/api/models/{repo}/tag/main", token=api.token, body=tag).status < 500
    assert len(api.list_repo_refs(repo).branches) == 1


@pytest.mark.parametrize("digest", ["..%2f..%2faccounts.json", "0" * 63, "0" * 65, "G" * 64, "%2e%2e"])
def test_no_hash_is_more_than_a_hash(raw, digest):
    for method, address in (
        ("GET", f"/_lfs/object/{digest}"),
        ("PUT", f"/_lfs/object/{digest}"),
        ("POST", f"/_lfs/complete/{digest}"),
        ("GET", f"/_xet/xorb/{digest}"),
        ("GET", f"/_xet/v1/reconstructions/{digest}"),
        ("GET", f"/_xet/v1/chunks/default/{digest}"),
        ("POST", f"/_xet/v1/xorbs/default/{digest}"),
    ):
        assert 400 <= raw(method, address, body=b"x" if method != "GET" else None).status < 500


def test_storage_wants_a_stamp_that_is_genuine_and_for_this_very_thing(api, repo, raw):
    answer = raw("GET", f"/api/models/{repo}/xet-write-token/main", token=api.token).json()
    xet, digest = answer["accessToken"], "0" * 64
    assert raw("POST", f"/_xet/v1/xorbs/default/{digest}", token=xet, body=b"junk").status == 400
    permission, _, stamp = xet.partition(":")
    expires, _, proof = stamp.partition("-")
    forged = (
        f"xet-read:{stamp}",
        f"{permission}:{int(expires) + 1}-{proof}",
        f"{permission}:1-{proof}",
        "xet-write:",
        "",
    )
    for token in forged:
        assert raw("POST", f"/_xet/v1/xorbs/default/{digest}", token=token, body=b"junk").status == 401
    assert raw("GET", f"/_lfs/object/{digest}?stamp={stamp}").status == 403


def test_a_read_token_for_xet_does_not_write(api, repo, raw):
    token = raw("GET", f"/api/models/{repo}/xet-read-token/main").json()["accessToken"]
    assert raw("POST", "/_xet/v1/shards", token=token, body=b"").status == 401
    assert raw("GET", "/_xet/v1/reconstructions/" + "0" * 64, token=token).status == 404


JUNK = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"\xff\xfe",
    b'{"key": 1}',
    b'{"files": [1]}',
    b"[" * 100_000,
    b'{"files": {}}',
]


@pytest.mark.parametrize("body", JUNK, ids=lambda body: repr(body[:12]))
def test_junk_in_a_body_is_the_senders_mistake(api, repo, raw, body):
    model = f"/api/models/{repo}"
    for address in (
        "/api/repos/create",
        "/api/validate-yaml",
        f"{model}/commit/main",
        f"{model}/preupload/main",
        f"{model}/lfs-files/duplicate",
        f"{model}/tag/main",
        f"/{repo}.git/info/lfs/objects/batch",
        f"/_lfs/verify/{'0' * 64}",
        "/api/repos/move",
        f"{model}/duplicate",
        f"{model}/super-squash/main",
        f"{model}/discussions",
        f"{model}/discussions/1/comment",
        f"{model}/discussions/1/title",
        f"{model}/discussions/1/status",
        f"{model}/discussions/1/merge",
        f"{model}/discussions/1/comment/{'0' * 24}/edit",
    ):
        assert 400 <= raw("POST", address, token=api.token, body=body).status < 500, address


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        *["key", "value", "files", "objects", "paths", "path", "size", "oid", "name", "type", "content", "summary"],
        *["tag", "title", "description", "pullRequest", "comment", "status", "repository", "visibility", "message"],
    ]
)


@FEW
@given(body=st.dictionaries(FIELDS, VALUES, max_size=4))
def test_no_json_brings_a_handler_down(api, repo, raw, body):
    for address in (
        *("commit/main", "preupload/main", "paths-info/main", "tag/nowhere", "lfs-files/duplicate", "duplicate"),
        *("discussions", "discussions/99999/comment", "discussions/99999/status", "super-squash/nowhere"),
    ):
        sent = json.dumps(body).encode()
        assert raw("POST", f"/api/models/{repo}/{address}", token=api.token, body=sent).status < 500


HEADERS = st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"# \n\t0.\ud800é"), max_size=40)


@FEW
@given(metadata=HEADERS)
def test_no_card_brings_the_validator_down(api, raw, metadata):
    body = json.dumps({"content": f"---\n{metadata}\n---\n", "repoType": "model"}).encode()
    assert raw("POST", "/api/validate-yaml", token=api.token, body=body).status in (200, 400)


@pytest.mark.parametrize("metadata", ["a: &a [*a]", "? [1]\n: x", "a: !!python/name:os.system ''"])
def test_metadata_that_json_cannot_hold_is_refused(raw, metadata):
    body = json.dumps({"content": f"---\n{metadata}\n---\n"}).encode()
    assert raw("POST", "/api/validate-yaml", body=body).status == 400


def test_a_client_that_hangs_up_is_no_error(local_hub, api, repo, caplog):
    address = urlsplit(local_hub.endpoint)
    request = (
        f"POST /api/models/{repo}/commit/main HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 99\r\n\r\nhalf"
    )
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(request.encode())
    # The next request comes after the hub has noticed: both go through one event loop.
    assert api.whoami()
    assert not caplog.records


@given(st.text(alphabet=st.sampled_from("ab./\\-_ \n\0.git~%é\ud800"), max_size=20))
def test_a_path_that_is_let_in_stays_inside(text):
    with contextlib.suppress(RefusedError):
        path = checks.file_path(text)
        assert path.encode()
        assert not {"", ".", "..", ".git"} & set(path.split("/"))


def test_halves_of_characters_are_stored_as_something_that_can_be_sent(api, raw):
    api.create_repo("acme/odd-talk")
    body = b'{"title": "odd \\ud800", "description": "\\udfff"}'
    made = raw("POST", "/api/models/acme/odd-talk/discussions", token=api.token, body=body)
    assert made.status == 200
    assert api.get_discussion_details("acme/odd-talk", made.json()["num"]).title == "odd ?"


@pytest.mark.parametrize("number", ["0", "-1", "1e3", "x", "99999999999999", "%2e%2e", "\u0661".encode().hex("%")])
def test_no_discussion_is_found_by_what_is_not_its_number(api, repo, raw, number):
    quoted = f"%{number}" if number.startswith("d9") else number
    assert raw("GET", f"/api/models/{repo}/discussions/{quoted}", token=api.token).status in (400, 404)
    assert raw("GET", f"/api/models/{repo}/discussions?p={quoted}").status == 200


def test_a_body_without_end_is_refused_before_it_is_kept(local_hub, repo, raw, monkeypatch, api):
    announced = raw("POST", f"/api/models/{repo}/commit/main", token=api.token, Content_Length="9" * 15)
    assert announced.status == 413
    monkeypatch.setattr("hubprune.localhub.web.MAX_BODY_BYTES", 1000)
    assert raw("POST", f"/api/models/{repo}/commit/main", token=api.token, body=b"x" * 1001).status == 413
    assert raw("POST", f"/{repo}/git-upload-pack", Content_Length="9" * 15).status == 413


@FEW
@given(data=st.binary(max_size=200), path=st.sampled_from(["xorbs/default/" + "0" * 64, "shards"]))
def test_no_bytes_bring_the_xet_store_down(api, repo, raw, data, path):
    token = raw("GET", f"/api/models/{repo}/xet-write-token/main", token=api.token).json()["accessToken"]
    for prefix in (b"", SHARD_TAG, SHARD_TAG + bytes(16)):
        assert raw("POST", f"/_xet/v1/{path}", token=token, body=prefix + data).status < 500
