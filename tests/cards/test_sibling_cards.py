"""Cards of siblings say what they are made of, what that cost and whether it adds up; the pruned card names them."""

from __future__ import annotations

import json

import made
import made_siblings
import pytest
from card_text import card, check_golden, check_structure, headings

from hubprune.cards.card import render, skeleton
from hubprune.cards.healed import came_back
from hubprune.cards.manifest import files_tag, write_manifest, write_sibling
from hubprune.cards.measured import adding
from hubprune.cards.records import parse_record, parse_sibling
from hubprune.cards.sibling import context_of, metadata
from hubprune.core.errors import CheckpointError, VerificationError
from hubprune.core.files import list_files

HASH = "0" * 64


def text_of(kind, **changes):
    return render(context_of(made_siblings.report(kind, **changes), template_hash=HASH))


@pytest.mark.parametrize("kind", ["healed", "quantized", "gguf"])
def test_the_card_of_a_sibling_is_the_golden_one(kind):
    text = text_of(kind)
    check_golden(f"sibling_{kind}", text)
    check_structure(text)


def test_a_card_points_to_nothing_that_is_not_there():
    rounded = made_siblings.quantized()
    rounded = rounded.model_copy(update={"record": rounded.record.model_copy(update={"calibration": None})})
    assert "texts of the mix cosmopedia (" in text_of("quantized", quantized=rounded)
    unmeasured = made_siblings.report("gguf").recipe | {"evaluation": {"tasks": []}}
    text = text_of("gguf", recipe=unmeasured, seconds={"gguf-q8_0": 9.0})
    assert "what the removal cost is not known; of what their types" in text
    assert "| writing and comparing q8_0 | 9" in text


def test_metadata_says_of_what_it_is_a_quantization():
    values = metadata(made_siblings.report())
    assert (values["base_model"], values["base_model_relation"]) == (made.REPO_ID, "quantized")
    assert values["tags"] == [
        "hubprune", "pruned", "attention-drop", "compressed-tensors", "quantized", "custom_code"
    ]  # fmt: skip
    assert values["datasets"] == ["HuggingFaceTB/cosmopedia"]
    [model] = values["model-index"]
    assert model["name"] == "Llama-3.2-3B-attn-drop-3-W4A16"
    files = metadata(made_siblings.report("gguf"))
    assert (files["library_name"], files["tags"][-2:]) == ("gguf", ["gguf", "llama.cpp"])
    assert "model-index" not in files
    early = skeleton(made.recipe(), base=made.base(), name="x", sibling_of=("gguf", made.REPO_ID))
    assert f"base_model: {made.REPO_ID}\nbase_model_relation: quantized" in early


def test_metadata_of_a_healed_one_names_what_it_was_trained_from_and_on():
    values = metadata(made_siblings.report("healed"))
    assert (values["base_model"], values["base_model_relation"]) == (made.REPO_ID, "finetune")
    assert values["tags"] == ["hubprune", "pruned", "attention-drop", "healed", "custom_code"]
    assert values["datasets"] == ["HuggingFaceTB/cosmopedia"]
    assert values["library_name"] == "transformers"
    assert "datasets" not in metadata(made_siblings.report("healed", **made_siblings.elsewhere()))


def test_a_share_that_came_back_is_told_only_where_something_clear_was_lost():
    rows = came_back(made_siblings.three()).table.rows
    assert [row[-1] for row in rows] == ["no clear loss", "61.5 % (42.0 to 80.0)"]
    assert came_back(made_siblings.three(came_back=())) is None


def test_what_was_trained_elsewhere_says_that_nobody_here_knows_on_what():
    text = text_of("healed", **made_siblings.elsewhere())
    check_structure(text)
    assert "hubprune does not know on which texts" in text
    assert "so that a benchmark's texts may have been among it" in text
    assert "hubprune reproduce" not in text
    assert "--healed FOLDER" in text
    assert "| Tensors that changed | 180 of 226 |" in text
    assert "KL to the base" not in text


def test_a_training_that_was_searched_for_nothing_says_so():
    text = text_of("healed", healing=made_siblings.healing(checked_against=(), left_out=0))
    assert "The texts were not searched for passages of any benchmark." in text
    early = text_of("healed", healing=made_siblings.healing(steps=120))
    assert "It ended after 120 of 200 steps" in early


def test_every_card_names_the_others():
    named = card(beside=made_siblings.LINKS)
    for link in made_siblings.LINKS:
        assert f"[{link.repo_id}](https://huggingface.co/{link.repo_id})" in named
    assert "Also as" not in card()
    quantized = text_of("quantized")
    assert f"(https://huggingface.co/{made.REPO_ID}/tree/hubprune-01234567)" in quantized
    assert f"[{made_siblings.GGUF}](" in quantized
    assert f"[{made_siblings.QUANTIZED}](" in text_of("gguf")


@pytest.mark.parametrize(
    ("excess", "said"),
    [
        ((0.4, -1.2, 2.0), "they add up, as far as these documents can tell"),
        ((2.4, 0.2, 4.0), "both together cost less than the sum"),
        ((-2.4, -4.0, -0.2), "both together cost more than the sum"),
    ],
)
def test_whether_losses_add_up_follows_from_the_interval(excess, said):
    found = adding(made_siblings.four(excess=excess))
    assert found.sentences[0].endswith(f"so that {said}.")
    assert [row[3] for row in found.table.rows] == ["−1.16", "−4.88"]


def test_a_sibling_without_benchmarks_says_so_and_has_no_table():
    text = text_of("quantized", benchmarks=None, control=None)
    assert "Benchmarks" not in headings(text)
    assert "No benchmark was run: what it costs there is not known." in text


def written(folder, kind="quantized"):
    """A sibling's folder, with what its report says of it."""
    folder.mkdir()
    names = ["a-Q8_0.gguf"] if kind == "gguf" else ["config.json", "model.safetensors"]
    for name in names:
        (folder / name).write_text(name)
    files = list_files(folder)
    if kind == "quantized":
        report = made_siblings.report(quantized=made_siblings.quantized(files))
    elif kind == "healed":
        report = made_siblings.report(kind, healed=made_siblings.healed(files))
    else:
        [file] = files
        export = made_siblings.export(file=file.path, size=file.size, sha256=file.sha256)
        report = made_siblings.report(kind, exports=(export,), carried=())
    (folder / "README.md").write_text("# Card\n")
    return report, write_sibling(folder, report=report, template_hash=HASH)


@pytest.mark.parametrize("kind", ["healed", "quantized", "gguf"])
def test_the_manifest_of_a_sibling_is_read_back_as_the_report_that_it_was_written_from(tmp_path, kind):
    report, files = written(tmp_path / "x", kind)
    data = (tmp_path / "x" / "hubprune.json").read_bytes()
    record = parse_sibling(data, where="it")
    assert files_tag(record.report.files) == files_tag(report.files)
    assert (record.report.exports, record.report.plan) == (report.exports, report.plan)
    again = context_of(record.report, template_hash=HASH)
    assert render(again) == render(context_of(report, template_hash=HASH))
    assert set(record.files) == {file.path for file in files} - {"hubprune.json"}
    with pytest.raises(CheckpointError, match=f"sibling of {made.REPO_ID}") as refused:
        parse_record(data, where="it")
    assert "hubprune publish BASE --recipe recipe.yaml" in refused.value.hint


def test_figures_that_no_run_found_are_refused(tmp_path):
    written(tmp_path / "x")
    values = json.loads((tmp_path / "x" / "hubprune.json").read_bytes())
    values["sibling"]["quantized"]["record"]["divergence"]["kl"] = 0.0
    with pytest.raises(CheckpointError, match="changed after it was written"):
        parse_sibling(json.dumps(values).encode(), where="it")


def test_a_file_that_is_not_the_one_that_was_verified_is_not_listed(tmp_path):
    report, _ = written(tmp_path / "x")
    (tmp_path / "x" / "model.safetensors").write_text("other")
    with pytest.raises(VerificationError, match="was changed since it was verified"):
        write_sibling(tmp_path / "x", report=report, template_hash=HASH)


def test_a_pruned_repo_is_no_sibling(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    report = made.report(checkpoint=made.checkpoint(files=list_files(tmp_path)))
    write_manifest(tmp_path, report=report, template_hash=HASH)
    with pytest.raises(CheckpointError, match="not that of a sibling"):
        parse_sibling((tmp_path / "hubprune.json").read_bytes(), where="it")
