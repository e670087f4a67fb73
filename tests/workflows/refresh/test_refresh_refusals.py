"""What is not as a publish of ours left it is left alone, and one sentence says why."""

from __future__ import annotations

import json

import pytest
from last_version_repo import (
    BASE_ID,
    REPO_ID,
    WEIGHTS,
    commit,
    commits,
    files_of,
    manifest_at,
    rewritten,
    with_file,
)

from hubprune.cards.manifest import SCHEMA_VERSION
from hubprune.core.errors import HubpruneError
from hubprune.core.requests import RefreshRequest
from hubprune.hub.session import HubSession
from hubprune.workflows import refresh as refreshing


@pytest.fixture
def refused(session, reporter, api):
    """Refresh the repo, find that nothing was committed, and return the error."""

    def run(repo_id=REPO_ID, *, session=session, load_back=False, **options):
        before = commits(api)
        chosen = RefreshRequest([repo_id], no_load_back=not load_back, **options)
        with pytest.raises(HubpruneError) as caught:
            refreshing.refresh(repo_id, chosen, session=session, reporter=reporter)
        assert commits(api) == before
        return caught.value

    return run


# ---- edited ------------------------------------------------------------------------------------------------------

CONFIG = json.loads(files_of("published")["config.json"])
EDITS = {
    "config.json": json.dumps({**CONFIG, "rope_theta": 5e5}).encode(),
    "generation_config.json": b'{"temperature": 0.7}',
    "tokenizer_config.json": b'{"tokenizer_class": "LlamaTokenizer"}',
    "modeling_pruned_mistral.py": b"code = 1\n",
    WEIGHTS: files_of("base")[WEIGHTS],
    "README.md": b"# My own words\n",
    "recipe.yaml": b"schema_version: 1\n",
    "LICENSE": b"Mine\n",
}


@pytest.mark.parametrize("path", EDITS)
def test_a_file_that_somebody_edited_stops_it_and_the_commit_is_named(refused, published, api, path):
    edit = commit(api, REPO_ID, {path: EDITS[path]}, message="Mend it")
    error = refused()
    assert error.message.startswith(f"{path} of {REPO_ID} was ")
    assert f'{edit[:8]} "Mend it"' in error.message
    assert error.exit_code == 5


@pytest.mark.parametrize("path", ["config.json", "README.md", "tokenizer_config.json"])
def test_what_is_written_anew_may_be_overwritten(session, reporter, published, api, path):
    commit(api, REPO_ID, {path: EDITS[path]}, message="Mend it")
    chosen = RefreshRequest([REPO_ID], no_load_back=True, overwrite=True)
    report = refreshing.refresh(REPO_ID, chosen, session=session, reporter=reporter)
    assert path in {file.path for file in report.changed}
    assert manifest_at(api)["files"].keys() == json.loads(files_of("published")["hubprune.json"])["files"].keys()
    assert refreshing.refresh(REPO_ID, chosen, session=session, reporter=reporter).outcome == "up to date"


@pytest.mark.parametrize("path", [WEIGHTS, "recipe.yaml", "LICENSE"])
def test_what_cannot_be_written_without_computing_is_never_overwritten(refused, published, api, path):
    commit(api, REPO_ID, {path: EDITS[path]}, message="Heal it")
    error = refused(overwrite=True)
    assert path in error.message
    assert f"A refresh cannot write {path} anew" in error.hint


def test_nothing_is_overwritten_where_the_base_is_gone(published, hub, api, reporter):
    edit = commit(api, REPO_ID, {"config.json": EDITS["config.json"]}, message="Mend it")
    session = HubSession.open(
        endpoint=hub.endpoint, token=hub.add_user("outsider2", role="fineGrained", writable=(REPO_ID,))
    )
    api.update_repo_settings(BASE_ID, private=True)
    chosen = RefreshRequest([REPO_ID], no_load_back=True, overwrite=True)
    try:
        with pytest.raises(HubpruneError) as caught:
            refreshing.refresh(REPO_ID, chosen, session=session, reporter=reporter)
    finally:
        api.update_repo_settings(BASE_ID, private=False)
    assert edit[:8] in caught.value.message
    assert "all that there is to start from" in caught.value.hint


# ---- not ours ----------------------------------------------------------------------------------------------------


def test_a_repo_without_a_manifest_is_none_of_ours(refused, published):
    error = refused(BASE_ID)
    assert error.message == f"{BASE_ID} has no hubprune.json, so hubprune did not publish it."


@pytest.mark.parametrize("repo_id", ["./folder", "a/b/c", ""])
def test_what_is_no_repo_id_is_refused(refused, published, repo_id):
    assert refused(repo_id).message == f"{repo_id!r} is no repo id."


def test_a_manifest_of_another_kind_is_named_with_its_version(refused, published, api):
    commit(api, REPO_ID, {"hubprune.json": rewritten(schema_version=9)})
    assert f"schema version 9; this hubprune reads version {SCHEMA_VERSION}" in refused().message


def test_a_manifest_that_was_edited_is_refused(refused, published, api):
    data = files_of("published")["hubprune.json"].replace(b'"kv_bytes_per_token": 64', b'"kv_bytes_per_token": 32')
    edit = commit(api, REPO_ID, {"hubprune.json": data}, message="Better figures")
    assert f'{edit[:8]} "Better figures"' in refused().message


def test_a_modeling_file_that_hubprune_did_not_write_stops_it_even_if_the_manifest_lists_it(refused, published, api):
    commit(api, REPO_ID, with_file("modeling_pruned_mistral.py", b"import os\n"))
    assert "does not begin as a modeling file of hubprune" in refused().message


def test_a_config_that_names_other_code_stops_it_even_if_the_manifest_lists_it(refused, published, api):
    other = {**CONFIG, "auto_map": {**CONFIG["auto_map"], "AutoConfig": "evil--modeling.Config"}}
    commit(api, REPO_ID, with_file("config.json", json.dumps(other).encode()))
    assert "names classes that hubprune does not write" in refused().message


def test_a_config_of_another_plan_than_the_manifest_stops_it(refused, published, api):
    other = {**CONFIG, "hubprune": {**CONFIG["hubprune"], "dropped_attn_layers_of_base": [0]}}
    commit(api, REPO_ID, with_file("config.json", json.dumps(other).encode()))
    assert "tells of another plan or base" in refused().message


def test_a_config_that_is_not_what_the_plan_leaves_of_the_base_stops_it(refused, published, api):
    other = {**CONFIG, "dropped_attn_layers": [0]}
    commit(api, REPO_ID, with_file("config.json", json.dumps(other).encode()))
    assert f"is not what its plan leaves of {BASE_ID} at b3afb614" in refused().message


@pytest.mark.parametrize("path", ["adapter_config.json", "custom_generate/generate.py"])
def test_a_repo_that_leads_to_other_code_is_left_alone(refused, published, api, path):
    commit(api, REPO_ID, {path: b"{}"})
    assert path in refused().message


def test_quantized_weights_are_none_of_ours(refused, published, api):
    other = {**CONFIG, "quantization_config": {"quant_method": "gptq"}}
    commit(api, REPO_ID, with_file("config.json", json.dumps(other).encode()))
    assert "quantized (gptq)" in refused().message


# ---- not allowed -------------------------------------------------------------------------------------------------


def test_a_token_that_may_not_write_is_told_of_pull_requests(refused, published, hub, session, reporter):
    stranger = HubSession.open(endpoint=hub.endpoint, token=hub.add_user("stranger"))
    error = refused(session=stranger)
    assert "may not write to acme/tiny-mistral-attn-drop-1" in error.message
    assert error.hint == "Propose the refresh with --create-pr, or ask for write access."
    chosen = RefreshRequest([REPO_ID], no_load_back=True, create_pr=True)
    assert refreshing.refresh(REPO_ID, chosen, session=stranger, reporter=reporter).outcome == "proposed"


@pytest.mark.parametrize("revision", ["hubprune-494fd1d1", "nowhere"])
def test_only_a_branch_can_be_refreshed(refused, published, revision):
    assert revision in refused(revision=revision).message


def test_a_card_by_templates_of_its_publisher_is_not_replaced_by_a_shipped_one(refused, published, api):
    commit(api, REPO_ID, {"hubprune.json": rewritten(card_templates="ab" * 32)})
    error = refused()
    assert "templates that hubprune does not ship" in error.message
    assert "--card-template" in error.hint


def test_what_does_not_load_afterwards_says_which_commit_has_the_files_as_they_were(
    published, session, reporter, api, monkeypatch
):
    from hubprune.core.errors import VerificationError
    from hubprune.pruning import verify

    def fail(*args, **options):
        raise VerificationError("A fresh process could not load the checkpoint: no memory.")

    monkeypatch.setattr(verify, "load_from_hub", fail)
    before = commits(api)
    with pytest.raises(VerificationError) as caught:
        refreshing.refresh(REPO_ID, RefreshRequest([REPO_ID]), session=session, reporter=reporter)
    assert f"is refreshed at {commits(api)[0][:8]}, but: A fresh process could not" in caught.value.message
    assert before[0][:8] in caught.value.hint


def test_files_that_do_not_fit_the_weights_are_not_sent(refused, published, monkeypatch):
    write = refreshing.write_companions

    def write_another(base, plan, folder):
        write(base, plan, folder)
        config = json.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))

    monkeypatch.setattr(refreshing, "write_companions", write_another)
    error = refused(load_back=True)
    assert error.message.startswith(f"What this version writes for {REPO_ID} does not fit its weights")
    assert "Nothing was changed" in error.hint
