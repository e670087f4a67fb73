"""A local Hub for the module, with a base on it, and a session whose libraries all talk to it."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from hubprune.console import Reporter
from hubprune.publishing.session import HubSession

sys.path.insert(0, str(Path(__file__).parent))

import made

numbers = itertools.count(1)
BASE_ID = "meta-llama/Llama-Tiny"
CONFIG = {"model_type": "llama", "num_hidden_layers": 8, "architectures": ["LlamaForCausalLM"]}
BASE_CARD = "---\nlanguage: en\nlicense: llama3.2\ngated_prompt: no\n---\n# Base\n"


def safetensors(size):
    header = json.dumps({"w": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\x01\x02\x03\x04" * size


BASE_FILES = {
    "README.md": BASE_CARD.encode(),
    "config.json": json.dumps(CONFIG).encode(),
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "LICENSE.txt": b"terms",
    "USE_POLICY.md": b"policy",
    "model.safetensors": safetensors(70_000),
    "consolidated.safetensors": safetensors(70_000),
    "pytorch_model.bin": b"\x80",
    "original/consolidated.00.pth": b"\x80" * 100,
    "original/params.json": b"{}",
}


def commit_files(api, repo_id, files, **options):
    from huggingface_hub import CommitOperationAdd

    adds = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in files.items()]
    return api.create_commit(repo_id, adds, commit_message="files", **options).oid


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """A Hub for all tests of this folder, and libraries that know no other one and no login of this machine."""
    pytest.importorskip("starlette")
    from huggingface_hub import constants
    from huggingface_hub.utils._xet import abort_xet_session
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from hubprune.localhub import running_hub

    disable_progress_bars()
    home = tmp_path_factory.mktemp("hf_home")
    with running_hub(tmp_path_factory.mktemp("hub")) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_XET_CACHE", str(home / "xet"))
        patch.setenv("HF_ENDPOINT", running.endpoint)
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.endpoint)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "ENDPOINT", running.endpoint)
        if "datasets.config" in sys.modules:
            patch.setattr(sys.modules["datasets.config"], "HF_ENDPOINT", running.endpoint)
        abort_xet_session()
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits between tries are as short as they can be."""
    from hubprune.publishing import retry

    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def user(hub):
    """Name and token of a user who may write to the namespaces `name` and acme."""
    name = f"user{next(numbers)}"
    yield name, hub.add_user(name, role="write", orgs=("acme",))
    hub.set_faults([])


@pytest.fixture
def session(hub, user):
    return HubSession.open(endpoint=hub.endpoint, token=user[1])


@pytest.fixture
def reporter():
    return Reporter(quiet="yes")


@pytest.fixture(scope="session")
def admin(hub):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture(scope="session")
def base_repo(admin):
    """A base on the Hub, with files that no publish needs."""
    admin.create_repo(BASE_ID)
    return commit_files(admin, BASE_ID, BASE_FILES)


@pytest.fixture
def new_repo(admin):
    """Make a repo with files, and return its id."""

    def make(files, **settings):
        repo_id = f"somebody/base-{next(numbers)}"
        admin.create_repo(repo_id)
        commit_files(admin, repo_id, files)
        if settings:
            admin.update_repo_settings(repo_id, **settings)
        return repo_id

    return make


@pytest.fixture
def recipe():
    from hubprune.recipe import BaseModelSpec

    return made.recipe(base=BaseModelSpec(repo_id=BASE_ID))


@pytest.fixture
def checkpoint_folder(tmp_path):
    """A small checkpoint with a card and a manifest, ready to be published."""
    return make_folder(tmp_path / "result")


def make_folder(folder, *, card="# Card\n", **report):
    from hubprune.publishing.manifest import write_recipe

    folder.mkdir()
    (folder / "config.json").write_text('{"dropped": [1]}')
    (folder / "model.safetensors").write_bytes(safetensors(50_000))
    (folder / "modeling_pruned_llama.py").write_text("code = 1\n")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "own.yaml").write_text("task: own\n")
    written = made.report(**report)
    write_recipe(folder, recipe=made.recipe(), report=written)
    finish(folder, card=card, report=written)
    return folder


def finish(folder, *, card, report):
    from hubprune.publishing.manifest import write_manifest

    (folder / "README.md").write_text(f"---\nlicense: llama3.2\n---\n{card}")
    write_manifest(folder, report=report, template_hash="0" * 64)


class Ticks(Reporter):
    """Counts what a progress bar is told."""

    def __init__(self):
        super().__init__(quiet="yes")
        self.total = self.done = self.calls = 0

    @contextmanager
    def progress(self, description, *, total, unit):
        self.total += total

        def advance(amount=1, /):
            self.done += amount
            self.calls += 1

        yield advance
