"""What differs between two runs is found, whatever it is, and named with where it is and what may be why."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import made
import pytest
import yaml
from on_hub import make_folder

from hubprune.cards.manifest import content_digest
from hubprune.core.console import Reporter
from hubprune.core.errors import CheckpointError, HubpruneError
from hubprune.core.requests import ReproduceRequest
from hubprune.hub.session import HubSession
from hubprune.workflows.reproduce import _recipe_digest, reproduce
from hubprune.workflows.reproduce.comparing import causes, compare, differences, read_published

SESSION = HubSession(endpoint="http://127.0.0.1:9")


@pytest.fixture
def published(tmp_path):
    folder = make_folder(tmp_path / "a", card="| Stage | Time |\n| --- | ---: |\n| scores | 9 s |\n\nSame.\n")
    return read_published(str(folder), revision=None, session=SESSION, reporter=Reporter(quiet=True))


def compared(published, values=None, files=None, card=None):
    parts = compare(
        published,
        values=published.manifest if values is None else values,
        files=published.files if files is None else files,
        card=published.card if card is None else card,
    )
    return {part.name: part for part in parts}


def differing(parts):
    return {name for name, part in parts.items() if part.outcome == "differs"}


def test_the_same_is_equal_in_all_parts(published):
    assert {part.outcome for part in compared(published).values()} == {"equal"}


def test_what_the_first_manifests_do_not_hold_is_no_difference(published):
    first = {key: value for key, value in published.manifest.items() if key != "run"} | {"schema_version": 1}
    first["base"] = {key: first["base"][key] for key in ("repo_id", "commit")}
    first["checkpoint"] = {key: value for key, value in first["checkpoint"].items() if key != "files"}
    first["content_sha256"] = content_digest(first)
    parts = compared(replace(published, manifest=first), published.manifest)
    assert {part.outcome for part in parts.values()} == {"equal"}
    assert causes(first, published.manifest, machine="M", parts=parts.values()) == ()


@pytest.mark.parametrize(
    ("keys", "value", "part", "place"),
    [
        (("scores", "mean", "attn", 3), 0.5, "scores", "mean.attn[3]"),
        (("plan", "dropped", 0, "layer"), 1, "plan", "dropped[0].layer"),
        (("recipe", "seed"), 7, "recipe", "seed"),
        (("checkpoint", "parameters"), 1, "checkpoint", "figures.parameters"),
        (("benchmarks", "tasks", 0, "pruned", "value"), 0.9, "benchmarks", "tasks[arc_easy acc_norm].pruned.value"),
        (("generation", "continuations", 1, "pruned"), "x", "free text", "free text.continuations[1].pruned"),
        (("snippet", "output"), "x", "free text", "printed by the card's code"),
    ],
)
def test_one_changed_value_is_a_difference_of_its_part_alone(published, keys, value, part, place):
    values = copy.deepcopy(dict(published.manifest))
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    parts = compared(published, values)
    assert differing(parts) == {part}
    assert [row.place for row in parts[part].differences] == [place]
    assert parts[part].differences[0].found == value
    # The same edit in what is published is found without any run, too.
    edited = compared(replace(published, manifest=values), published.manifest)
    assert differing(edited) == {part, "manifest"}
    assert "edited after it was written" in edited["manifest"].detail


def test_the_largest_difference_of_scores_is_told_with_its_place(published):
    values = copy.deepcopy(dict(published.manifest))
    values["scores"]["mean"]["attn"][2] += 1e-9
    values["scores"]["mean"]["mlp"][1] -= 1e-6
    part = compared(published, values)["scores"]
    assert part.largest_difference == pytest.approx(1e-6, rel=1e-3)
    assert "(mean.mlp[1])" in part.detail


def test_files_are_compared_by_what_they_are_and_not_by_what_the_manifest_says(published):
    manifest = copy.deepcopy(dict(published.manifest))
    manifest["files"]["model.safetensors"]["sha256"] = "0" * 64
    parts = compared(replace(published, manifest=manifest), published.manifest)
    assert differing(parts) == {"manifest"}
    other = compared(published, files={**published.files, "device": "1" * 64})
    assert differing(other) == {"files"}
    assert other["files"].differences[0].place == "device"


def test_the_card_may_differ_in_times_and_versions_and_in_nothing_else(published):
    assert not differing(compared(published, card=published.card.replace(b"9 s", b"12 s")))
    row = b"| Hardware | another one |\n| hf-xet | 9.9 |\n"
    assert not differing(compared(published, card=published.card + row))
    parts = compared(published, card=published.card.replace(b"Same.", b"Other."))
    assert differing(parts) == {"README.md"}
    assert (parts["README.md"].differences[0].published, parts["README.md"].differences[0].found) == ("Same.", "Other.")
    values = {**published.manifest, "card_templates": "1" * 64}
    assert compared(published, values, card=b"")["README.md"].outcome == "not compared"


def test_what_was_timed_is_taken_over_and_not_compared(published):
    assert published.speed is None
    timed = replace(published, manifest={**published.manifest, "speed": made.speed().model_dump(mode="json")})
    assert timed.speed == made.speed()
    assert compared(timed)["speed"].outcome == "not compared"
    assert replace(published, manifest={"speed": {"rows": 3}}).speed is None


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"base": {"repo_id": "a/b", "revision": "main"}}, {}, "pins no commit of a base"),
        ({"evaluation": {"tasks": ["own"], "include_path": "tasks"}}, {}, "benchmark definitions of its own"),
        ({}, {"device": "gpu"}, "--device 'gpu' is none of"),
        ({}, {"calibration": (Path("x.jsonl"),)}, "scored on no local file called x.jsonl"),
        (
            {"calibration": {"name": "m", "subsets": [{"dataset": "mine.jsonl", "weight": 1}]}}, {},
            "mine.jsonl, a file of its publisher",
        ),
        ({}, {"card_template": Path("/nowhere")}, "is no folder of card templates"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_said_at_once(published, change, options, said, monkeypatch, tmp_path):
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "work"))
    values = made.recipe().model_dump(mode="json", exclude_none=True)
    pinned = {"base": {"repo_id": "a/b", "revision": "0" * 40}}
    (published.folder / "recipe.yaml").write_text(yaml.safe_dump({**values, **pinned, **change}))
    request = ReproduceRequest(str(published.folder), **options)
    with pytest.raises(HubpruneError) as raised:
        reproduce(request, session=SESSION, reporter=Reporter(quiet=True))
    assert said in raised.value.message


def test_another_device_makes_no_other_recipe(tmp_path):
    published, here = made.recipe(device="cuda"), made.recipe(device="cpu")
    (tmp_path / "recipe.yaml").write_text(here.to_yaml())
    same = hashlib.sha256(published.to_yaml().encode()).hexdigest()
    assert _recipe_digest(tmp_path, device="cuda") == same
    (tmp_path / "recipe.yaml").write_text(made.recipe(device="cpu", seed=1).to_yaml())
    assert _recipe_digest(tmp_path, device="cuda") != same


@pytest.mark.parametrize("missing", ["recipe.yaml", "hubprune.json"])
def test_a_folder_that_no_publish_wrote_has_nothing_to_run(published, missing):
    (published.folder / missing).unlink()
    with pytest.raises(CheckpointError, match=f"has no {re.escape(missing)}"):
        read_published(str(published.folder), revision=None, session=SESSION, reporter=Reporter(quiet=True))


def test_notes_that_no_author_may_write_are_not_put_on_a_card(published):
    def noted(notes):
        return replace(published, manifest={**published.manifest, "notes": notes}).notes

    assert noted("Fine *words*.") == "Fine *words*."
    assert noted("<script>alert(1)</script>") is noted(["a"]) is noted(None) is None


def test_absent_and_null_are_the_same_and_truth_is_no_number():
    assert list(differences({"a": None}, {})) == []
    assert [row.place for row in differences({"a": [1, True]}, {"a": [1, 1]})] == ["a[1]"]
    assert [row.place for row in differences({"a": [1]}, {"a": [1, 2]})] == ["number of a"]
    assert [row.place for row in differences({"a": [1]}, {"a": {"b": 1}})] == ["a"]


def test_versions_data_and_machine_are_named_as_causes(published):
    theirs, ours = published.manifest, copy.deepcopy(dict(published.manifest))
    assert causes(theirs, ours, machine="M", parts=()) == ()
    changed = copy.deepcopy(ours)
    changed["plan"]["num_hidden_layers"] = 9
    parts = compared(published, changed).values()
    assert "it may be the machine, which is M here" in causes(theirs, changed, machine="M", parts=parts)[0]
    ours["versions"]["torch"] = "2.0"
    ours["scores"] |= {"device": "cuda"}
    ours["scores"]["calibration"]["token_sha256"] = "0" * 64
    ours["benchmarks"]["tasks"][0]["dataset_commit"] = "b" * 40
    ours["generation"]["chat"] = {"date": "2026-12-31"}
    assert causes(theirs, ours, machine="M", parts=()) == (
        "torch 2.0 instead of 2.13.0",
        "scored on cuda instead of cpu",
        "other calibration texts: their token ids have another SHA-256",
        f"the data set of arc_easy is at commit {'b' * 40} instead of {made.DATA_COMMIT}",
        "the chat template wrote another day into the prompts of free text: 2026-12-31 instead of None",
    )


@pytest.mark.parametrize("values", [{}, {"files": 3, "versions": [], "scores": "x", "snippet": 1, "benchmarks": []}])
def test_a_manifest_of_nonsense_differs_and_breaks_nothing(published, values):
    nonsense = replace(published, manifest=json.loads(json.dumps(values)))
    parts = compared(nonsense, published.manifest)
    assert "manifest" in differing(parts)
    causes(values, published.manifest, machine="M", parts=parts.values())
