"""Publishes over a Hub that holds a base and texts which nobody reads, in which no stage computes."""

from __future__ import annotations

import json

import pytest
from as_published import BASE_ID, SIZES, TEXTS, ComputedError, put_on_the_hub, recipe_of
from on_hub import BASE_FILES, CONFIG, commit_files

from hubprune.core.files import StageStore
from hubprune.workflows import publish as pipeline
from hubprune.workflows.card import AS_SHIPPED
from hubprune.workflows.run import Run


@pytest.fixture(scope="module")
def inputs(admin):
    """A base and a data set that nobody reads: their commits are all that is asked for."""
    if admin.repo_exists(BASE_ID):
        return
    admin.create_repo(BASE_ID)
    plain = {path: data for path, data in BASE_FILES.items() if path not in ("LICENSE.txt", "USE_POLICY.md")}
    commit_files(admin, BASE_ID, {**plain, "config.json": json.dumps({**CONFIG, **SIZES}).encode()})
    admin.create_repo(TEXTS, repo_type="dataset")
    commit_files(admin, TEXTS, {"a.jsonl": b'{"text": "a"}\n'}, repo_type="dataset")


@pytest.fixture
def run_of(session, tmp_path, reporter, monkeypatch):
    """Make runs, each with a work folder of its own, and keep what they say."""
    said = []
    monkeypatch.setattr(type(reporter), "note", lambda self, text: said.append(text))
    made_runs = []

    def make(recipe):
        made_runs.append(recipe)
        return Run(recipe, session, reporter, StageStore(tmp_path / f"work{len(made_runs)}"))

    make.said = said
    return make


@pytest.fixture
def published(run_of, user, inputs, tmp_path):
    """What a publish leaves on the Hub, with figures that nobody measured."""

    def make(recipe=None, choices=AS_SHIPPED, **options):
        run = run_of(recipe or recipe_of(user))
        return run, put_on_the_hub(run, tmp_path / "first", choices, **options)

    return make


@pytest.fixture
def stages(monkeypatch):
    """No stage of these tests computes: to be asked for one is what they find out."""

    def refuse(*args, **options):
        raise ComputedError

    monkeypatch.setattr(pipeline, "_check_resources", refuse)
    monkeypatch.setattr(pipeline, "_load_back", refuse)
