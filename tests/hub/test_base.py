"""Finding a base and fetching what is needed of it, against a Hub over HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from on_hub import BASE_ID, CONFIG, Ticks, commit_files, raw, safetensors

from hubprune.core.artifacts import PublishedCommit, RepoFile
from hubprune.core.errors import (
    AuthenticationError,
    BaseNotFoundError,
    CheckpointError,
    GatedBaseError,
    HubError,
    HubUnreachableError,
    UnsupportedArchitectureError,
    UnsupportedFormatError,
    VerificationError,
)
from hubprune.core.recipe import BaseModelSpec
from hubprune.core.weights import merged_headers
from hubprune.hub import transfer
from hubprune.hub.repos import (
    download_base,
    needed_files,
    resolve_base,
    small_files,
    stored_headers,
    stored_shapes,
    weight_files,
)
from hubprune.hub.session import HubSession
from hubprune.pruning.checkpoint import carried_files

MODEL = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": safetensors(10)}


def spec(repo_id=BASE_ID, revision="main"):
    return BaseModelSpec(repo_id=repo_id, revision=revision)


def test_a_base_is_pinned_to_its_commit_and_only_its_config_is_read(hub, base_repo, session):
    hub.clear_log()
    base = resolve_base(spec(), session=session)
    assert (base.commit, base.config, base.folder) == (base_repo, CONFIG, None)
    assert (base.card.language, base.card.license) == (("en",), "apache-2.0")
    # At most: an earlier test may have left the config of this commit in the cache.
    assert {r.path for r in hub.log if "/resolve/" in r.path} <= {f"/{BASE_ID}/resolve/{base_repo}/config.json"}
    weights = next(f for f in base.files if f.path == "model.safetensors")
    assert weights.size == len(safetensors(70_000))
    assert re.fullmatch("[0-9a-f]{64}", weights.sha256 or "")


def test_only_what_a_result_is_made_of_is_downloaded(hub, base_repo, session, reporter):
    base = resolve_base(spec(), session=session)
    hub.clear_log()
    folder = Path(download_base(base, session=session, reporter=reporter).folder)
    fetched = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert fetched == [
        "LICENSE.txt", "USE_POLICY.md", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert (folder / "model.safetensors").read_bytes() == safetensors(70_000)
    assert not [r for r in hub.log if "original" in r.path or ".bin" in r.path or "consolidated" in r.path]


def test_downloads_report_every_byte_once(base_repo, session, tmp_path, monkeypatch):
    base, ticks = resolve_base(spec(), session=session), Ticks()
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path))
    download_base(base, session=session, reporter=ticks)
    fetched = sum(f.size for f in needed_files(base))
    assert ticks.total == ticks.done == 2 * fetched  # each is read once more to be compared
    download_base(base, session=session, reporter=ticks)
    assert ticks.total == ticks.done == 3 * fetched


@pytest.mark.parametrize(
    ("path", "kind"),
    [("model.safetensors", "SHA-256"), ("tokenizer.json", "git blob id"), ("LICENSE", "git blob id")],
)
@pytest.mark.parametrize("seen_before", [False, True])
def test_a_file_that_was_damaged_in_the_cache_is_named_with_the_way_to_get_it_again(
    new_repo, session, reporter, path, kind, seen_before
):
    repo_id = new_repo({**MODEL, "tokenizer.json": b'{"a": 1}', "LICENSE": b"terms"})
    base = resolve_base(spec(repo_id), session=session)
    cached = Path(session.api.hf_hub_download(repo_id, path, revision=base.commit)).resolve()
    if seen_before:
        download_base(base, session=session, reporter=reporter)
    data = bytearray(cached.read_bytes())
    data[-1] ^= 1
    cached.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        download_base(base, session=session, reporter=reporter)
    message, hint = caught.value.message, caught.value.hint
    assert f"{path} of {repo_id} in the cache is not the file of commit {base.commit[:8]}: its {kind} is" in message
    assert f"`hf cache verify {repo_id} --revision {base.commit}`" in hint
    session.api.hf_hub_download(repo_id, path, revision=base.commit, force_download=True)
    assert download_base(base, session=session, reporter=reporter).folder


def test_a_config_that_was_damaged_in_the_cache_is_told_before_it_is_read(new_repo, session):
    repo_id = new_repo(MODEL)
    base = resolve_base(spec(repo_id), session=session)
    cached = Path(session.api.hf_hub_download(repo_id, "config.json", revision=base.commit)).resolve()
    cached.write_bytes(cached.read_bytes().replace(b"8", b"9"))
    with pytest.raises(CheckpointError, match=r"config\.json of .* in the cache is not the file of commit"):
        resolve_base(spec(repo_id), session=session)


def test_what_was_compared_is_not_read_again_until_it_is_touched(base_repo, session, reporter, tmp_path, monkeypatch):
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "work"))
    base = resolve_base(spec(), session=session)
    folder = Path(download_base(base, session=session, reporter=reporter).folder)
    read = []
    monkeypatch.setattr(transfer, "_digest", lambda path, **options: read.append(path.name) or "")
    download_base(base, session=session, reporter=reporter)
    assert read == []
    weights = (folder / "model.safetensors").resolve()
    os.utime(weights)
    with pytest.raises(CheckpointError):
        download_base(base, session=session, reporter=reporter)
    assert read == [weights.name]


def test_a_work_folder_that_cannot_be_written_hinders_no_download(base_repo, session, reporter, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "file"))
    assert download_base(resolve_base(spec(), session=session), session=session, reporter=reporter).folder


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_what_is_loaded_back_has_to_be_what_was_sent_byte_for_byte(new_repo, session, reporter, tmp_path, path):
    repo_id = new_repo(MODEL)
    base = resolve_base(spec(repo_id), session=session)
    # A publish knows the SHA-256 of all its files, of small ones too.
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in MODEL.items()}
    files = tuple(f.model_copy(update={"sha256": digests[f.path]}) for f in base.files if f.path in MODEL)
    published = PublishedCommit(repo_id=repo_id, commit=base.commit, parent=None, url="", created=True, files=files)
    for name, data in MODEL.items():
        (tmp_path / name).write_bytes(data)
    transfer.check_arrived(published, tmp_path)
    (tmp_path / path).write_bytes(MODEL[path][:-1] + b"?")
    with pytest.raises(VerificationError, match=rf"what was loaded back is not what was sent: {path} of"):
        transfer.check_arrived(published, tmp_path)
    (tmp_path / path).unlink()
    transfer.check_arrived(published, tmp_path)


def test_shards_are_those_that_the_index_names():
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors",
             "original/model.safetensors", "model.safetensors.index.json"]  # fmt: skip
    files = tuple(RepoFile(path=n, size=1) for n in names)
    assert [f.path for f in weight_files(files)] == names[:2]


def test_a_missing_base_is_named_with_the_place_it_was_looked_for(hub, session):
    with pytest.raises(BaseNotFoundError, match=f"{hub.endpoint} has no model nobody/nothing"):
        resolve_base(spec("nobody/nothing"), session=session)


def test_a_private_base_is_not_told_from_a_missing_one(hub, new_repo, session):
    repo_id = new_repo(MODEL, private=True)
    with pytest.raises(BaseNotFoundError, match="this token may not see it"):
        resolve_base(spec(repo_id), session=session)
    with pytest.raises(BaseNotFoundError, match=r"no token is set.*hf auth login"):
        resolve_base(spec(repo_id), session=HubSession.open(endpoint=hub.endpoint))


def test_a_base_says_whether_it_is_private(hub, new_repo, session):
    repo_id = new_repo(MODEL, private=True)
    member = HubSession.open(endpoint=hub.endpoint, token=hub.add_user("member", orgs=("somebody",)))
    assert resolve_base(spec(repo_id), session=member).private
    assert not resolve_base(spec(new_repo(MODEL)), session=session).private


def test_a_missing_revision_is_named(base_repo, session):
    with pytest.raises(BaseNotFoundError, match=r"has no revision 'v9'"):
        resolve_base(spec(revision="v9"), session=session)


def test_a_gated_base_says_where_to_ask(hub, new_repo, session):
    repo_id = new_repo(MODEL, gated="manual")
    with pytest.raises(GatedBaseError, match=f"Ask for access at {hub.endpoint}/{repo_id}"):
        resolve_base(spec(repo_id), session=session)
    granted = hub.add_user("granted", granted=[repo_id])
    assert resolve_base(spec(repo_id), session=HubSession.open(endpoint=hub.endpoint, token=granted)).config == CONFIG


def test_an_expired_token_is_told_from_a_missing_repo(hub, base_repo):
    token = hub.add_user("late", expired=True)
    with pytest.raises(AuthenticationError, match=r"has expired\. Even public repos") as caught:
        resolve_base(spec(), session=HubSession.open(endpoint=hub.endpoint, token=token))
    assert token not in str(caught.value)
    assert "unset" in caught.value.hint
    assert resolve_base(spec(), session=HubSession.open(endpoint=hub.endpoint)).commit == base_repo


@pytest.mark.parametrize(
    ("files", "error", "said"),
    [
        ({"model.safetensors": safetensors(1)}, BaseNotFoundError, "has no config.json"),
        (
            {"adapter_config.json": b"{}", "adapter_model.safetensors": b""},
            BaseNotFoundError,
            "an adapter and no model",
        ),
        ({**MODEL, "config.json": b'{"model_type": "bloom"}'}, UnsupportedArchitectureError, "'bloom'"),
        ({**MODEL, "config.json": b"[" * 100_000}, CheckpointError, "is no valid JSON"),
        ({"config.json": MODEL["config.json"], "pytorch_model.bin": b"x"}, UnsupportedFormatError, "save_pretrained"),
        ({"config.json": MODEL["config.json"]}, UnsupportedFormatError, "no model\\*.safetensors"),
    ],
)
def test_a_base_that_cannot_be_used_says_why(new_repo, session, files, error, said):
    with pytest.raises(error, match=said):
        resolve_base(spec(new_repo(files)), session=session)


def test_a_folder_with_an_adapter_alone_is_no_repo_id(session, tmp_path, monkeypatch):
    (tmp_path / "odd" / "adapter").mkdir(parents=True)
    (tmp_path / "odd" / "adapter" / "adapter_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseNotFoundError, match="an adapter and no model") as caught:
        resolve_base(spec("odd/adapter"), session=session)
    assert "merge_and_unload" in caught.value.hint


# ---- what is known before the weights are here -------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 300_000])
def test_of_weights_only_the_headers_are_read(hub, new_repo, session, size):
    shards = {f"model-0000{i}-of-00002.safetensors": safetensors(size + i, name=f"w{i}") for i in (1, 2)}
    repo_id = new_repo({"config.json": MODEL["config.json"], "consolidated.safetensors": b"x", **shards})
    base = resolve_base(spec(repo_id), session=session)
    hub.clear_log()
    assert stored_shapes(base, session=session) == {"w1": (size + 1,), "w2": (size + 2,)}
    asked = [request for request in hub.log if "/resolve/" in request.path]
    assert {Path(request.path).name for request in asked} == set(shards)
    folder = small_files(base, session=session)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_files_that_the_client_shares_between_repos_are_no_links_to_elsewhere(new_repo, session):
    attributes = b"*.model filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    pieces = {"tokenizer.model": b"pieces" * 1000, ".gitattributes": attributes}
    base = resolve_base(spec(new_repo({**MODEL, **pieces})), session=session)
    folder = small_files(base, session=session)
    (found,) = [path for path in carried_files(folder) if path.name == "tokenizer.model"]
    assert found.read_bytes() == pieces["tokenizer.model"]
    blobs = folder.parent.parent / "blobs"
    assert not found.resolve().is_relative_to(blobs), "else this shows nothing: the client keeps it with the repo"


def test_an_index_that_the_headers_contradict_is_found_before_the_weights_are_fetched(hub, new_repo, session):
    shards = {f"model-0000{i}-of-00002.safetensors": safetensors(4, f"w{i}") for i in (1, 2)}
    index = {
        "metadata": {},
        "weight_map": {"w1": "model-00001-of-00002.safetensors", "w2": "model-00001-of-00002.safetensors"},
    }
    files = {"config.json": MODEL["config.json"], "model.safetensors.index.json": json.dumps(index).encode(), **shards}
    base = resolve_base(spec(new_repo(files)), session=session)
    folder = small_files(base, session=session)
    with pytest.raises(CheckpointError, match=r"index\.json of somebody/base-.* disagree, first about 'w2'"):
        merged_headers(
            stored_headers(base, session=session), index=folder / "model.safetensors.index.json", name=base.name
        )


def test_a_byte_that_rots_without_changing_a_time_is_found_where_nothing_is_taken_from_memory(
    base_repo, session, reporter, tmp_path, monkeypatch
):
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "home"))
    base = download_base(resolve_base(spec(), session=session), session=session, reporter=reporter)
    weights, folder = weight_files(base.files), Path(base.folder)
    asked = {"repo_id": base.name, "commit": base.commit, "reporter": reporter}
    path = (folder / "model.safetensors").resolve()
    before, times = path.read_bytes(), path.stat()
    try:
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        transfer.check_files(weights, folder, **asked)
        with pytest.raises(CheckpointError, match=r"model\.safetensors of .* is not the file of commit"):
            transfer.check_files(weights, folder, **asked, remembered=False)
    finally:
        path.write_bytes(before)


def test_a_header_of_many_tensors_is_read_whole(new_repo, session):
    header = {f"model.layers.{i}.w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(3000)}
    repo_id = new_repo({"config.json": MODEL["config.json"], "model.safetensors": raw(json.dumps(header).encode())})
    assert len(stored_shapes(resolve_base(spec(repo_id), session=session), session=session)) == 3000


@pytest.mark.parametrize("header", [b"{", b"[]", b'{"w": 1}', b'{"w": {}}', b'{"w": {"dtype": "F32", "shape": 3}}'])
def test_a_header_that_is_none_names_the_file(new_repo, session, header):
    base = resolve_base(spec(new_repo({**MODEL, "model.safetensors": raw(header)})), session=session)
    with pytest.raises(CheckpointError, match=r"model\.safetensors of somebody/base-.* is no safetensors file"):
        stored_shapes(base, session=session)


def test_a_hub_that_does_not_answer_is_named(session):
    dead = HubSession.open(endpoint="http://127.0.0.1:9", token="hf_x")
    with pytest.raises(HubUnreachableError, match=r"no connection to http://127.0.0.1:9"):
        resolve_base(spec(), session=dead)


def test_passing_trouble_is_waited_out(hub, base_repo, session):
    hub.set_faults([{"match": "GET /api/models/meta-llama", "do": "status", "status": 503, "times": 2}])
    assert resolve_base(spec(), session=session).commit == base_repo


def test_lasting_trouble_ends_after_a_few_tries(hub, base_repo, session):
    hub.set_faults([{"match": "GET /api/models/meta-llama", "do": "status", "status": 503, "times": 99}])
    hub.clear_log()
    with pytest.raises(HubError, match=f"{hub.endpoint} has trouble"):
        resolve_base(spec(), session=session)
    assert len(hub.log) == 4


def test_a_local_folder_needs_no_hub(tmp_path):
    for path, data in MODEL.items():
        (tmp_path / path).write_bytes(data)
    base = resolve_base(spec(str(tmp_path)), session=HubSession.open(endpoint="http://127.0.0.1:9"))
    assert (base.name, base.commit, base.folder) == (tmp_path.name, None, str(tmp_path.resolve()))
    with pytest.raises(BaseNotFoundError, match="neither a folder nor a repo id"):
        resolve_base(spec(str(tmp_path / "none")), session=HubSession.open(endpoint="http://127.0.0.1:9"))


def test_a_session_never_shows_its_token():
    assert "hf_secret" not in repr(HubSession.open(endpoint="http://x/", token="hf_secret"))
    assert HubSession.open(endpoint="http://x/").endpoint == "http://x"


def test_the_base_moves_while_the_pinned_commit_stays(admin, new_repo, session, reporter):
    repo_id = new_repo(MODEL)
    base = resolve_base(spec(repo_id), session=session)
    commit_files(admin, repo_id, {"model.safetensors": safetensors(20)})
    folder = Path(download_base(base, session=session, reporter=reporter).folder)
    assert (folder / "model.safetensors").read_bytes() == safetensors(10)
