import hashlib
import json
import math
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError


@pytest.fixture(scope="module")
def hub(open_hub):
    return open_hub()


@pytest.fixture(scope="module")
def everybody(hub):
    """A hub with four models and a data set, seen by its admin."""
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    cards = {
        "acme/base": "---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n",
        "acme/pruned": "---\nlicense: mit\ntags: [pruned]\nbase_model: acme/base\nlanguage: en\n---\n",
        "labs/gated": "---\nlicense: other\nlicense_name: own\n---\n",
        "labs/secret": "---\nlicense: mit\ntags: [pruned]\n---\n",
    }
    for repo, card in cards.items():
        api.create_repo(repo)
        api.create_commit(repo, [CommitOperationAdd("README.md", card.encode())], commit_message="Add the card")
    api.update_repo_settings("labs/gated", gated="auto")
    api.update_repo_settings("labs/secret", private=True)
    api.create_repo("acme/rows", repo_type="dataset")
    return api


def ids(found) -> list[str]:
    return sorted(repo.id for repo in found)


def test_everybody_sees_what_is_public_and_members_what_is_theirs(hub, everybody):
    public = ["acme/base", "acme/pruned", "labs/gated"]
    for token in (False, hub.add_user("stranger")):
        assert ids(HfApi(endpoint=hub.endpoint, token=token).list_models()) == public
    member = HfApi(endpoint=hub.endpoint, token=hub.add_user("member", role="read", orgs=["labs"]))
    assert ids(member.list_models()) == [*public, "labs/secret"]
    assert ids(everybody.list_datasets()) == ["acme/rows"]
    assert ids(everybody.list_spaces()) == []


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"author": "acme"}, ["acme/base", "acme/pruned"]),
        ({"author": "acm"}, []),
        ({"search": "PRUN"}, ["acme/pruned"]),
        ({"filter": "pruned"}, ["acme/pruned", "labs/secret"]),
        ({"filter": ["pruned", "en"]}, ["acme/pruned"]),
        ({"filter": "base_model:acme/base"}, ["acme/pruned"]),
        ({"filter": "license:mit", "author": "acme"}, ["acme/base", "acme/pruned"]),
        ({"filter": "text-generation"}, ["acme/base"]),
        ({"pipeline_tag": "text-generation"}, ["acme/base"]),
        ({"gated": True}, ["labs/gated"]),
        ({"gated": False, "author": "labs"}, ["labs/secret"]),
    ],
)
def test_a_list_holds_what_was_looked_for(everybody, wanted, expected):
    assert ids(everybody.list_models(**wanted)) == expected


def test_a_list_is_sorted_and_cut(everybody):
    by_creation = [repo.id for repo in everybody.list_models(sort="created_at")]
    assert by_creation == ["labs/secret", "labs/gated", "acme/pruned", "acme/base"]
    assert [repo.id for repo in everybody.list_models(sort="created_at", limit=2)] == by_creation[:2]


def test_a_long_list_comes_in_pages(hub, everybody, monkeypatch):
    monkeypatch.setattr("hubprune.localhub.routes_listing._PER_PAGE", 2)
    hub.clear_log()
    assert len(list(everybody.list_models(search="acme", filter="license:mit"))) == 2
    assert len(list(everybody.list_models())) == 4
    assert [record.query.rpartition("cursor=")[2] for record in hub.log[-2:]] == ["", "2"]


def test_a_list_tells_as_much_as_was_asked_for(everybody):
    def first(**options):
        return next(iter(everybody.list_models(search="pruned", **options)))

    assert (first().tags[0], first().sha, first().siblings) == ("pruned", None, None)
    full = first(full=True)
    assert full.sha == everybody.model_info("acme/pruned").sha
    assert [file.rfilename for file in full.siblings] == [".gitattributes", "README.md"]
    assert first(cardData=True).card_data.base_model == "acme/base"
    expanded = first(expand=["gated", "baseModels", "inference"])
    assert (expanded.gated, expanded.base_models["models"][0]["id"], expanded.tags) == (False, "acme/base", None)


def test_one_property_is_told_by_itself(everybody):
    info = everybody.model_info("acme/base", expand=["library_name", "usedStorage"])
    assert (info.library_name, info.used_storage > 1000, info.sha) == ("transformers", True, None)
    info = everybody.dataset_info("acme/rows", expand=["createdAt", "private"])
    assert (info.private, info.author) == (False, None)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        *[(query, 400) for query in ("expand=passwords", "sort=beauty", "limit=-1", "limit=0", "limit=x", "cursor=-5")],
        *[(query, 501) for query in ("apps=vllm", "inference=warm")],
        ("filter=%ff&search=%00&author=..", 200),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(hub, everybody, query, status):
    from huggingface_hub.utils import get_session

    answer = get_session().get(f"{hub.endpoint}/api/models?{query}")
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]


def test_a_config_that_is_none_is_no_obstacle(everybody):
    for number, config in enumerate([b"[1]", b"{", b'{"architectures": NaN}', b"[" * 100_000, b"\xff"]):
        everybody.create_repo(f"odd/{number}")
        operation = CommitOperationAdd("config.json", config)
        everybody.create_commit(f"odd/{number}", [operation], commit_message="Add")
        assert everybody.model_info(f"odd/{number}").config in (None, {"architectures": "NaN"})
        everybody.delete_repo(f"odd/{number}")


def test_storage_is_told_to_those_whose_it_is(hub, everybody):
    member = HfApi(endpoint=hub.endpoint, token=hub.add_user("keeper", orgs=["labs"]))
    rows = list(member.list_user_repos("labs"))
    assert sorted((row.id, row.type, row.visibility) for row in rows) == [
        ("labs/gated", "model", "public"),
        ("labs/secret", "model", "private"),
    ]
    assert sum(row.storage_percent for row in rows) == pytest.approx(100, abs=0.1)
    assert list(member.list_user_repos()) == []
    with pytest.raises(HfHubHTTPError) as error:
        list(member.list_user_repos("acme"))
    assert error.value.response.status_code == 403


def test_a_moved_repository_is_found_under_both_names(hub, everybody):
    everybody.create_repo("labs/first")
    everybody.move_repo("labs/first", "labs/second")
    everybody.move_repo("labs/second", "labs/third")
    assert everybody.model_info("labs/first").id == "labs/third"
    operation = CommitOperationAdd("a.txt", b"x")
    everybody.create_commit("labs/first", [operation], commit_message="By its old name")
    assert everybody.file_exists("labs/second", "a.txt")
    assert everybody.list_repo_files("labs/third") == [".gitattributes", "a.txt"]
    everybody.create_repo("labs/first")
    assert everybody.list_repo_files("labs/first") == [".gitattributes"]
    everybody.update_repo_settings("labs/third", private=True)
    stranger = HfApi(endpoint=hub.endpoint, token=False)
    with pytest.raises(RepositoryNotFoundError):
        stranger.model_info("labs/second")
    for repo in ("labs/first", "labs/third"):
        everybody.delete_repo(repo)


def test_moving_and_copying_take_the_right_to_do_so(hub, everybody):
    member = HfApi(endpoint=hub.endpoint, token=hub.add_user("mover", orgs=["acme"]))
    for forbidden in (
        lambda: member.move_repo("acme/pruned", "labs/pruned"),
        lambda: member.move_repo("labs/gated", "acme/gated"),
        lambda: member.duplicate_repo("acme/pruned", "labs/pruned"),
        lambda: member.duplicate_repo("labs/gated", "acme/gated"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            forbidden()
        assert error.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError) as error:
        member.move_repo("acme/pruned", "acme/base")
    assert error.value.response.status_code == 409
    assert ids(member.list_models(author="acme")) == ["acme/base", "acme/pruned"]


def test_a_copy_has_the_history_and_the_files_but_not_the_talk(everybody, tmp_path):
    weights = CommitOperationAdd("w.bin", bytes(range(256)) * 20)
    everybody.create_repo("labs/source")
    head = everybody.create_commit("labs/source", [weights], commit_message="Add weights").oid
    everybody.create_tag("labs/source", tag="v1")
    everybody.create_discussion("labs/source", "Talk")
    everybody.duplicate_repo("labs/source", "labs/copy", private=True)
    info = everybody.model_info("labs/copy", revision="v1")
    assert (info.sha, info.private) == (head, True)
    everybody.delete_repo("labs/source")
    assert list(everybody.get_repo_discussions("labs/copy")) == []
    path = everybody.hf_hub_download("labs/copy", "w.bin", cache_dir=tmp_path)
    assert Path(path).stat().st_size == 5120
    everybody.delete_repo("labs/copy")


def test_a_squashed_branch_is_one_commit_with_the_same_files(everybody):
    everybody.create_repo("labs/long")
    for number in range(3):
        operation = CommitOperationAdd(f"{number}.txt", b"x")
        everybody.create_commit("labs/long", [operation], commit_message=str(number))
    operation = CommitOperationAdd("proposed.txt", b"x")
    everybody.create_commit("labs/long", [operation], commit_message="Proposed", create_pr=True)
    everybody.super_squash_history("labs/long", commit_message="All of it")
    assert [commit.title for commit in everybody.list_repo_commits("labs/long")] == ["All of it"]
    everybody.merge_pull_request("labs/long", 1)
    expected = [".gitattributes", "0.txt", "1.txt", "2.txt", "proposed.txt"]
    assert everybody.list_repo_files("labs/long") == expected
    everybody.delete_repo("labs/long")


def test_a_folder_tells_the_last_commit_of_what_is_in_it(everybody):
    everybody.create_repo("labs/tree")
    made = {}
    for path in ("a.txt", "folder/b.txt", 'folder/größe "c".txt', "a.txt"):
        operation = CommitOperationAdd(path, f"{len(made)}".encode())
        made[path] = everybody.create_commit("labs/tree", [operation], commit_message=f"Write {path}").oid
    rows = {row.path: row.last_commit for row in everybody.list_repo_tree("labs/tree", recursive=True, expand=True)}
    assert {path: rows[path].oid for path in made} == made
    assert (rows["folder"].oid, rows["folder"].title) == (made['folder/größe "c".txt'], 'Write folder/größe "c".txt')
    everybody.delete_repo("labs/tree")


def test_an_unknown_address_of_the_interface_is_no_page(hub):
    from huggingface_hub.utils import get_session

    for method, path in (("GET", "/api/papers"), ("POST", "/api/models/a/b/like"), ("GET", "/api/spaces/a/b")):
        answer = get_session().request(method, hub.endpoint + path)
        assert (answer.status_code, "does not answer" in json.loads(answer.content)["error"]) == (404, True)


def tensor_file(**shapes: list[int]) -> bytes:
    """A safetensors file of zeros in bfloat16."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)


def test_a_model_tells_its_parameters_and_its_tensors(everybody):
    everybody.create_repo("labs/sharded")
    shards = {"a-1.safetensors": tensor_file(embed=[1000, 8]), "a-2.safetensors": tensor_file(head=[8, 3], norm=[8])}
    index = {"metadata": {"total_size": 16_064}, "weight_map": {"embed": "a-1.safetensors", "head": "a-2.safetensors"}}
    files = {**shards, "model.safetensors.index.json": json.dumps(index).encode()}
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    everybody.create_commit("labs/sharded", operations, commit_message="Add weights")
    counted = everybody.model_info("labs/sharded").safetensors
    assert (counted.parameters, counted.total) == ({"BF16": 8032}, 8032)
    at_once = everybody.get_sharded_safetensors_metadata("labs/sharded")
    one_by_one = everybody.get_safetensors_metadata("labs/sharded")
    assert at_once.files_metadata == one_by_one.files_metadata
    assert at_once.metadata == one_by_one.metadata
    listed = {file.filename: (file.file_oid, file.size) for file in everybody.list_lfs_files("labs/sharded")}
    assert listed == {path: (hashlib.sha256(content).hexdigest(), len(content)) for path, content in shards.items()}
    everybody.delete_repo("labs/sharded")


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors": b"short"},
        {"model.safetensors": b"\xff" * 20},
        {"model.safetensors": (5).to_bytes(8, "little") + b"[1]  "},
        {"model.safetensors": (20).to_bytes(8, "little") + b'{"a": 1}' + bytes(12)},
        {"model.safetensors": (8).to_bytes(8, "little") + b'{"a": 1}'},
        {"model.safetensors.index.json": b"{"},
        {"model.safetensors.index.json": b'{"weight_map": {"a": "../../x"}}'},
        {"model.safetensors.index.json": b'{"weight_map": {"a": 1}}'},
        {"model.safetensors.index.json": b'{"weight_map": {}}'},
        {"model.safetensors.index.json": b'{"weight_map": {"a": "missing"}}'},
    ],
    ids=repr,
)
def test_files_that_say_nothing_are_no_obstacle(everybody, files):
    everybody.create_repo("labs/odd")
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    everybody.create_commit("labs/odd", operations, commit_message="Add weights")
    told = everybody.model_info("labs/odd").safetensors
    assert told is None or told.total == 0
    with pytest.raises(HfHubHTTPError) as error:
        everybody.get_sharded_safetensors_metadata("labs/odd", filename=next(iter(files)))
    assert error.value.response.status_code in (400, 404)
    everybody.delete_repo("labs/odd")
