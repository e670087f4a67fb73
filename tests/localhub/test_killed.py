"""A server that is killed at work, with all its children: what it has answered is there, and all is whole."""

import contextlib
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import count, islice
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubprune.localhub import running_hub
from hubprune.localhub.large_files import POINTER_BYTES, parse_pointer

_SERVE = "import sys; from pathlib import Path; from hubprune.localhub import serve; serve(Path(sys.argv[1]))"
_REPOS = ("acme/one", "acme/two")
_ANSWERS_BEFORE_THE_KILL = 6


class Writers:
    """Threads that commit, propose, tag and talk until the server is gone; they keep what they were answered."""

    def __init__(self, api: HfApi, started: int) -> None:
        self.commits: dict[str, list[str]] = {repo: [] for repo in _REPOS}
        self.discussions: dict[str, list[int]] = {repo: [] for repo in _REPOS}
        self.tags: dict[str, dict[str, str]] = {repo: {} for repo in _REPOS}
        self.enough = threading.Event()
        self._api = api
        self._numbers = count(started * 1000)
        self._threads = [
            threading.Thread(target=self._write, args=(repo, write))
            for repo in _REPOS
            for write in (self._commit, self._talk)
        ]

    def run(self, kill) -> None:
        for thread in self._threads:
            thread.start()
        assert self.enough.wait(60)
        kill()
        for thread in self._threads:
            thread.join()

    def _write(self, repo: str, write) -> None:
        with contextlib.suppress(Exception):  # the server is gone: that is how it ends
            while True:
                write(repo, next(self._numbers))
                if sum(map(len, self.commits.values())) >= _ANSWERS_BEFORE_THE_KILL:
                    self.enough.set()

    def _commit(self, repo: str, number: int) -> None:
        files = {f"{number}.txt": b"small", f"{number}.bin": hashlib.sha256(str(number).encode()).digest() * 40}
        operations = [CommitOperationAdd(path, io.BytesIO(content)) for path, content in files.items()]
        made = self._api.create_commit(repo, operations, commit_message=str(number)).oid
        self.commits[repo].append(made)
        self._api.create_tag(repo, tag=f"v{number}", revision=made)
        self.tags[repo][f"v{number}"] = made

    def _talk(self, repo: str, number: int) -> None:
        made = self._api.create_discussion(repo, str(number), pull_request=number % 2 == 0)
        self.discussions[repo].append(made.num)


@contextlib.contextmanager
def serving(directory: Path):
    """Serve a directory from a process group of its own; kill all of it with one signal."""
    command = [sys.executable, "-c", _SERVE, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        endpoint, token = (process.stdout.readline().strip().partition("=")[2] for _ in range(2))

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        try:
            yield HfApi(endpoint=endpoint, token=token), kill
        finally:
            kill()


@pytest.mark.skipif(os.name != "posix", reason="kills a group of processes")
def test_a_server_killed_while_it_writes_has_kept_all_that_it_answered(tmp_path, monkeypatch):
    rounds = []
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # clients that try again would try for a long time
    for number in range(2):
        with serving(tmp_path) as (api, kill):
            for repo in _REPOS:
                api.create_repo(repo, exist_ok=True)
            rounds.append(Writers(api, started=number))
            rounds[-1].run(kill)
    with running_hub(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        for repo in _REPOS:
            check_answers(api, repo, rounds)
            check_objects(hub, repo)
            api.create_commit(repo, [CommitOperationAdd("after.txt", b"x")], commit_message="After")
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith((".incoming-", "incoming-", ".new-"))]


def check_answers(api: HfApi, repo: str, rounds: list[Writers]) -> None:
    """Find every commit, tag and discussion that a client was told of."""
    history = {commit.commit_id for commit in api.list_repo_commits(repo)}
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
    discussions = {discussion.num for discussion in api.get_repo_discussions(repo)}
    for answered in rounds:
        assert set(answered.commits[repo]) <= history
        assert answered.tags[repo].items() <= tags.items()
        assert set(answered.discussions[repo]) <= discussions
    for discussion in islice(api.get_repo_discussions(repo), 5):  # the newest are those that the kill came near
        details = api.get_discussion_details(repo, discussion.num)
        assert details.title.isdigit()
        assert details.is_pull_request == (details.diff is not None)


def check_objects(hub, repo: str) -> None:
    """Find every object that a reference leads to, and every large file that a commit points to."""
    git = hub._hub.find_repo("models", repo).git
    git.run("fsck", "--strict", "--connectivity-only")
    blobs = git.blobs(git.small_blobs(POINTER_BYTES)).values()
    for pointer in filter(None, map(parse_pointer, blobs)):
        content = hub._hub.large_file(pointer.sha256).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (pointer.sha256, pointer.size)
