"""The repo that the last version published, the base that it was made of, and how both come onto a Hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hubprune.cards.manifest import content_digest

HERE = Path(__file__).parent
BASE_ID, REPO_ID = "acme/tiny-mistral", "acme/tiny-mistral-attn-drop-1"
WEIGHTS = "model.safetensors"
OLD_TAG = "hubprune-494fd1d1"
BASE_COMMIT = "b3afb6142303208b991a799fc38011d51ae53bf6"
"""That the published files name: the same files at the same time have it on every Hub."""
TIME = "1796037296 +0000"


def files_of(name):
    folder = HERE / "last_version" / name
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def commit(api, repo_id, files, message="Upload"):
    from huggingface_hub import CommitOperationAdd

    adds = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in files.items()]
    return api.create_commit(repo_id, adds, commit_message=message).oid


def publish_last_version(api):
    """Put the repo on the Hub as the last version published it."""
    api.delete_repo(REPO_ID, missing_ok=True)
    api.create_repo(REPO_ID)
    head = commit(api, REPO_ID, files_of("published"))
    api.create_tag(REPO_ID, tag=OLD_TAG, revision=head)
    return REPO_ID


def commits(api, repo_id=REPO_ID, revision="main"):
    return [commit.commit_id for commit in api.list_repo_commits(repo_id, revision=revision)]


def manifest_at(api, revision="main"):
    return json.loads(Path(api.hf_hub_download(REPO_ID, "hubprune.json", revision=revision)).read_bytes())


def rewritten(**changes):
    """The manifest with other values, as a publish of such would have written it."""
    values = {**json.loads(files_of("published")["hubprune.json"]), **changes}
    return json.dumps({**values, "content_sha256": content_digest(values)}).encode()


def with_file(path, data):
    """Files that put another file into the repo, which the manifest lists as its own."""
    files = json.loads(files_of("published")["hubprune.json"])["files"]
    row = {
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "git_oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
    }
    return {path: data, "hubprune.json": rewritten(files={**files, path: row})}
