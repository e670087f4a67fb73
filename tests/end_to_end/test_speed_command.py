"""`hubprune speed` of folders and of repos, and whose code it runs."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from hubprune.cli import app
from hubprune.core.artifacts import BaseCheckpoint, DroppedSublayer, DropPlan, SpeedReport
from hubprune.core.config import read_config
from hubprune.core.console import Reporter
from hubprune.core.errors import BaseNotFoundError, CheckpointError, RecipeError, VerificationError
from hubprune.core.requests import SpeedRequest
from hubprune.evaluation import speed as in_turns
from hubprune.hub.session import HubSession
from hubprune.pruning.checkpoint import write_checkpoint
from hubprune.workflows import speed as timing

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def write_pruned(base_folder, tmp_path_factory):
    """Write the base without two attentions, as somebody would whose base has this name and commit."""

    def write(*, name, commit):
        folder = tmp_path_factory.mktemp("written") / "pruned"
        folder.mkdir()
        config = read_config(base_folder)
        base = BaseCheckpoint(name=name, commit=commit, folder=str(base_folder), config=config, files=())
        plan = DropPlan(
            selected_by="hand",
            num_hidden_layers=4,
            dropped=tuple(DroppedSublayer(kind="attn", layer=layer) for layer in LAYERS),
            layout="pruned",
        )
        write_checkpoint(base, plan, folder, advance=lambda _: None)
        return folder

    return write


@pytest.fixture(scope="module")
def pruned_folder(write_pruned):
    return write_pruned(name="tiny", commit=None)


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Run in this process with caches of its own, and without the processes that measure memory."""
    import transformers.dynamic_module_utils as dynamic
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr(in_turns, "resident_peak", lambda folder, *_, **__: 10**9 if "base" in str(folder) else 10**8)


@pytest.fixture
def speed(alone):
    """Time two folders, with one decoded token."""

    def run(base, pruned, *, trust="own"):
        named = (str(base), str(pruned)) if base else (str(pruned),)
        asked = SpeedRequest(*named, depths=(0,), new_tokens=1, trust_remote_code=trust == "any", device="cpu")
        return timing.measure_speed(asked, reporter=Reporter(quiet=True), session=HubSession.open(endpoint=None))

    return run


def test_a_repo_is_timed_against_the_base_that_it_names(alone, hub, api, write_pruned):
    folder = write_pruned(name="meta/tiny", commit=api.model_info("meta/tiny").sha)
    api.create_repo("local/timed")
    api.upload_folder(repo_id="local/timed", folder_path=folder)
    session = HubSession.open(endpoint=hub.endpoint, token=hub.token)
    asked = SpeedRequest("local/timed", depths=(0, 16), new_tokens=4, batch_size=2, device="cpu", dtype="bfloat16")
    report = timing.measure_speed(asked, reporter=Reporter(quiet=True), session=session)
    assert (report.base, report.base_commit) == ("meta/tiny", api.model_info("meta/tiny").sha)
    assert (report.pruned, report.pruned_commit) == ("local/timed", api.model_info("local/timed").sha)
    assert report.dropped == (("attn", 1), ("attn", 3))
    # Two KV heads of width 8, keys and values, in bfloat16: 64 bytes per layer with attention.
    cache = report.kv_cache
    assert (cache.tokens, cache.base / 16, cache.pruned / 16, cache.as_computed) == (16, 4 * 64, 2 * 64, True)


def test_two_folders_are_timed_from_the_command_line(alone, base_folder, pruned_folder, tmp_path):
    file = tmp_path / "speed.json"
    shape = ("--depths", "0,16,4096", "--new-tokens", "4", "--batch-size", "2", "--device", "cpu")
    ended = CliRunner().invoke(app, ["speed", str(base_folder), str(pruned_folder), *shape, "--report", str(file)])
    assert ended.exit_code == 0, ended.output
    report = SpeedReport.model_validate_json(file.read_text())
    shapes = [(row.measured.depth, row.measured.measure) for row in report.rows]
    whole = ("prefill", "first-token", "decode", "generation")
    assert shapes == [(0, "decode"), *((depth, measure) for depth in (16, 252) for measure in whole)]
    for row in report.rows:
        assert row.measured.rounds == 20
        assert row.measured.ratio.low <= row.measured.ratio.median <= row.measured.ratio.high
        assert min(min(seconds) for seconds in row.measured.round_seconds) > 0
        assert (row.verdict, row.sdr) == (row.measured.verdict, None)
    peak = report.peak_memory
    assert (peak.how, peak.base, peak.pruned, peak.depth, peak.batch_size) == ("resident", 10**9, 10**8, 252, 2)
    for words in (
        "Depth 4096 became 252",
        "No SDR",
        "without attention 1, 3",
        "4 new tokens, 20 rounds in random order",
    ):
        assert words in ended.stdout
    assert "time depth 252: 23 rounds" in ended.stderr
    assert "time depth" not in ended.stdout


@pytest.fixture
def foreign(pruned_folder, tmp_path):
    """A checkpoint whose modeling file leaves a mark where it is run."""
    folder = shutil.copytree(pruned_folder, tmp_path / "foreign")
    file, marker = folder / "modeling_pruned_llama.py", tmp_path / "ran"
    file.write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n" + file.read_text())
    return folder


def test_code_that_is_not_ours_is_run_only_where_it_is_trusted(speed, base_folder, foreign, tmp_path):
    with pytest.raises(VerificationError, match="would not write") as caught:
        speed(base_folder, foreign)
    assert "--trust-remote-code" in caught.value.hint
    assert not (tmp_path / "ran").exists()
    report = speed(base_folder, foreign, trust="any")
    assert [row.measured.measure for row in report.rows] == ["decode"]
    assert (tmp_path / "ran").exists()


def test_a_file_that_only_lies_there_is_refused_too(speed, base_folder, pruned_folder, tmp_path):
    folder = shutil.copytree(pruned_folder, tmp_path / "more")
    (folder / "tokenization_own.py").write_text("")
    with pytest.raises(VerificationError, match="would not write"):
        speed(base_folder, folder)


def test_a_base_that_it_was_not_made_of_is_refused(speed, base_folder, pruned_folder, tmp_path):
    other = shutil.copytree(base_folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(RecipeError, match="made of a llama of 4 layers; other is a llama of 3"):
        speed(other, pruned_folder)


def test_a_base_that_was_a_folder_has_to_be_named(speed, pruned_folder):
    with pytest.raises(BaseNotFoundError, match="the local folder 'tiny'") as caught:
        speed(None, pruned_folder)
    assert caught.value.hint == f"Say where it is: hubprune speed FOLDER {pruned_folder}."


def test_a_checkpoint_that_we_did_not_write_is_refused(speed, base_folder):
    with pytest.raises(CheckpointError, match="does not say what was dropped"):
        speed(base_folder, base_folder)
