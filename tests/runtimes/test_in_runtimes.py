"""A checkpoint in other runtimes: what is asked, what a verification and a publish make of the answers.

What stands in for a runtime is a script that hands out answers which transformers computed beforehand.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import made
import pytest
import torch
from bases import LLAMA, plan, write_base
from card_text import card, check_golden
from typer.testing import CliRunner

from hubprune import api
from hubprune.cards.overview import other_runtimes, ran_in
from hubprune.cli import app
from hubprune.core.artifacts import RuntimeComparison, RuntimeRun
from hubprune.core.config import read_config
from hubprune.core.console import Reporter
from hubprune.core.errors import MissingDependencyError, RecipeError, VerificationError
from hubprune.core.extras import install
from hubprune.core.files import StageStore
from hubprune.core.neutral import load_causal_lm
from hubprune.exporting.parity import PROMPTS, TEXTS
from hubprune.pruning.checkpoint import write_checkpoint
from hubprune.pruning.tokenizer_files import load_tokenizer
from hubprune.runtimes import asking
from hubprune.workflows import runtimes
from hubprune.workflows.publish import stages as publishing
from hubprune.workflows.runtimes import NEW_TOKENS, Chosen, choose, compare_runtimes

QUIET = Reporter(quiet=True)
STAND_IN = """#!{python}
import json, sys
if sys.argv[1] == "-c":
    print(json.dumps({{"vllm": "9.9"}} if sys.argv[3] == "vllm" else None))
else:
    request = json.load(sys.stdin)
    assert request["dtype"] == "float32" and request["trust_remote_code"], request
    print(open({answers!r}).read())
"""


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A base and its checkpoint, in our own layout."""
    place = tmp_path_factory.mktemp("pruned")
    base = write_base(place / "base", LLAMA)
    (place / "out").mkdir()
    write_checkpoint(base, plan(5, attn=[2]), place / "out", advance=lambda _: None)
    return SimpleNamespace(base=place / "base", folder=place / "out")


@pytest.fixture(scope="module")
def answer(pruned):
    """What transformers makes of the prompts, as a runtime would tell it."""
    tokenizer = load_tokenizer(pruned.folder)
    model = load_causal_lm(pruned.folder, dtype=torch.float32, own_code=True)
    tokens = [tokenizer(text).input_ids for text in TEXTS]
    texts = [continued(model, row) for row in tokens[: len(PROMPTS)]]
    versions = {"vllm": "9.9", "transformers": "5.0"}
    return {"versions": versions, "architecture": "Some", "dtype": "float32", "texts": texts, "tokens": tokens,
            "kv_layers": 4, "seconds": 1.0}  # fmt: skip


def continued(model, row):
    ids, logprobs = [], []
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            top = model(torch.tensor([[*row, *ids]])).logits[0, -1].log_softmax(-1).max(-1)
            ids.append(int(top.indices))
            logprobs.append(float(top.values))
    return {"ids": ids, "logprobs": logprobs}


@pytest.fixture
def vllm(tmp_path, monkeypatch, answer):
    """Let a script stand in for vLLM, with that answer or a changed one; no other runtime is found."""
    monkeypatch.setattr(asking.importlib.util, "find_spec", lambda name: None)
    for runtime in asking.RUNTIMES.values():
        monkeypatch.delenv(runtime.variable, raising=False)
    monkeypatch.setattr(asking.shutil, "which", lambda name: None)
    asking.versions.cache_clear()

    def write(**changes):
        (tmp_path / "answer.json").write_text(json.dumps({**answer, **changes}))
        python = tmp_path / "python"
        python.write_text(STAND_IN.format(python=sys.executable, answers=str(tmp_path / "answer.json")))
        python.chmod(0o755)
        monkeypatch.setenv("HUBPRUNE_VLLM_PYTHON", str(python))
        return python

    yield write
    asking.versions.cache_clear()


def wrong(answer):
    """The same texts, with one probability that is a little off."""
    [first, *rest] = answer["texts"]
    return [{**first, "logprobs": [first["logprobs"][0] + 2e-4, *first["logprobs"][1:]]}, *rest]


# ---- verifying -----------------------------------------------------------------------------------------------------


def test_verify_really_asks_the_runtime_and_adds_a_check(pruned, vllm):
    vllm()
    seen = api.verify(str(pruned.folder), base=str(pruned.base), runtimes="vllm", quiet=True)
    assert seen.checks[-1].name == "vLLM computes what transformers does"
    assert seen.passed
    [run] = seen.in_runtimes.runs
    assert (run.outcome, run.equal_texts, run.equally_cut_texts) == ("equal", len(PROMPTS), len(TEXTS))
    assert run.largest_difference < 1e-5
    assert "vLLM 9.9, Some, float32: 4 of 4 greedy texts of 24 tokens equal" in run.detail


def test_a_runtime_that_computes_something_else_fails_the_command(pruned, vllm, answer):
    vllm(texts=wrong(answer))
    command = ["verify", str(pruned.folder), "--base", str(pruned.base), "--runtime", "vllm"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "FAILED  vLLM computes what transformers does" in done.stdout
    assert "log-probabilities within 2.0e-04 (0.0001 allowed)" in done.stdout
    assert "error: 1 of" in done.stderr
    assert "--runtime" in done.stderr


def test_one_that_is_not_installed_is_refused_before_anything_is_read(vllm):
    done = CliRunner().invoke(app, ["verify", "no/such-repo", "--runtime", "mlx"])
    assert done.exit_code == 1
    assert "mlx-lm was asked for" in done.stderr
    assert install("mlx") in done.stderr
    with pytest.raises(MissingDependencyError):
        choose(["llama.cpp"])
    with pytest.raises(RecipeError, match="no runtime 'sglang'"):
        choose("sglang")


def test_what_a_runtime_says_of_a_checkpoint_that_it_does_not_take_is_told(pruned, vllm):
    python = vllm()
    python.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('ValueError: Model type pruned_llama not supported.')")
    compared = compare_runtimes(pruned.folder, read_config(pruned.folder), {"vllm": python}, reporter=QUIET)
    [run] = compared.runs
    assert run.outcome == "refused"
    assert run.detail == "vLLM does not run it: ValueError: Model type pruned_llama not supported."


def test_a_model_that_does_not_fit_into_memory_is_not_run(pruned, vllm, monkeypatch):
    monkeypatch.setattr(runtimes, "available_bytes", lambda: 1000)
    compared = compare_runtimes(pruned.folder, read_config(pruned.folder), {"vllm": vllm()}, reporter=QUIET)
    assert compared.runs[0].outcome == "not run"
    assert "1,000 bytes are free" in compared.runs[0].detail or "1.00 kB are free" in compared.runs[0].detail


# ---- publishing ----------------------------------------------------------------------------------------------------


def run(**changes):
    values = {"runtime": "vllm", "outcome": "equal", "detail": "seen", "versions": {"vllm": "9.9", "transformers": "5"},
              "texts": 4, "equal_texts": 4, "new_tokens": 24, "largest_difference": 1e-5, "architecture": "Some",
              "dtype": "float32"}  # fmt: skip
    return RuntimeRun(**{**values, **changes})


def comparison(*runs):
    return RuntimeComparison(layout="pruned", dtype="float32", transformers="5.24.0", runs=runs)


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Come to the stage of a publish that runs its result in other runtimes, which say what they are told to."""
    asked = []
    stub = SimpleNamespace(store=StageStore(tmp_path / "work"), circumstances="here", reporter=Reporter(quiet=True))
    monkeypatch.setattr(publishing, "read_config", lambda _: {})
    monkeypatch.setattr(asking, "versions", lambda python, module: {"vllm": str(python)})

    def find(*runs, wanted=None, **options):
        def compare_runtimes(folder, config, pythons, *, typed_as, reporter):
            asked.append(typed_as)
            return comparison(*runs)

        monkeypatch.setattr(publishing, "compare_runtimes", compare_runtimes)
        wanted = Chosen({"vllm": tmp_path / "python"}, **options) if wanted is None else wanted
        return publishing.find_runtimes(stub, made.plan(), tmp_path, wanted, repo_id="me/a")

    find.asked = asked
    return find


def test_a_publish_runs_its_result_once_and_keeps_what_came_of_it(publish, tmp_path):
    assert publish(run()).runs == (run(),)
    assert publish(run()).runs == (run(),)
    assert publish.asked == ["me/a"]
    publish(run(), wanted=Chosen({"vllm": tmp_path / "another"}))
    assert len(publish.asked) == 2


def test_nothing_is_asked_where_nothing_is_found_or_the_last_publish_told(publish):
    assert publish(wanted=Chosen()) is None
    told = comparison(run(outcome="differs"))
    assert publish(wanted=told) is told
    assert publish.asked == []


def test_a_runtime_that_computes_something_else_stops_a_publish(publish):
    with pytest.raises(VerificationError, match="seen") as error:
        publish(run(outcome="differs"), run(runtime="mlx"))
    assert "--runtimes mlx" in error.value.hint


def test_one_that_does_not_take_it_stops_a_publish_only_where_it_was_asked_for(publish, tmp_path):
    refused = run(outcome="refused")
    assert publish(refused).runs == (refused,)
    with pytest.raises(VerificationError) as error:
        publish(refused, by_name=True)
    assert "--runtimes none" in error.value.hint


# ---- the card ------------------------------------------------------------------------------------------------------


def test_a_card_with_other_runtimes_is_the_golden_one():
    text = card(verification=made.in_runtimes())
    check_golden("elsewhere", text)
    assert "### In other runtimes" in text
    assert "In other runtimes" not in card()


def test_a_card_names_what_ran_and_nothing_else():
    ran = run(command="vllm serve me/a --trust-remote-code", kv_layers=25)
    seen = made.verification().model_copy(
        update={"in_runtimes": comparison(ran, run(runtime="mlx", outcome="refused", versions={"mlx-lm": "1"}))}
    )
    [told] = other_runtimes(seen, made.plan(), needs_file=True)
    assert told.command == "vllm serve me/a --trust-remote-code"
    assert told.sentence.startswith("vLLM 9.9 (with transformers 5) ran these files as Some in float32: all 4 greedy")
    assert "by more than 1.0e-05" in told.sentence
    assert "--trust-remote-code and the modeling file" in told.sentence
    assert "keys and values for 25 layers" in told.sentence
    assert ran_in(seen).endswith(" and vLLM 9.9 and nowhere else.")
    assert "mlx" not in ran_in(seen)
    [again] = other_runtimes(seen, made.plan(), needs_file=True, refreshed=True)
    assert "before this repo was refreshed" in again.sentence


def test_without_other_runtimes_a_card_names_transformers_alone():
    seen = made.verification()
    assert other_runtimes(seen, made.plan(), needs_file=True) == ()
    told = f"For this card, the files were run in transformers {seen.transformers} and nowhere else."
    assert ran_in(seen) == told


# ---- really --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama.cpp", "mlx"])
def test_a_runtime_that_is_here_computes_what_transformers_does(tmp_path, name):
    asking.versions.cache_clear()
    python = asking.find(name)
    if python is None:
        pytest.skip(f"there is no {name}: `make gguf` installs it, {asking.RUNTIMES[name].variable} names one")
    wide = {**LLAMA, "intermediate_size": 256, "hidden_size": 64, "rope_theta": 10000.0}
    base = write_base(tmp_path / "base", wide)
    (tmp_path / "out").mkdir()
    write_checkpoint(base, plan(5, attn=[2, 4], layout="nemotron-nas"), tmp_path / "out", advance=lambda _: None)
    config = read_config(tmp_path / "out")
    compared = compare_runtimes(tmp_path / "out", config, {name: python}, typed_as="me/tiny", reporter=QUIET)
    [run] = compared.runs
    assert run.outcome == "equal", run.detail
    assert "me/tiny" in str(run.command)
