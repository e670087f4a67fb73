"""What a notebook calls: the options of the commands, typed results, errors that are raised, nothing on stdout."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest
import typer
from little import fill, write_base

import hubprune
from hubprune import api
from hubprune.cli import app
from hubprune.core.artifacts import LayerScores, PrunedCheckpoint, PublishReport, ScoreStudy, Verification
from hubprune.core.errors import BaseNotFoundError, PlanError, RecipeError, VerificationError
from hubprune.core.options import options_of
from hubprune.core.requests import JobRequest, PublishRequest

LIGHT = ("torch", "transformers", "datasets", "huggingface_hub", "pydantic", "jinja2", "matplotlib", "typer", "rich")
NAMES = sorted(set(hubprune.__all__) - {"__version__"})
JOB = {option.name for option in options_of(JobRequest)} - {option.name for option in options_of(PublishRequest)}
"""Of a publish that runs elsewhere, which has no report to return."""


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Work and results of a test stay with it."""
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("".join(f"Text number {n} is about birds.\n" for n in range(8)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def pruned(base, tmp_path):
    """A folder without the attention of layer 1."""
    hubprune.prune(str(base), attn_layers=[1], out=tmp_path / "pruned", quiet=True)
    return tmp_path / "pruned"


# ---- the surface -------------------------------------------------------------------------------------------------


def command_of(name):
    commands = typer.main.get_command(app).commands
    return commands["export"].commands["gguf"] if name == "export_gguf" else commands[name]


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"load"}))
def test_a_function_takes_what_its_command_takes_with_the_same_defaults(name):
    def default(option):
        """Return it as Python has it: what may be given piece by piece is a list on the command line."""
        return ",".join(option.default) if isinstance(option.default, list) else option.default

    options = {
        option.name: inspect.Parameter.empty if option.required else default(option)
        for option in command_of(name).params
        if not getattr(option, "hidden", False)  # a name of earlier versions
        and option.name not in {"as_json"} | (JOB if name == "publish" else set())
    }
    parameters = inspect.signature(getattr(hubprune, name)).parameters
    assert {key: p.default for key, p in parameters.items() if key != "quiet"} == options
    assert parameters["quiet"].default is False


def test_a_function_takes_the_name_that_an_option_had_once(base, tmp_path, capsys):
    hubprune.prune(str(base), drop_attn=[1], out=tmp_path / "old")
    assert json.loads((tmp_path / "old" / "config.json").read_text())["dropped_attn_layers"] == [1]
    assert "drop_attn is called attn_layers now" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_a_function_says_what_it_takes_and_returns(name):
    call = getattr(hubprune, name)
    assert call.__name__ == name
    first, rest = call.__doc__.split("\n", 1)
    assert first.endswith(".")
    assert rest.index("Args:") < rest.index("Returns:")
    for parameter in inspect.signature(call).parameters:
        assert f"    {parameter}: " in rest
    assert all(len(line) <= 120 for line in call.__doc__.splitlines())


def test_the_package_names_all_functions_and_nothing_else():
    assert set(NAMES) == {name for name, value in vars(api).items() if hasattr(value, "__signature__")}
    assert set(hubprune.__all__) <= set(dir(hubprune))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hubprune.nothing  # noqa: B018


def test_importing_the_package_and_looking_at_a_function_load_nothing_heavy():
    source = (
        f"import sys, inspect\nbefore = set(sys.modules)\nimport hubprune\nlight = set({LIGHT!r})\n"
        "own = {name for name in set(sys.modules) - before if name.startswith('hubprune')}\n"
        "assert own == {'hubprune', 'hubprune.core'}, own\n"
        "inspect.signature(hubprune.publish)\nassert not light & set(sys.modules), light & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", source], check=True)


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("base",), {"attndrop": 3, "out": "x"}, "unexpected keyword argument 'attndrop'"),
        (("base",), {}, "missing a required argument: 'out'"),
        (("base", "x"), {}, "too many positional arguments"),
    ],
)
def test_options_that_there_are_not_are_a_type_error(arguments, options, said):
    with pytest.raises(TypeError, match=said):
        hubprune.prune(*arguments, **options)


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (RecipeError, lambda base: hubprune.prune(base, out="x")),
        (PlanError, lambda base: hubprune.prune(base, attn_drop=9, out="x")),
        (RecipeError, lambda base: hubprune.score(base, num_samples=(4, 8), calibration=["c4", "lima"])),
        (RecipeError, lambda base: hubprune.sweep(base, counts="all")),
        (RecipeError, lambda base: hubprune.speed(base, depths="deep")),
        (RecipeError, lambda base: hubprune.publish()),
        (RecipeError, lambda base: hubprune.push("nowhere", "nothing.json")),
        (RecipeError, lambda base: hubprune.export_gguf(base, outtype="q1")),
        (RecipeError, lambda base: hubprune.load(base, dtype="int8")),
        (RecipeError, lambda base: hubprune.verify(base, device="gpu")),
        (RecipeError, lambda base: hubprune.load(base, device="tpu")),
        (BaseNotFoundError, lambda base: hubprune.verify("no such folder")),
        (BaseNotFoundError, lambda base: hubprune.compare("a b", "c d")),
        (BaseNotFoundError, lambda base: hubprune.reproduce("no such folder")),
    ],
)
def test_errors_are_raised_and_nobody_exits(base, error, call, capfd):
    with pytest.raises(error):
        call(str(base))
    assert capfd.readouterr().out == ""


def test_a_failed_check_is_an_error(base, pruned):
    path = pruned / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-64:] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(VerificationError, match="checks failed"):
        hubprune.verify(str(pruned), base=str(base), quiet=True)


# ---- at work -----------------------------------------------------------------------------------------------------


def test_scores_are_values_and_lists_of_samples_a_study(base, capfd):
    options = {"calibration": "texts.txt", "max_tokens": 16, "quiet": True}
    scores = hubprune.score(str(base), num_samples=6, **options)
    assert isinstance(scores, LayerScores)
    assert len(scores.mean.attn) == 4
    study = hubprune.score(str(base), num_samples=[3, 6], **options)
    assert isinstance(study, ScoreStudy)
    assert [entry.label for entry in study.entries] == ["3", "6"]
    assert "<table>" in scores._repr_html_()
    assert capfd.readouterr().out == ""


def test_a_pruned_folder_is_verified_and_loaded(base, tmp_path, capfd):
    made = hubprune.prune(str(base), attn_layers=(1, 2), out=str(tmp_path / "pruned"))
    assert isinstance(made, PrunedCheckpoint)
    seen = hubprune.verify(str(tmp_path / "pruned"), base=str(base), device="cpu")
    assert isinstance(seen, Verification)
    assert all(check.passed for check in seen.checks)
    model, tokenizer = hubprune.load(tmp_path / "pruned", device="cpu")
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) == made.written.parameters
    output = model.generate(**tokenizer("One day", return_tensors="pt"), max_new_tokens=3)
    assert output.shape[1] == len(tokenizer("One day")["input_ids"]) + 3
    said = capfd.readouterr()
    assert said.out == ""
    assert "dropping the attention of layers 1, 2" in said.err


def test_quiet_leaves_out_what_is_no_warning(base, tmp_path, capfd):
    hubprune.prune(str(base), attn_layers="1", out=tmp_path / "pruned", quiet=True)
    assert "dropping" not in capfd.readouterr().err


def test_code_that_this_version_would_not_write_is_run_for_who_trusts_it_only(pruned, base):
    import torch

    (file,) = pruned.glob("*.py")
    file.write_text(f"{file.read_text()}\nTOUCHED = True\n")
    with pytest.raises(VerificationError, match="this version of hubprune would not write") as caught:
        hubprune.load(pruned)
    assert "trust_remote_code=True" in caught.value.hint
    model, _ = hubprune.load(pruned, device="cpu", dtype=torch.float32, trust_remote_code=True)
    assert sys.modules[type(model).__module__].TOUCHED


def test_a_result_is_published_and_pushed(hub, admin, base, user, tmp_path, monkeypatch, capfd):
    name, token = user
    monkeypatch.setenv("HF_TOKEN", token)
    fill(admin, "api/base", {path.name: path.read_bytes() for path in base.iterdir()})
    options = {"attn_layers": [1], "tasks": [], "repo_id": f"{name}/pruned", "device": "cpu"}
    planned = hubprune.publish("api/base", **options, dry_run=True, out=tmp_path / "out", report=tmp_path / "r.json")
    assert planned.published is None
    pushed = hubprune.push(tmp_path / "out", tmp_path / "r.json")
    assert isinstance(pushed, PublishReport)
    assert pushed.published.created
    again = hubprune.publish("api/base", **options)
    assert (again.published.created, again.published.commit) == (False, pushed.published.commit)
    compared = hubprune.compare(f"{name}/pruned", str(tmp_path / "r.json"))
    assert compared.base == "same"
    assert capfd.readouterr().out == ""


def test_lists_and_mappings_mean_what_their_text_means():
    from hubprune.workflows.recipes import recipe_of

    as_text = PublishRequest("a/b", attn_layers="1,2", protect="0", mlp_width="3,4", tasks="piqa,boolq",
                             num_fewshot="piqa=5", max_loss="mean=3,piqa=2.5")  # fmt: skip
    as_values = PublishRequest("a/b", attn_layers=(2, 1), protect=0, mlp_width=[3, 4], tasks=["piqa", "boolq"],
                               num_fewshot={"piqa": 5}, max_loss={"mean": 3, "piqa": 2.5})  # fmt: skip
    assert recipe_of(as_text) == recipe_of(as_values)
    none = recipe_of(PublishRequest("a/b", attn_drop="10%", tasks="none", num_fewshot="2", max_loss="none"))
    assert none == recipe_of(PublishRequest("a/b", attn_drop="10%", tasks=[], num_fewshot=2, max_loss={}))


def test_a_notebook_shows_what_goes_on_and_the_result(base, tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    source = f"import hubprune\nhubprune.prune({str(base)!r}, attn_layers=1, out={str(tmp_path / 'out')!r})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300).execute()
    outputs = notebook.cells[0].outputs
    shown = "".join(o.data.get("text/plain", "") for o in outputs if o.output_type == "display_data")
    assert "dropping the attention of layer 1" in shown
    assert "verified in a fresh process" in shown
    assert "<table>" in outputs[-1].data["text/html"]
    assert [o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"] == []
