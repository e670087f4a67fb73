"""What differs between two pruned checkpoints or plans, and what cannot be compared."""

import json

import made
import made_siblings
import pytest
from typer.testing import CliRunner

from hubprune.cards.manifest import write_manifest, write_sibling
from hubprune.cli import app
from hubprune.commands.side_by_side import comparison_text
from hubprune.core.artifacts import ImportanceScores
from hubprune.core.errors import BaseNotFoundError, CheckpointError
from hubprune.core.files import list_files
from hubprune.core.requests import CompareRequest
from hubprune.hub.session import HubSession
from hubprune.workflows import compare as comparison

OTHER_COMMIT = "f" * 40


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value.model_dump_json() if hasattr(value, "model_dump_json") else json.dumps(value))
    return str(path)


def report(**changes):
    return made.report(**changes)


@pytest.fixture
def compared(tmp_path):
    """Compare two values as files."""

    def compare(first, second):
        paths = [write(tmp_path / name, value) for name, value in (("a.json", first), ("b.json", second))]
        return comparison.compare(CompareRequest(*paths), session=HubSession(endpoint="http://127.0.0.1:9"))

    return compare


def with_scores(attn):
    mean = ImportanceScores(attn=attn, mlp=made.ATTN, block=made.ATTN)
    return made.scores().model_copy(update={"mean": mean})


def test_what_went_is_told_apart_in_the_numbers_of_the_base(compared):
    seen = compared(report(), report(plan=made.plan_by_hand()))
    attn, mlp = seen.dropped
    assert (attn.kind, attn.both, attn.only_first, attn.only_second) == ("attn", (5,), (4, 6), (3,))
    assert (mlp.both, mlp.only_first, mlp.only_second) == ((), (), ())
    assert seen.base == "same"
    assert seen.first.parameters == 3_137_000_000
    assert seen.first.kv_bytes_per_token == 20_480
    assert seen.first.calibration == "cosmopedia: 400 documents, 171,234 tokens, seed 0"


def test_scores_are_compared_by_their_order(compared):
    seen = compared(report(), report(scores=with_scores(made.ATTN[::-1])))
    agreed = {a.kind: a for a in seen.agreements}
    assert agreed["block"].lowest == 3
    # Ranks 8 7 4 5 1 3 2 6 against the reverse: the squared differences add up to 92, rho = 1 - 6 * 92 / (8 * 63).
    assert agreed["attn"].spearman == pytest.approx(1 - 552 / 504)
    assert agreed["attn"].overlap == 0
    assert (agreed["mlp"].spearman, agreed["mlp"].overlap) == (pytest.approx(1 - 552 / 504), 0)


def test_only_values_on_the_same_documents_are_compared(compared):
    task = made.task("arc_easy", "acc_norm", (0.7180, 0.01), (0.70, 0.01))
    other = made.task("lambada_openai", "acc", (0.7, 0.01), (0.6, 0.01)).model_copy(
        update={"dataset_commit": OTHER_COMMIT}
    )
    seen = compared(report(), report(benchmarks=made.benchmarks(tasks=(task, other))))
    (pair,) = seen.benchmarks
    assert (pair.task, pair.metric, pair.documents, pair.unit) == ("arc_easy", "acc_norm", 500, "points")
    assert (pair.first, pair.second, pair.first_base, pair.second_base) == (0.7104, 0.70, 0.7180, 0.7180)
    assert pair.change == pytest.approx(-1.04)
    assert "not compared: lambada_openai" in " ".join(seen.notes)


def test_a_metric_that_is_no_share_changes_in_its_own_unit(compared):
    seen = compared(report(), report())
    (perplexity,) = [pair for pair in seen.benchmarks if pair.metric == "perplexity"]
    assert (perplexity.unit, perplexity.change) == ("own", 0)


def test_different_circumstances_of_the_benchmarks_are_told(compared):
    seen = compared(report(), report(benchmarks=made.benchmarks(dtype="float32")))
    assert any("dtype bfloat16 and float32" in note for note in seen.notes)


@pytest.mark.parametrize("changes", [{"commit": OTHER_COMMIT}, {"name": "acme/other"}])
def test_of_different_bases_neither_layers_nor_scores_are_compared(compared, changes):
    seen = compared(report(), report(base=made.base(**changes)))
    assert (seen.base, seen.dropped, seen.agreements) == ("different", (), ())
    assert any(note.startswith("The bases differ") for note in seen.notes)


def test_two_plans_are_compared_although_they_name_no_base(compared):
    seen = compared(made.plan(), made.plan_by_hand())
    assert (seen.base, seen.first.base, seen.first.parameters) == ("unknown", None, None)
    assert seen.dropped[0].both == (5,)
    other = compared(made.plan(), made.plan(num_hidden_layers=9))
    assert other.base == "different"


def test_a_manifest_in_a_folder_is_read_and_strange_parts_of_it_count_as_absent(tmp_path):
    values = json.loads(report().model_dump_json())
    values |= {"base": {"repo_id": "meta-llama/Llama-3.2-3B", "commit": made.BASE_COMMIT}, "scores": "none"}
    values["benchmarks"]["tasks"][0] = {"task": 3}
    write(tmp_path / "pruned" / "hubprune.json", values)
    name = str(tmp_path / "pruned")
    request = CompareRequest(name, write(tmp_path / "b.json", report()))
    seen = comparison.compare(request, session=HubSession(endpoint="x"))
    assert (seen.base, seen.agreements) == ("same", ())
    assert [pair.metric for pair in seen.benchmarks] == ["acc", "perplexity"]
    assert any(note.startswith("Only") and note.endswith("b.json has scores.") for note in seen.notes)


@pytest.mark.parametrize("values", [{}, {"plan": {}}, {"plan": 3}])
def test_a_file_without_a_plan_is_refused(tmp_path, values):
    name = write(tmp_path / "x.json", values)
    with pytest.raises(CheckpointError, match="holds no plan that this version of hubprune can read"):
        comparison.read(name, session=HubSession(endpoint="x"))


def test_what_is_no_place_at_all_is_refused():
    with pytest.raises(BaseNotFoundError, match="neither a folder, nor a file, nor a repo id"):
        comparison.read("./nowhere", session=HubSession(endpoint="x"))


def test_the_command_prints_a_table_or_json(tmp_path):
    paths = [write(tmp_path / "a.json", report()), write(tmp_path / "b.json", report(plan=made.plan_by_hand()))]
    shown = CliRunner().invoke(app, ["compare", *paths])
    assert shown.exit_code == 0, shown.output
    rows = {" ".join(line.split()) for line in shown.output.splitlines()}
    assert "attention dropped 4, 5, 6 3, 5 differs" in rows
    assert "parameters 3,137,000,000 3,137,000,000 same" in rows
    assert "attention dropped in both: 5; only in A: 4, 6; only in B: 3" in rows
    assert "arc_easy acc_norm 500 0.7104 0.7180 0.7104 0.7180 +0.00 points" in rows
    as_json = CliRunner().invoke(app, ["compare", *paths, "--json"])
    assert json.loads(as_json.stdout)["dropped"][0]["both"] == [5]


# ---- trained weights ---------------------------------------------------------------------------------------------


def test_weights_that_were_trained_are_told_apart(tmp_path):
    for name in ("pruned", "healed"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_text(name)
        (folder / "README.md").write_text("# Card\n")
        if name == "pruned":
            whole = made.report(checkpoint=made.checkpoint(files=list_files(folder)[1:]))
            write_manifest(folder, report=whole, template_hash="0" * 64)
        else:
            own = made_siblings.report("healed", healed=made_siblings.healed(list_files(folder)[1:]))
            write_sibling(folder, report=own, template_hash="0" * 64)
    places = (str(tmp_path / name) for name in ("pruned", "healed"))
    seen = comparison.compare(CompareRequest(*places), session=HubSession(endpoint="http://127.0.0.1:9"))
    assert (seen.first.training, seen.second.training) == (None, "healed: lora, 200 steps, loss kl")
    assert seen.first.weights_sha256 != seen.second.weights_sha256
    text = comparison_text(seen)
    rows = {line.partition("  ")[0]: line for line in text.splitlines()}
    assert rows["trained"].endswith("differs")
    assert rows["weight files"].endswith("differs")
    assert rows["parameters"].endswith("same")
    assert rows["KV cache per token"].endswith("same")
