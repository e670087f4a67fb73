import threading

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError


def client(hub, name, **rights) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.add_user(name, **rights))


def commit(api, repo, files, **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo, operations, **{"commit_message": "Change files", **options})


def status(error: pytest.ExceptionInfo) -> int:
    return error.value.response.status_code


def kinds(details) -> list[str]:
    return [event.type for event in details.events]


def test_a_discussion_goes_its_way_and_keeps_its_history(local_hub, repo):
    alice, bob = client(local_hub, "alice"), client(local_hub, "bob")
    opened = alice.create_discussion(repo, "Which  data?", description="Is it **C4**?")
    assert (opened.num, opened.title, opened.status, opened.author) == (1, "Which data?", "open", "alice")
    assert not opened.is_pull_request
    assert "<strong>C4</strong>" in opened.events[0].rendered
    said = bob.comment_discussion(repo, 1, "It is.")
    assert alice.comment_discussion(repo, 1, "Thanks").author == "alice"
    edited = bob.edit_discussion_comment(repo, 1, said.id, "It is C4.")
    assert (edited.content, edited.edited, edited.edit_history[0]["raw"]) == ("It is C4.", True, "It is.")
    renamed = alice.rename_discussion(repo, 1, "Which data, then?")
    assert (renamed.old_title, renamed.new_title) == ("Which data?", "Which data, then?")
    assert alice.change_discussion_status(repo, 1, "closed", comment="Answered").new_status == "closed"
    details = alice.get_discussion_details(repo, 1)
    expected = ["comment", "comment", "comment", "title-change", "comment", "status-change"]
    assert (details.title, details.status, kinds(details)) == ("Which data, then?", "closed", expected)
    assert [event.content for event in details.events[:3]] == ["Is it **C4**?", "It is C4.", "Thanks"]


def test_what_belongs_to_somebody_else_cannot_be_changed(local_hub, api, repo):
    alice, bob = client(local_hub, "alice"), client(local_hub, "bob")
    reader = client(local_hub, "reader", role="read")
    said = alice.create_discussion(repo, "Title").events[0]
    for forbidden in (
        lambda: bob.edit_discussion_comment(repo, 1, said.id, "Other words"),
        lambda: bob.rename_discussion(repo, 1, "Other title"),
        lambda: bob.change_discussion_status(repo, 1, "closed"),
        lambda: reader.comment_discussion(repo, 1, "Words"),
        lambda: reader.create_discussion(repo, "Title"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            forbidden()
        assert status(error) == 403
    assert kinds(api.get_discussion_details(repo, 1)) == ["comment"]
    with pytest.warns(UserWarning, match="irreversible"):
        assert api.hide_discussion_comment(repo, 1, said.id).hidden
    assert api.get_discussion_details(repo, 1).events[0].content == ""
    assert api.change_discussion_status(repo, 1, "closed").new_status == "closed"


def test_a_commit_that_opens_a_pull_request_shows_as_one(local_hub, api, repo):
    proposer = client(local_hub, "somebody")
    options = {"commit_message": "Add a file", "commit_description": "It was missing.", "create_pr": True}
    proposed = commit(proposer, repo, {"a.txt": b"one\n"}, **options)
    details = api.get_discussion_details(repo, proposed.pr_num)
    assert (details.title, details.status, details.author) == ("Add a file", "open", "somebody")
    assert (details.is_pull_request, details.target_branch) == (True, "refs/heads/main")
    assert (details.conflicting_files, details.merge_commit_oid) == ([], None)
    assert (details.events[0].content, details.events[1].oid) == ("It was missing.", proposed.oid)
    assert "+one" in details.diff
    assert details.url == proposed.pr_url


def test_lists_are_filtered_and_come_in_pages(api, repo, monkeypatch, local_hub):
    monkeypatch.setattr("hubprune.localhub.routes_changes._PER_PAGE", 2)
    for number in (1, 2, 3):
        api.create_discussion(repo, f"Number {number}")
    commit(client(local_hub, "somebody"), repo, {"a.txt": b"x"}, create_pr=True)
    api.create_pull_request(repo, "Nothing yet")
    api.change_discussion_status(repo, 2, "closed")

    def numbers(**options):
        return [discussion.num for discussion in api.get_repo_discussions(repo, **options)]

    assert numbers() == [5, 4, 3, 2, 1]
    assert numbers(discussion_type="pull_request") == [5, 4]
    assert numbers(discussion_type="discussion", discussion_status="open") == [3, 1]
    assert numbers(discussion_status="closed") == [2]
    assert numbers(author="somebody") == [4]


def test_a_merge_makes_one_commit_on_main(api, repo):
    proposed = commit(api, repo, {"a.txt": b"new", "w.bin": bytes(900)}, commit_message="Add two", create_pr=True)
    head = commit(api, repo, {"b.txt": b"meanwhile"}).oid
    commit(api, repo, {"c.txt": b"more"}, commit_message="Add a third", revision="refs/pr/1")
    api.merge_pull_request(repo, 1, comment="Thank you")
    assert api.list_repo_files(repo) == [".gitattributes", "a.txt", "b.txt", "c.txt", "w.bin"]
    newest, previous, *_ = api.list_repo_commits(repo)
    assert (newest.title, previous.commit_id) == ("Add two (#1)", head)
    assert f"- Add two ({proposed.oid})" in newest.message
    details = api.get_discussion_details(repo, 1)
    assert (details.status, details.merge_commit_oid) == ("merged", newest.commit_id)
    assert kinds(details) == ["comment", "commit", "commit", "comment", "status-change"]
    for impossible in (
        lambda: api.merge_pull_request(repo, 1),
        lambda: api.change_discussion_status(repo, 1, "open"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            impossible()
        assert status(error) == 400


def test_a_conflict_is_told_and_stops_the_merge(api, repo):
    commit(api, repo, {"a.txt": b"old\n", "w.bin": b"\0old"})
    commit(api, repo, {"a.txt": b"theirs\n", "w.bin": b"\0theirs"}, create_pr=True)
    head = commit(api, repo, {"a.txt": b"ours\n", "w.bin": b"\0ours"}).oid
    assert api.get_discussion_details(repo, 1).conflicting_files == ["a.txt", "w.bin"]
    with pytest.raises(HfHubHTTPError, match=r"conflicts with main: a\.txt, w\.bin") as error:
        api.merge_pull_request(repo, 1)
    assert status(error) == 409
    assert (api.model_info(repo).sha, api.get_discussion_details(repo, 1).status) == (head, "open")


def test_a_pull_request_without_commits_is_a_draft_until_its_author_opens_it(local_hub, api, repo):
    proposer = client(local_hub, "somebody")
    draft = proposer.create_pull_request(repo, "To come")
    assert (draft.status, draft.git_reference, draft.diff) == ("draft", "refs/pr/1", "")
    commit(proposer, repo, {"w.bin": bytes(900)}, revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError, match="this one is draft"):
        api.merge_pull_request(repo, 1)
    proposer.change_discussion_status(repo, 1, "open")
    with pytest.raises(HfHubHTTPError) as error:
        proposer.merge_pull_request(repo, 1)
    assert status(error) == 403
    api.merge_pull_request(repo, 1)
    assert "w.bin" in api.list_repo_files(repo)


def test_nobody_commits_to_the_pull_request_of_somebody_else(local_hub, repo):
    client(local_hub, "somebody").create_pull_request(repo, "Mine")
    with pytest.raises(HfHubHTTPError) as error:
        commit(client(local_hub, "stranger"), repo, {"a.txt": b"x"}, revision="refs/pr/1")
    assert status(error) == 403


def test_a_merge_and_a_commit_at_once_lose_nothing(api, repo):
    for number in range(1, 4):
        commit(api, repo, {f"proposed-{number}.txt": b"x"}, create_pr=True)
    tasks = [lambda n=n: api.merge_pull_request(repo, n) for n in range(1, 4)]
    tasks += [lambda: commit(api, repo, {"direct.txt": b"x"})]
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert api.list_repo_files(repo) == [".gitattributes", "direct.txt", *[f"proposed-{n}.txt" for n in (1, 2, 3)]]
    assert len(api.list_repo_commits(repo)) == 5
    assert {discussion.status for discussion in api.get_repo_discussions(repo)} == {"merged"}


def test_a_pull_request_of_which_only_the_commits_are_left_is_still_one(local_hub, api, repo):
    proposed = commit(api, repo, {"a.txt": b"x"}, commit_message="Old", commit_description="Words", create_pr=True)
    git = local_hub._hub.find_repo("models", repo).git
    git.run("update-ref", "-d", "refs/discussions/1")
    details = api.get_discussion_details(repo, 1)
    assert (details.title, details.events[0].content, details.events[1].oid) == ("Old", "Words", proposed.oid)
    assert api.create_discussion(repo, "Next").num == 2
    api.merge_pull_request(repo, 1)
    assert "a.txt" in api.list_repo_files(repo)


def test_a_private_repository_keeps_its_discussions(local_hub, api, repo):
    api.create_discussion(repo, "Between us")
    api.update_repo_settings(repo, private=True)
    stranger = client(local_hub, "stranger")
    for hidden in (
        lambda: list(stranger.get_repo_discussions(repo)),
        lambda: stranger.get_discussion_details(repo, 1),
        lambda: stranger.comment_discussion(repo, 1, "Hello"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            hidden()
        assert status(error) == 404


def test_a_browser_finds_what_clients_print_the_address_of(api, repo, raw):
    commit(api, repo, {"a.txt": b"old\n"})
    proposed = commit(api, repo, {"a.txt": b"theirs\n"}, commit_message="Say <b>theirs</b>", create_pr=True)
    commit(api, repo, {"a.txt": b"ours\n"})
    api.comment_discussion(repo, 1, "It is **bold**. <script>alert(1)</script>")
    api.rename_discussion(repo, 1, "Say it")
    shown = raw("GET", proposed.pr_url.removeprefix(api.endpoint))
    text = shown.body.decode()
    assert (shown.status, shown.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in shown.headers["Content-Security-Policy"]
    for part in (
        "<strong>bold</strong>",
        "Say &lt;b&gt;theirs&lt;/b&gt;",
        proposed.oid[:8],
        "same files: a.txt",
        "+theirs",
    ):
        assert part in text
    assert "<script" not in text
    assert f"/{repo}/discussions/1" in raw("GET", f"/{repo}/discussions").body.decode()
    assert raw("GET", f"/{repo}/discussions/2").status == 404
    api.update_repo_settings(repo, private=True)
    assert raw("GET", f"/{repo}/discussions/1").status == 404
