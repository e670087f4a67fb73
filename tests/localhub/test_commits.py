import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError


def add(path: str, content: bytes = b"x") -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def commit(api, repo, *operations, **options):
    return api.create_commit(repo, operations, **{"commit_message": "Change files", **options})


def read(api, repo, path, revision="main") -> bytes:
    from huggingface_hub import HfFileSystem

    return HfFileSystem(endpoint=api.endpoint, token=api.token).cat_file(f"{repo}@{revision}/{path}")


def in_parallel(tasks):
    """Run tasks that start together; return results and exceptions alike."""
    start = threading.Barrier(len(tasks))

    def run(task):
        start.wait()
        try:
            return task()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


def test_a_commit_adds_replaces_and_deletes_at_once(api, repo):
    first = commit(api, repo, add("keep.txt"), add("old.txt"), add("folder/a.txt"), add("folder/b.txt"))
    steps = (add("keep.txt", b"new"), CommitOperationDelete("old.txt"), CommitOperationDelete("folder/"))
    second = commit(api, repo, *steps, parent_commit=first.oid, commit_description="why\n\nmore")
    assert api.list_repo_files(repo) == [".gitattributes", "keep.txt"]
    assert read(api, repo, "keep.txt") == b"new"
    assert read(api, repo, "keep.txt", first.oid) == b"x"
    newest, previous, initial = api.list_repo_commits(repo)
    assert (newest.commit_id, previous.commit_id) == (second.oid, first.oid)
    assert (newest.title, newest.message, newest.authors) == ("Change files", "why\n\nmore", ["local"])
    assert initial.title == "initial commit"


def test_unchanged_files_make_no_commit(api, repo):
    files = (add("a.txt"), add("weights.bin", bytes(2000)))
    head = commit(api, repo, *files).oid
    assert commit(api, repo, add("a.txt"), add("weights.bin", bytes(2000))).oid == head
    assert api.model_info(repo).sha == head


def test_a_commit_on_a_parent_that_is_no_longer_the_head_is_refused(api, repo):
    head = api.model_info(repo).sha
    commit(api, repo, add("a.txt"))
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        commit(api, repo, add("b.txt"), parent_commit=head)
    assert error.value.response.status_code == 412
    assert api.list_repo_files(repo) == [".gitattributes", "a.txt"]


def test_of_writers_on_the_same_parent_exactly_one_wins(api, repo):
    head = api.model_info(repo).sha
    writers = [lambda n=n: commit(api, repo, add(f"{n}.txt"), parent_commit=head) for n in range(3)]
    results = in_parallel(writers)
    lost = [result for result in results if isinstance(result, HfHubHTTPError)]
    (won,) = [result for result in results if result not in lost]
    assert [error.response.status_code for error in lost] == [412, 412]
    assert api.model_info(repo).sha == won.oid
    assert len(api.list_repo_commits(repo)) == 2


def test_writers_without_a_parent_all_succeed(api, repo):
    results = in_parallel([lambda n=n: commit(api, repo, add(f"{n}.txt")) for n in range(3)])
    assert not [result for result in results if isinstance(result, Exception)]
    assert {"0.txt", "1.txt", "2.txt"} <= set(api.list_repo_files(repo))
    assert len(api.list_repo_commits(repo)) == 4


def test_of_creators_of_one_name_exactly_one_wins(api):
    results = in_parallel([lambda: api.create_repo("acme/raced") for _ in range(3)])
    assert sorted(isinstance(result, HfHubHTTPError) for result in results) == [False, True, True]
    assert api.list_repo_files("acme/raced") == [".gitattributes"]


def test_deleting_what_is_not_there_is_refused(api, repo):
    with pytest.raises(HfHubHTTPError, match="A file with this name doesn't exist"):
        commit(api, repo, CommitOperationDelete("missing.txt"))


def test_a_folder_takes_the_place_of_a_file_of_its_name(api, repo):
    commit(api, repo, add("a"))
    commit(api, repo, add("a/b"))
    assert api.list_repo_files(repo) == [".gitattributes", "a/b"]


def test_a_card_with_broken_metadata_is_refused(api, repo):
    for card in (b"---\nlicense: [\n---\n", b"---\nlicense: 3\n---\n", b"---\n- a list\n---\n"):
        with pytest.raises(ValueError, match="Invalid metadata"):
            commit(api, repo, add("README.md", card))
    commit(api, repo, add("README.md", b"---\nlicense: mit\ntags: [pruned]\n---\n# A model\n"))


def test_plain_words_of_a_card_are_read_as_the_hub_does(api, repo):
    words = "language:\n- no\n- en\ntags: [yes, on, 1:30, 1_0]\nlicense: y\nbuild: 0123\nhex: 0x1F\nwhen: 2026-13-45\n"
    commit(api, repo, add("README.md", f"---\n{words}truth: true\noctal: 0o17\n---\n# x\n".encode()))
    info = api.model_info(repo)
    assert {"no", "en", "yes", "on", "1:30", "1_0", "license:y"} <= set(info.tags)
    data = vars(info.card_data)
    assert (data["language"], data["build"], data["hex"]) == (["no", "en"], 123, 31)
    assert (data["when"], data["truth"], data["octal"]) == ("2026-13-45", True, 15)


def test_a_pull_request_leaves_the_branch_alone(local_hub, api, repo):
    from huggingface_hub import HfApi

    head = api.model_info(repo).sha
    guest = HfApi(endpoint=local_hub.endpoint, token=local_hub.add_user("guest"))
    proposal = commit(guest, repo, add("b/fix.txt"), add("w.bin", bytes(3000)), create_pr=True)
    assert (proposal.pr_num, proposal.pr_revision) == (1, "refs/pr/1")
    assert commit(api, repo, add("other.txt"), create_pr=True).pr_num == 2
    assert api.model_info(repo).sha == head
    assert api.list_repo_files(repo, revision="refs/pr/1") == [".gitattributes", "b/fix.txt", "w.bin"]
    assert read(api, repo, "b/fix.txt", "refs%2Fpr%2F1") == b"x"
    commit(api, repo, add("more.txt"), revision="refs/pr/1")
    assert "more.txt" in api.list_repo_files(repo, revision="refs/pr/1")
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1", "refs/pr/2"]


def test_a_read_token_opens_no_pull_request(local_hub, repo):
    from huggingface_hub import HfApi

    reader = HfApi(endpoint=local_hub.endpoint, token=local_hub.add_user("reader", role="read"))
    with pytest.raises(HfHubHTTPError) as error:
        commit(reader, repo, add("a.txt"), create_pr=True)
    assert error.value.response.status_code == 403


def test_branches_go_their_own_way_and_can_be_deleted(api, repo):
    api.create_branch(repo, branch="feature/x")
    head = commit(api, repo, add("a.txt"), revision="feature/x").oid
    assert api.model_info(repo, revision="feature/x").sha == head
    assert api.list_repo_files(repo) == [".gitattributes"]
    with pytest.raises(HfHubHTTPError) as error:
        api.create_branch(repo, branch="feature/x")
    assert error.value.response.status_code == 409
    api.create_branch(repo, branch="feature/x", exist_ok=True)
    api.delete_branch(repo, branch="feature/x")
    assert [branch.name for branch in api.list_repo_refs(repo).branches] == ["main"]
    for branch in ("feature/x", "main"):
        with pytest.raises(HfHubHTTPError):
            api.delete_branch(repo, branch=branch)


def test_a_tag_stays_at_its_commit(api, repo):
    first = commit(api, repo, add("a.txt")).oid
    api.create_tag(repo, tag="v1.0", revision=first[:8])
    commit(api, repo, add("b.txt"))
    api.create_tag(repo, tag="v1.0", exist_ok=True)
    assert api.model_info(repo, revision="v1.0").sha == first
    assert [(tag.name, tag.target_commit) for tag in api.list_repo_refs(repo).tags] == [("v1.0", first)]
    with pytest.raises(HfHubHTTPError):
        commit(api, repo, add("c.txt"), revision="v1.0")
    api.delete_tag(repo, tag="v1.0")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="v1.0")


def test_files_are_copied_within_a_repository_and_between_two(api, repo):
    weights = bytes(range(256)) * 40
    source = commit(api, repo, add("w.bin", weights), add("a.txt"))
    copies = [CommitOperationCopy(name, f"copied/{name}", src_revision=source.oid) for name in ("w.bin", "a.txt")]
    commit(api, repo, *copies)
    assert read(api, repo, "copied/w.bin") == weights
    api.create_repo(f"{repo}-copy")
    copy = CommitOperationCopy("w.bin", "w.bin", src_repo_id=repo, src_repo_type="model")
    commit(api, f"{repo}-copy", copy)
    assert read(api, f"{repo}-copy", "w.bin") == weights


def test_large_trees_come_in_pages(local_hub, api, repo):
    commit(api, repo, *[add(f"folder/{n:04d}.txt") for n in range(1005)])
    local_hub.clear_log()
    assert len(list(api.list_repo_tree(repo, recursive=True))) == 1007
    assert len(local_hub.log) == 2
    assert len(list(api.list_repo_tree(repo))) == 2
    folder, file = api.get_paths_info(repo, ["folder", "folder/0007.txt", "missing", "../.."])
    assert (folder.path, file.size) == ("folder", 1)


def test_a_long_history_comes_in_pages(local_hub, api, repo, monkeypatch):
    monkeypatch.setattr("hubprune.localhub.routes_repos._COMMITS_PER_PAGE", 2)
    made = [commit(api, repo, add(f"{number}.txt")).oid for number in range(4)]
    local_hub.clear_log()
    assert [listed.commit_id for listed in api.list_repo_commits(repo)][:4] == made[::-1]
    assert [record.query for record in local_hub.log] == ["", "cursor=2", "cursor=4"]
