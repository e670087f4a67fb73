"""The real `hf` command against the local Hub: a session of it, in one process that knows no other Hub."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

_SESSION = """
import json, sys
from click.testing import CliRunner
from huggingface_hub.cli.hf import app

for line in sys.stdin:
    done = CliRunner().invoke(app, json.loads(line))
    error = repr(done.exception) if done.exception and not isinstance(done.exception, SystemExit) else ""
    print(json.dumps([done.exit_code, done.stdout, done.stderr + error]))
"""


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str

    def json(self):
        return json.loads(self.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A work folder with a tiny model in `model/`."""
    folder = tmp_path_factory.mktemp("work")
    files = {
        "README.md": "---\nlicense: mit\ntags: [pruned]\npipeline_tag: text-generation\n---\n# Tiny\n",
        "config.json": '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 3}',
        "w.safetensors": "\0" * 3000,
    }
    for name, content in files.items():
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / name).write_text(content)
    return folder


@pytest.fixture(scope="module")
def hf(open_hub, folder):
    """Run one `hf` command after the other, each in the state that those before it have left."""
    hub = open_hub()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": hub.token,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_COLOR": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-c", _SESSION],
        env={**inherited, **settings},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def run(*args: str, fails: bool = False) -> Done:
            process.stdin.write(json.dumps(args) + "\n")
            process.stdin.flush()
            done = Done(*json.loads(process.stdout.readline()))
            assert bool(done.code) == fails, (args, done)
            return done

        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def model(hf):
    """A model repository that `hf upload` has filled."""
    assert "local/tiny" in hf("repos", "create", "tiny").stdout
    assert re.search("/local/tiny/commit/[0-9a-f]{40}", hf("upload", "tiny", "model", ".").stdout)
    return "local/tiny"


def test_whoami_names_the_user(hf):
    assert "local" in hf("auth", "whoami").stdout


def test_what_was_uploaded_comes_down_and_verifies(hf, model, folder):
    hf("download", model, "--local-dir", "got")
    for name in ("README.md", "config.json", "w.safetensors"):
        assert (folder / "got" / name).read_bytes() == (folder / "model" / name).read_bytes()
    assert "All checksums match" in hf("cache", "verify", model, "--local-dir", "got").stdout


def test_models_are_listed_described_and_shown(hf, model):
    (row,) = hf("models", "ls", "--search", "TIN", "--filter", "pruned", "--format", "json").json()
    assert (row["id"], row["pipeline_tag"], row["private"]) == (model, "text-generation", False)
    assert hf("models", "ls", "--author", "nobody", "--format", "json").json() == []
    info = hf("models", "info", model, "--format", "json").json()
    assert info["config"] == {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    brief = hf("models", "info", model, "--expand", "sha,tags", "--format", "json").json()
    assert brief == {"id": model, "sha": info["sha"], "tags": ["pruned", "license:mit"]}
    assert hf("models", "card", model, "--text").stdout.strip() == "# Tiny"


def test_files_are_listed_with_size_and_date(hf, model):
    rows = hf("models", "ls", model, "-R", "--format", "json").json()
    assert {row["path"]: row["size"] for row in rows}["w.safetensors"] == 3000
    assert re.search(r"3\.0 KB .*w\.safetensors", hf("models", "ls", model, "--tree", "-h").stdout)


def test_data_sets_are_listed_and_described(hf):
    hf("repos", "create", "rows", "--type", "dataset")
    (row,) = hf("datasets", "ls", "--format", "json").json()
    assert row["id"] == "local/rows"
    assert hf("datasets", "info", "local/rows", "--format", "json").json()["author"] == "local"
    assert hf("spaces", "ls", "--format", "json").json() == []


def test_repos_are_listed_with_their_storage(hf, model):
    rows = {row["id"]: row for row in hf("repos", "ls", "--format", "json").json()}
    assert rows[model]["visibility"] == "public"
    assert rows[model]["storage"] == "4.5 KB"
    hf("repos", "settings", model, "--private")
    rows = {row["id"]: row for row in hf("repos", "ls", "--format", "json").json()}
    assert rows[model]["visibility"] == "private"
    hf("repos", "settings", model, "--public")


def test_tags_and_branches_come_and_go(hf, model):
    hf("repos", "tag", "create", model, "v1")
    assert "refs/tags/v1" in hf("repos", "tag", "list", model).stdout
    hf("repos", "tag", "delete", model, "v1", "--yes")
    assert "refs/tags/v1" not in hf("repos", "tag", "list", model).stdout
    hf("repos", "branch", "create", model, "next")
    hf("download", model, "config.json", "--revision", "next", "--local-dir", "next")
    hf("repos", "branch", "delete", model, "next")
    assert "next" in hf("download", model, "config.json", "--revision", "next", "--local-dir", "x", fails=True).stderr


def test_a_pull_request_is_made_read_and_merged(hf, model):
    hf("upload", model, "model/config.json", "copy.json", "--create-pr", "--commit-message", "Add a copy")
    (row,) = hf("discussions", "ls", model, "--format", "json").json()
    assert (row["num"], row["title"], row["is_pull_request"], row["status"]) == (1, "Add a copy", True, "open")
    assert "+++ b/copy.json" in hf("discussions", "diff", model, "1").stdout
    hf("discussions", "comment", model, "1", "--body", "Good")
    hf("discussions", "rename", model, "1", "Add a copy of the config")
    hf("discussions", "merge", model, "1", "--yes")
    details = hf("discussions", "info", model, "1", "--format", "json").json()
    assert (details["status"], details["title"]) == ("merged", "Add a copy of the config")
    assert "copy.json" in hf("models", "ls", model).stdout
    hf("repos", "delete-files", model, "copy.json")
    assert "copy.json" not in hf("models", "ls", model).stdout


def test_a_discussion_is_opened_closed_and_opened_again(hf, model):
    hf("discussions", "create", model, "--title", "Why", "--body", "Tell me")
    number = str(hf("discussions", "ls", model, "--kind", "discussion", "--format", "json").json()[0]["num"])
    hf("discussions", "close", model, number, "--yes")
    assert hf("discussions", "info", model, number, "--format", "json").json()["status"] == "closed"
    hf("discussions", "reopen", model, number, "--yes")
    assert [row["title"] for row in hf("discussions", "ls", model, "--format", "json").json()] == ["Why"]


def test_repos_are_copied_moved_and_deleted(hf, model, folder):
    hf("repos", "duplicate", model, "local/copy")
    hf("repos", "cp", f"hf://{model}/w.safetensors", "hf://local/copy/w2.safetensors")
    hf("repos", "move", "local/copy", "elsewhere/moved")
    # The old name leads to the new one, as on the Hub.
    for name in ("elsewhere/moved", "local/copy"):
        hf("download", name, "w2.safetensors", "--local-dir", f"got-{name.replace('/', '-')}")
    assert (folder / "got-local-copy" / "w2.safetensors").stat().st_size == 3000
    assert "exists already" in hf("repos", "move", "elsewhere/moved", model, fails=True).stderr
    hf("repos", "delete", "elsewhere/moved", "--yes")
    assert "not found" in hf("models", "info", "local/copy", fails=True).stderr


@pytest.mark.parametrize(
    "command", [("papers", "ls"), ("buckets", "ls"), ("webhooks", "ls"), ("datasets", "leaderboard", "local/rows")]
)
def test_what_is_not_there_says_so_at_once(hf, command):
    assert "404" in hf(*command, fails=True).stderr


def test_what_nobody_told_the_local_hub_cannot_be_filtered_by(hf):
    assert "501" in hf("models", "ls", "--apps", "vllm", fails=True).stderr
