"""A card comes out of the manifest as it came out of the run, without any library that computes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import made
import pytest
from on_hub import make_folder
from typer.testing import CliRunner

from hubprune.cards import card
from hubprune.cards.card import card_part
from hubprune.cards.manifest import content_digest, write_manifest, write_recipe
from hubprune.cards.records import read_record
from hubprune.cli import app
from hubprune.core.artifacts import BaseCard
from hubprune.core.errors import CheckpointError, ConflictError, RecipeError
from hubprune.core.files import list_files, write_atomically
from hubprune.core.recipe import CalibrationMix, CalibrationSubset, EvaluationSpec, TargetSpec
from hubprune.workflows.card import CardChoices, write_card
from hubprune.workflows.verify import _manifest_checks

NOT_OF_THE_CHECKPOINT = ("README.md", "recipe.yaml", "hubprune.json", "assets/", "tasks/")


def publish_into(folder, *, picture=None, recipe=None, **changes):
    """Write what a publish leaves: the card of a report, its recipe, its manifest."""
    make_folder(folder)
    (folder / "hubprune.json").unlink()
    if picture:
        (folder / picture).parent.mkdir()
        (folder / picture).write_bytes(b"\x89PNG")
    files = tuple(f for f in list_files(folder) if not f.path.startswith(NOT_OF_THE_CHECKPOINT))
    used = recipe or made.recipe()
    report = made.report(
        checkpoint=made.checkpoint(files=files), recipe=used.model_dump(mode="json"),
        fingerprint={"card": card_part(notes=changes.get("notes"), templates=None)}, **changes,
    )  # fmt: skip
    (folder / "README.md").write_text(
        card.render(card.context_of(report, pictures=card.Pictures(importance=picture))), encoding="utf-8"
    )
    write_recipe(folder, recipe=used, report=report)
    write_manifest(folder, report=report, template_hash=card.template_hash())
    return folder


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


OWN_FILE = CalibrationMix(name="mine", subsets=(CalibrationSubset(dataset="/data/secret/mine.jsonl", weight=1),))
CASES = {
    "scored": {},
    "with a picture": {"picture": "assets/importance.png"},
    "notes, a licence that was given": {
        "notes": "My *own* words.",
        "base": made.base(card=BaseCard()),
        "recipe": made.recipe(target=TargetSpec(license="mit", allow_name=True)),
    },
    "by hand, no benchmarks, no licence": {key: value for key, value in made.BY_HAND.items() if key != "checkpoint"},
    "a pull request": {"recipe": made.recipe(target=TargetSpec(create_pr=True, repo_id="somebody/else"))},
    "another Hub": {"endpoint": "https://hub.example.org"},
    "a local Hub": {"endpoint": "http://127.0.0.1:4321"},
    "a licence of its own": {"base": made.base(card=BaseCard(license="other", license_name="x"))},
    "stages in any order": {"seconds": {"write": 1.25, "benchmarks": 0.333333333, "a": 3.0}},
    "examples in any order": {
        "recipe": made.recipe(
            calibration=OWN_FILE,
            evaluation=EvaluationSpec(
                tasks=("piqa", "boolq"), num_fewshot={"piqa": 3, "boolq": 1}, include_path="/home/me/tasks"
            ),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_card_comes_out_of_the_manifest_as_it_came_out_of_the_run(tmp_path, name):
    folder = publish_into(tmp_path / "a", **CASES[name])
    before = everything(folder)
    assert write_card(folder).outcome == "unchanged"
    (folder / "README.md").unlink()
    assert write_card(folder).outcome == "written"
    assert everything(folder) == before


def test_a_card_of_other_templates_is_replaced_and_listed(tmp_path):
    folder = publish_into(tmp_path / "a")
    old, card_now = everything(folder), (folder / "README.md").read_text()
    values = json.loads(old["hubprune.json"])
    data = b"# what an older template said\n"
    (folder / "README.md").write_bytes(data)
    values |= {"card_templates": "0" * 64}
    files = {
        **values["files"],
        "README.md": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)},
    }
    values |= {"files": files}
    (folder / "hubprune.json").write_text(json.dumps({**values, "content_sha256": content_digest(values)}))
    assert write_card(folder).outcome == "written"
    assert (folder / "README.md").read_text() == card_now
    assert everything(folder) == old


def test_a_card_that_was_edited_by_hand_stays_unless_it_may_be_replaced(tmp_path):
    folder = publish_into(tmp_path / "a")
    before = everything(folder)
    (folder / "README.md").write_text("# My words\n")
    with pytest.raises(ConflictError, match=r"README\.md was edited by hand.*--overwrite-card"):
        write_card(folder)
    assert (folder / "README.md").read_text() == "# My words\n"
    assert write_card(folder, overwrite_card=True).outcome == "written"
    assert everything(folder) == before


def test_templates_of_ones_own_render_the_same_figures(tmp_path):
    folder, own = publish_into(tmp_path / "a"), tmp_path / "own"
    before = everything(folder)
    own.mkdir()
    (own / "footer.md.jinja").write_text("The end of {{ card.title | md }}.\n")
    assert write_card(folder, CardChoices(template=own)).outcome == "written"
    assert (folder / "README.md").read_text().endswith("The end of Llama-3\\.2-3B-attn-drop-3.\n".replace("\\", ""))
    assert write_card(folder).outcome == "written"
    assert everything(folder) == before


def test_other_notes_take_the_place_of_those_in_the_manifest_and_stay_there(tmp_path):
    folder, notes = publish_into(tmp_path / "a"), tmp_path / "notes.md"
    before = everything(folder)
    notes.write_text("Read *this*.\n\n# And that\n", encoding="utf-8")
    ended = CliRunner().invoke(app, ["card", str(folder), "--notes", str(notes)])
    assert ended.exit_code == 0, ended.output
    now = everything(folder)
    assert {path for path in now if now[path] != before[path]} == {"README.md", "hubprune.json"}
    assert "Read *this*.\n\n### And that\n" in now["README.md"].decode()
    assert {check.name: check.passed for check in _manifest_checks(folder)} == {
        "files as in the manifest": True, "manifest as it was written": True,
    }  # fmt: skip
    assert write_card(folder).outcome == "unchanged"
    assert everything(folder) == now


def test_a_write_that_was_cut_off_between_card_and_manifest_is_completed(tmp_path, monkeypatch):
    folder, reference = publish_into(tmp_path / "a"), publish_into(tmp_path / "b")
    choices = CardChoices(notes="More words.")
    write_card(reference, choices)
    calls = []

    def write_once(path, data):
        if calls:
            raise KeyboardInterrupt
        calls.append(path)
        write_atomically(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("hubprune.cards.manifest.write_atomically", write_once)
        with pytest.raises(KeyboardInterrupt):
            write_card(folder, choices)
    assert write_card(folder, choices).outcome == "written"
    assert everything(folder) == everything(reference)


@pytest.mark.parametrize("option", [["--notes", "x.md"], ["--card-template", "own"], ["--overwrite-card"]])
def test_a_preview_takes_no_option_that_would_change_the_card(tmp_path, option):
    ended = CliRunner().invoke(app, ["card", str(tmp_path), "--preview", *option])
    assert ended.exit_code == 2
    assert f"--preview shows a card as it is, and {option[0]}" in ended.output.replace("\n", " ")


def edited(folder, **changes):
    path = folder / "hubprune.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**values, "content_sha256": content_digest(values)}))


BROKEN = {
    "no manifest": (lambda f: (f / "hubprune.json").unlink(), "holds no hubprune.json, so hubprune publish did not"),
    "no JSON": (lambda f: (f / "hubprune.json").write_bytes(b"{"), "is no valid JSON"),
    "not an object": (lambda f: (f / "hubprune.json").write_bytes(b"[]"), "is no JSON object"),
    "another program's": (lambda f: (f / "hubprune.json").write_bytes(b"{}"), "with schema version None; this"),
    "an older one": (lambda f: edited(f, schema_version=1), r"by hubprune 0\.1\.0 with schema version 1; this"),
    "a newer one": (lambda f: edited(f, schema_version=99), "with schema version 99; this hubprune reads version 2"),
    "no number": (lambda f: (f / "hubprune.json").write_bytes(b'{"schema_version": 2, "files": {}, "a": NaN}'), "c"),
    "no scores": (lambda f: edited(f, scores={}), r"is broken at scores\.aggregation: Field required"),
    "no run": (lambda f: edited(f, run=None), "is broken: TypeError"),
    "files of nonsense": (lambda f: edited(f, files={"README.md": "x"}), "is broken: TypeError"),
    "a script in its notes": (lambda f: edited(f, notes="<script>1</script>"), r"line 1: HTML \(<script>"),
    "a list for a name": (lambda f: edited(f, recipe=[]), "is broken: TypeError"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_rendered_is_one_clear_error_and_nothing_is_touched(tmp_path, name):
    folder = publish_into(tmp_path / "a")
    change, said = BROKEN[name]
    change(folder)
    before = everything(folder)
    with pytest.raises((CheckpointError, RecipeError), match=said):
        write_card(folder)
    assert everything(folder) == before


def test_a_figure_that_no_run_has_found_does_not_get_into_a_card(tmp_path):
    folder = publish_into(tmp_path / "a")
    path = folder / "hubprune.json"
    values = json.loads(path.read_text())
    values["benchmarks"]["tasks"][0]["pruned"]["value"] = 0.99
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        write_card(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    ended = CliRunner().invoke(app, ["card", str(tmp_path / "nowhere")])
    assert ended.exit_code == 1
    assert "nowhere is no folder" in ended.output.replace("\n", "")


def test_the_report_that_was_published_is_read_back(tmp_path):
    read = read_record(publish_into(tmp_path / "a")).report
    written = made.report()
    assert (read.scores, read.plan, read.generation) == (written.scores, written.plan, written.generation)
    assert (read.environment, read.seconds, read.repo_id) == (written.environment, written.seconds, written.repo_id)
    assert read.benchmarks == written.benchmarks.model_copy(update={"seconds": made.SECONDS["benchmarks"]})


def test_neither_torch_nor_any_other_heavy_library_is_needed(tmp_path):
    folder = publish_into(tmp_path / "a", picture="assets/importance.png")
    (folder / "README.md").unlink()
    source = f"""
import sys
for name in ("torch", "transformers", "datasets", "lm_eval", "huggingface_hub", "matplotlib", "scipy", "safetensors"):
    sys.modules[name] = None  # an import fails
sys.argv = ["hubprune", "card", {str(folder)!r}]
from hubprune.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "README.md  written" in done.stdout
    assert (folder / "README.md").read_text().startswith("---\n")
