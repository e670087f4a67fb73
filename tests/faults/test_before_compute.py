"""What can stop a publish stops it before anything is computed, downloaded or written."""

from __future__ import annotations

import json
from collections import namedtuple

import made
import pytest
from on_hub import BASE_FILES, commit_files
from token_table import HARMLESS, WRITES

from hubprune.core import errors
from hubprune.core.console import Reporter
from hubprune.core.files import StageStore
from hubprune.core.recipe import (
    BaseModelSpec,
    CalibrationMix,
    CalibrationSubset,
    DropSpec,
    EvaluationSpec,
    TargetSpec,
)
from hubprune.core.requests import PublishRequest
from hubprune.hub import preflight
from hubprune.hub.session import HubSession
from hubprune.workflows import publish as pipeline
from hubprune.workflows.run import Run

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 8, "hidden_size": 32,
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
}  # fmt: skip
WHOLE = {**BASE_FILES, "config.json": json.dumps(CONFIG).encode()}
BASE = "meta-llama/Llama-Whole"
GATED, LLAMA, HANDMADE = "meta-llama/Gated-Base", "meta-llama/Llama-Terms", "ana/handmade"
NO_DATA = CalibrationMix(name="mix", subsets=(CalibrationSubset(dataset="nobody/texts", config="plain", weight=1),))


@pytest.fixture(scope="module", autouse=True)
def repos(world):
    """A gated base, one under a Llama licence, and a target with a card of somebody's own."""
    for repo_id in (BASE, GATED, LLAMA, HANDMADE):
        world.admin.create_repo(repo_id)
    commit_files(world.admin, BASE, WHOLE)
    commit_files(world.admin, GATED, WHOLE)
    commit_files(world.admin, LLAMA, {**WHOLE, "README.md": b"---\nlicense: llama3.2\n---\n# Base\n"})
    commit_files(world.admin, HANDMADE, {"README.md": b"---\nlicense: mit\n---\n# Mine\n"})
    world.admin.create_tag(HANDMADE, tag="v1")
    world.admin.update_repo_settings(GATED, gated="manual")


@pytest.fixture
def refused(world, tmp_path, monkeypatch):
    """Publish a recipe; return the error, having made sure that nothing else happened."""

    def run(*, token=None, options=None, **changes):
        monkeypatch.setattr(pipeline, "produced", lambda *args, **options: pytest.fail("it began to compute"))
        session = HubSession.open(endpoint=world.hub.endpoint, token=token or world.token)
        store = StageStore(tmp_path / "work")
        world.hub.clear_log()
        values = {
            "base": BaseModelSpec(repo_id=BASE), "target": TargetSpec(repo_id="ana/result"),
            "evaluation": EvaluationSpec(tasks=()), **changes,
        }  # fmt: skip
        with pytest.raises(errors.HubpruneError) as caught:
            pipeline.publish_run(
                Run(made.recipe(**values), session, Reporter(quiet=True), store),
                PublishRequest(**options or {}),
            )
        log = world.hub.log
        assert [r.line for r in log if r.method in WRITES and not any(h in r.path for h in HARMLESS)] == []
        assert [r.line for r in log if r.path.endswith((".safetensors", ".bin", ".pth"))] == []
        assert [p for p in (tmp_path / "work").rglob("*") if p.is_file()] == []
        assert caught.value.hint
        return caught.value

    return run


@pytest.mark.parametrize(
    ("error", "said", "changes"),
    [
        (errors.BaseNotFoundError, "has no model", {"base": BaseModelSpec(repo_id="meta-llama/none")}),
        (errors.BaseNotFoundError, "no revision 'v9'", {"base": BaseModelSpec(repo_id=BASE, revision="v9")}),
        (errors.GatedBaseError, "is gated", {"base": BaseModelSpec(repo_id=GATED)}),
        (errors.PlanError, "has 8 layers", {"drop": DropSpec(attn_drop=9)}),
        (errors.PlanError, "0 to 7", {"drop": DropSpec(attn_layers=(8,))}),
        (errors.RecipeError, "not the licence", {"target": TargetSpec(repo_id="ana/result", license="mit")}),
        (
            errors.RecipeError,
            "has to begin with 'Llama'",
            {"base": BaseModelSpec(repo_id=LLAMA), "target": TargetSpec(repo_id="ana/tiny")},
        ),
        (errors.PermissionDeniedError, "not one of its namespaces", {"target": TargetSpec(repo_id="zoe/result")}),
        (errors.EditedError, "not written by hubprune", {"target": TargetSpec(repo_id=HANDMADE)}),
        (errors.RecipeError, "is a tag", {"target": TargetSpec(repo_id=HANDMADE, revision="v1")}),
        (errors.RecipeError, "is public", {"target": TargetSpec(repo_id=HANDMADE, private=True)}),
        (errors.CalibrationError, "nobody/texts", {"calibration": NO_DATA}),
    ],
)
def test_what_cannot_be_published_is_refused(refused, error, said, changes):
    found = refused(**changes)
    assert type(found) is error
    assert said in found.message


def test_a_disk_without_room_is_seen(refused, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: namedtuple("usage", "free")(1000))
    assert "has 1.00 kB free" in refused(drop=DropSpec(attn_layers=(3,))).message


def test_metadata_that_the_hub_refuses_is_seen(refused, monkeypatch):
    monkeypatch.setattr(preflight, "skeleton", lambda *args, **options: "---\nlicense: [\n---\n")
    assert "refuses the card's metadata" in refused().message


def test_a_token_that_may_not_write_is_seen(refused, world):
    assert "read-only" in refused(token=world.hub.add_user("ana", role="read")).message


def test_a_folder_for_the_result_that_holds_something_is_seen(refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    assert "exists already" in refused(options={"out": tmp_path / "out"}).message
