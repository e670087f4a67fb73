import hashlib
import io
import random
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from hubprune.localhub import large_files


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def upload(api, repo, content, path="weights.safetensors"):
    api.create_commit(repo, [CommitOperationAdd(path, content)], commit_message="Add weights")


def lines(hub) -> str:
    return "\n".join(record.line for record in hub.log)


@pytest.fixture(scope="module")
def plain_hub(open_hub):
    """A hub that does not announce Xet."""
    return open_hub(xet=False)


@pytest.mark.parametrize("size", [1, 5000, 300_000])
def test_what_goes_up_through_xet_comes_down_through_xet(local_hub, api, repo, tmp_path, size):
    content = noise(size, seed=size)
    upload(api, repo, content)
    assert "POST /_xet/v1/shards" in lines(local_hub)
    local_hub.clear_log()
    assert Path(api.hf_hub_download(repo, "weights.safetensors", cache_dir=tmp_path)).read_bytes() == content
    assert "GET /_xet/v1/reconstructions/" in lines(local_hub)
    assert "/_lfs/object/" not in lines(local_hub)


def test_what_went_up_through_xet_comes_down_as_one_file_too(plain_hub, tmp_path):
    api = HfApi(endpoint=plain_hub.endpoint, token=plain_hub.token)
    api.create_repo("acme/plain")
    # Floats, so that the client groups bytes before it compresses them.
    content = b"".join(random.Random(n).randbytes(3) + b"\x3f" for n in range(50_001)) + b"odd"
    upload(api, "acme/plain", content)
    plain_hub.clear_log()
    assert Path(api.hf_hub_download("acme/plain", "weights.safetensors", cache_dir=tmp_path)).read_bytes() == content
    assert "GET /_lfs/object/" in lines(plain_hub)
    assert "/_xet/" not in lines(plain_hub)


def test_a_file_object_goes_up_through_lfs(local_hub, api, repo, tmp_path):
    content = noise(40_000)
    local_hub.clear_log()
    upload(api, repo, io.BytesIO(content))
    assert f"PUT /_lfs/object/{hashlib.sha256(content).hexdigest()}" in lines(local_hub)
    assert Path(api.hf_hub_download(repo, "weights.safetensors", cache_dir=tmp_path)).read_bytes() == content


def test_a_file_that_is_there_is_not_uploaded_again(local_hub, api, repo):
    content = noise(40_000, seed=5)
    upload(api, repo, io.BytesIO(content))
    local_hub.clear_log()
    upload(api, repo, io.BytesIO(content), path="copy.safetensors")
    assert "PUT " not in lines(local_hub)


def test_a_large_file_goes_up_in_parts(local_hub, api, repo, tmp_path, monkeypatch):
    monkeypatch.setattr(large_files, "PART_BYTES", 30_000)
    content = noise(100_000, seed=6)
    local_hub.clear_log()
    upload(api, repo, io.BytesIO(content))
    assert lines(local_hub).count("PUT /_lfs/object/") == 4
    assert "POST /_lfs/complete/" in lines(local_hub)
    assert Path(api.hf_hub_download(repo, "weights.safetensors", cache_dir=tmp_path)).read_bytes() == content


def test_known_chunks_are_not_uploaded_again(local_hub, api, repo):
    content = noise(400_000, seed=7)
    upload(api, repo, content)
    local_hub.clear_log()
    upload(api, repo, content + b"a little more", path="longer.safetensors")
    sent = sum(record.bytes_in for record in local_hub.log if record.path.startswith("/_xet/v1/xorbs"))
    assert sent < 150_000


def test_another_machine_learns_from_the_hub_which_chunks_are_known(local_hub, api, repo, child, tmp_path):
    content = noise(400_000, seed=8)
    upload(api, repo, content)
    local_hub.clear_log()
    (tmp_path / "longer").write_bytes(content + b"a little more")
    child(
        "from huggingface_hub import HfApi\n"
        f"HfApi().upload_file(repo_id={repo!r}, path_or_fileobj='longer', path_in_repo='longer.safetensors')"
    )
    assert any(record.path.startswith("/_xet/v1/chunks/") and record.status == 200 for record in local_hub.log)
    sent = sum(record.bytes_in for record in local_hub.log if record.path.startswith("/_xet/v1/xorbs"))
    assert sent < 150_000


def test_what_the_stores_grow_by_is_what_was_new(local_hub, api, repo):
    content = noise(400_000, seed=30)
    before = local_hub.stored_bytes
    upload(api, repo, content)
    first = local_hub.stored_bytes
    assert 400_000 < first.xet - before.xet < 410_000
    api.create_repo(f"{repo}-again")
    upload(api, f"{repo}-again", content, path="other.safetensors")
    assert local_hub.stored_bytes == first
    upload(api, repo, io.BytesIO(noise(50_000, seed=31)), path="more.safetensors")
    assert local_hub.stored_bytes.lfs - first.lfs == 50_000
    assert local_hub.stored_bytes.xet == first.xet


@pytest.mark.parametrize(("path", "size"), [("notes.txt", 5000), ("weights.safetensors", 200_000)])
def test_parts_of_a_file_can_be_read(api, repo, path, size):
    content = noise(size, seed=9).hex().encode()
    upload(api, repo, content, path=path)
    with HfFileSystem(endpoint=api.endpoint, token=api.token).open(f"{repo}/{path}", block_size=1000) as file:
        for start, count in ((0, 10), (4321, 1234), (len(content) - 5, 50)):
            file.seek(start)
            assert file.read(count) == content[start : start + count]


@pytest.mark.parametrize(
    ("header", "status", "expected"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=5-500", 206, b"56789"),
        ("bytes=10-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=-", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
    ],
)
def test_ranges_follow_the_standard(api, repo, raw, header, status, expected):
    upload(api, repo, b"0123456789", path="digits.txt")
    answer = raw("GET", f"/{repo}/resolve/main/digits.txt", Range=header)
    assert answer.status == status
    assert expected is None or answer.body == expected


def test_the_token_stays_with_the_hub(local_hub, api, repo, raw, child):
    upload(api, repo, io.BytesIO(noise(10_000, seed=10)))
    child(f"from huggingface_hub import hf_hub_download; hf_hub_download({repo!r}, 'weights.safetensors')")
    child(
        f"from huggingface_hub import hf_hub_download; hf_hub_download({repo!r}, 'weights.safetensors')",
        HF_HUB_DISABLE_XET="1",
        HF_HOME="other",
    )
    content_network = [record for record in local_hub.log if record.host.startswith("localhost")]
    assert {record.method for record in content_network} >= {"PUT", "GET"}
    assert not any(record.authorized for record in content_network)
    raw("GET", "/_lfs/object/" + "0" * 64, token=local_hub.token, Host="localhost")
    assert local_hub.log[-1].authorized


def test_nothing_that_is_logged_gives_access(local_hub, api, repo):
    upload(api, repo, noise(10_000, seed=11))
    upload(api, repo, io.BytesIO(noise(10_000, seed=12)), path="other.safetensors")
    logged = repr(local_hub.log)
    assert local_hub.token not in logged
    assert "stamp" not in logged


def test_content_that_does_not_match_its_name_is_refused(local_hub, api, repo, raw):
    sha256 = hashlib.sha256(b"right").hexdigest()
    batch = b'{"objects": [{"oid": "%s", "size": 5}]}' % sha256.encode()
    answer = raw("POST", f"/{repo}.git/info/lfs/objects/batch", token=api.token, body=batch).json()
    upload_path = answer["objects"][0]["actions"]["upload"]["href"].split("/", 3)[3]
    assert raw("PUT", f"/{upload_path}", body=b"wrong").status == 400
    assert raw("PUT", f"/{upload_path}", body=b"right").status == 200
    assert raw("PUT", f"/{upload_path.partition('?')[0]}", body=b"right").status == 403


def test_a_file_that_was_never_uploaded_cannot_be_committed(api, repo):
    operation = CommitOperationAdd("weights.safetensors", noise(100, seed=13))
    operation._upload_mode = "lfs"
    operation._is_uploaded = True
    with pytest.raises(HfHubHTTPError, match="points to a file that does not exist") as error:
        api.create_commit(repo, [operation], commit_message="Add weights")
    assert error.value.response.status_code == 422
