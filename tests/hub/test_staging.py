"""A pull request is merged once it was found to load; against a Hub over HTTP."""

from __future__ import annotations

import itertools

import pytest
from on_hub import BASE_ID, commit_files

from hubprune.core.errors import ConflictError, PermissionDeniedError, RemoteMismatchError
from hubprune.core.files import list_files
from hubprune.core.recipe import BaseModelSpec, TargetSpec
from hubprune.hub.announcing import merge
from hubprune.hub.commit import publish
from hubprune.hub.preflight import preflight
from hubprune.hub.repos import resolve_base

pytestmark = pytest.mark.usefixtures("base_repo")
numbers = itertools.count(1)
MERGE = "POST /api/models/.*/merge"


@pytest.fixture
def repo_id(admin):
    name = f"acme/staged-{next(numbers)}"
    admin.create_repo(name)
    return name


@pytest.fixture
def target(session, recipe, repo_id):
    base = resolve_base(BaseModelSpec(repo_id=BASE_ID), session=session)
    spec = TargetSpec(repo_id=repo_id, create_pr=True)
    return preflight(recipe.model_copy(update={"target": spec}), base=base, session=session)


@pytest.fixture
def proposed(session, reporter, target, checkpoint_folder):
    return publish(checkpoint_folder, target=target, message="Drop 3", session=session, reporter=reporter)


def content(admin, repo_id, revision="main"):
    return admin.list_repo_files(repo_id, revision=revision)


def test_what_was_proposed_is_merged_in_one_commit_compared_and_tagged(
    admin, session, target, proposed, repo_id, checkpoint_folder
):
    before = content(admin, repo_id)
    done = merge(proposed, target=target, tag="v1", session=session)
    assert done.commit == admin.model_info(repo_id).sha == admin.model_info(repo_id, revision="v1").sha
    assert [c.commit_id for c in admin.list_repo_commits(repo_id)] == [done.commit, target.parent]
    assert set(content(admin, repo_id)) == set(before) | {f.path for f in list_files(checkpoint_folder)}
    assert admin.get_discussion_details(repo_id, 1).status == "merged"
    assert (done.pull_request_url, done.tag) == (proposed.pull_request_url, "v1")


def test_a_lost_answer_to_the_merge_is_found_and_not_sent_twice(hub, admin, session, target, proposed, repo_id):
    hub.set_faults([{"match": MERGE, "do": "lose"}])
    hub.clear_log()
    done = merge(proposed, target=target, tag=None, session=session)
    assert done.commit == admin.model_info(repo_id).sha
    assert len(admin.list_repo_commits(repo_id)) == 2


def test_a_run_that_was_killed_after_the_merge_is_completed(admin, session, target, proposed, repo_id):
    first = merge(proposed, target=target, tag=None, session=session)
    again = merge(proposed, target=target, tag="v1", session=session)
    assert again.commit == first.commit == admin.model_info(repo_id, revision="v1").sha


def test_a_branch_that_moved_is_not_mixed_with_the_proposal(admin, session, target, proposed, repo_id):
    commit_files(admin, repo_id, {"theirs.txt": b"x"})
    head = admin.model_info(repo_id).sha
    with pytest.raises(ConflictError, match=f"was at {target.parent} and is at {head} now; pull request 1 was not"):
        merge(proposed, target=target, tag="v1", session=session)
    assert admin.model_info(repo_id).sha == head
    assert admin.get_discussion_details(repo_id, 1).status == "open"
    assert not admin.list_repo_refs(repo_id).tags


def test_what_was_added_to_a_pull_request_since_is_not_merged(admin, session, target, proposed, repo_id):
    commit_files(admin, repo_id, {"more.py": b"import os"}, revision="refs/pr/1")
    with pytest.raises(ConflictError, match=f"Pull request 1 of .* was at {proposed.commit} and is at"):
        merge(proposed, target=target, tag="v1", session=session)
    assert admin.model_info(repo_id).sha == target.parent


@pytest.mark.parametrize("more", [{"pytorch_model.bin": b"x"}, {".gitattributes": b"* binary\n"}])
def test_a_pull_request_of_our_files_with_others_beside_them_is_not_taken_for_ours(
    admin, session, reporter, target, proposed, repo_id, checkpoint_folder, more
):
    commit_files(admin, repo_id, more, revision="refs/pr/1")
    again = publish(checkpoint_folder, target=target, message="Drop 3", session=session, reporter=reporter)
    assert again.created
    assert again.pull_request_url.endswith("/discussions/2")


def test_a_staged_target_that_has_all_files_gets_the_tag_that_is_missing(
    admin, session, reporter, recipe, target, proposed, repo_id, checkpoint_folder
):
    done = merge(proposed, target=target, tag=None, session=session)
    staged = target.model_copy(update={"parent": done.commit, "staged": True})
    again = publish(checkpoint_folder, target=staged, message="Drop 3", session=session, reporter=reporter, tag="v1")
    assert (again.created, again.tag) == (False, "v1")
    assert admin.model_info(repo_id, revision="v1").sha == done.commit


def test_a_pull_request_that_somebody_closed_stays_closed(admin, session, target, proposed, repo_id):
    admin.change_discussion_status(repo_id, 1, "closed")
    with pytest.raises(ConflictError, match=r"Pull request 1 of .* is closed"):
        merge(proposed, target=target, tag=None, session=session)
    assert admin.model_info(repo_id).sha == target.parent


def test_a_merge_that_is_refused_leaves_the_branch(hub, admin, session, target, proposed, repo_id):
    hub.set_faults([{"match": MERGE, "do": "status", "status": 403, "times": 9}])
    with pytest.raises(PermissionDeniedError, match="merge pull request 1"):
        merge(proposed, target=target, tag="v1", session=session)
    assert admin.model_info(repo_id).sha == target.parent


def test_a_branch_that_holds_something_else_after_the_merge_is_told(monkeypatch, admin, session, target, proposed):
    from huggingface_hub import HfApi

    def merge_something_else(api, repo, number):
        commit_files(admin, repo, {"README.md": b"---\nlicense: mit\n---\n"})

    monkeypatch.setattr(HfApi, "merge_pull_request", merge_something_else)
    with pytest.raises(RemoteMismatchError):
        merge(proposed, target=target, tag="v1", session=session)
