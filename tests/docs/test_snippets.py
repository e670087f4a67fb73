"""Every command and snippet of README and docs is run, or says why not and is read as far as it goes.

They run on a Hub with tiny stand-ins under the names of the pages, in the order of the page and in a folder that has
what an earlier page would have left there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml
from snippets import LANGUAGES, ROOT, all_blocks, cells, hubprune_arguments, shown, typed
from stock_hub import BASE, fill
from typer.testing import CliRunner

from hubprune.core import recipe
from hubprune.evaluation import speed as timing
from hubprune.pruning import documents, verify
from hubprune.workflows import doctor, recipes

CHEAPER = {
    "sweep": ["--counts", "0:1", "--tasks", "piqa"],
    "publish": ["--tasks", "piqa"],
    "speed": ["--depths", "0", "--new-tokens", "1"],
    "heal": ["--steps", "2", "--held-out", "4"],
    "quantize": ["--group-size", "16", "--num-samples", "8"],
}
"""Command -> options that are added where it is run here, since the stand-in is small or time is short; to a publish
only where it sweeps first, to none where it names tasks itself."""
BLOCKS = all_blocks()
RUN = [block for block in BLOCKS if block.reason is None and block.language in ("bash", "python")]
READ = [block for block in BLOCKS if block not in RUN]


DONE = set()
"""Commands that were run: what several pages show is run once."""


def run(arguments):
    from hubprune.cli import app

    if tuple(arguments) in DONE:
        return
    DONE.add(tuple(arguments))
    options = CHEAPER.get(arguments[0], []) if arguments[0] != "publish" or "auto" in arguments else []
    given = [pair for pair in zip(options[::2], options[1::2], strict=True) if "--tasks" not in {*arguments} & {*pair}]
    more = [word for pair in given for word in pair]
    done = CliRunner().invoke(app, [*arguments, *more])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, f"hubprune {' '.join(arguments)}\n{done.stderr}"


@pytest.fixture(scope="module")
def left_by_others(hub, admin, tmp_path_factory):
    """A folder with what the pages take for granted: a dry run and its report, a pruned folder, texts, notes."""
    fill(admin)
    place = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", hub.add_user("me", role="write"))
        patch.chdir(place)
        Path("prompts.txt").write_text("One morning\nHow to\n")
        # Of 32 prompts two, and of 400 documents 12 are enough to be run.
        patch.setattr(recipe, "PACKAGE_PROMPTS", place / "prompts.txt")
        fewer = documents.COSMOPEDIA.model_copy(update={"num_samples": 12})
        patch.setitem(documents.MIXES, "cosmopedia", fewer)
        patch.setattr(recipes, "COSMOPEDIA", fewer)
        patch.setattr(verify, "NEW_TOKENS", 4)
        patch.setattr(verify, "load_from_hub", cache_first(verify.load_from_hub))
        # How fast this machine is, and what a process takes, is not asked on these pages: both have tests of their own.
        patch.setattr(doctor, "ROWS", 4)
        patch.setattr(doctor, "WIDTH", 64)
        patch.setattr(timing, "resident_peak", lambda *place, **options: 2**29)
        run(["publish", BASE, "--attn-drop", "3", "--dry-run", "--out", "kept"])
        run(["push", "kept"])
        run(["prune", BASE, "--attn-drop", "3", "--out", "pruned"])
        texts = [f'{{"text": "Elsa saw bird number {n} and went to the barn."}}\n' for n in range(400)]
        Path("texts.jsonl").write_text("".join(texts))
        Path("notes.md").write_text("Made to try it.\n")
        shutil.copy("kept/recipe.yaml", "recipe.yaml")
        yield place


@pytest.fixture
def place(left_by_others, tmp_path, monkeypatch):
    shutil.copytree(left_by_others, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def cache_first(load):
    """Load back what is published first: what several pages publish is the same model."""
    loaded = []

    def answer(*place, **options):
        loaded or loaded.append(load(*place, **options))
        return loaded[0]

    return answer


def run_block(block, names):
    if block.language == "python":
        for out in re.findall(r'\bout="([\w-]+)"', block.text):
            shutil.rmtree(out, ignore_errors=True)  # an earlier page made it
        exec(compile(block.text, block.name, "exec"), names)  # what the page shows
        return
    for command in block.commands:
        arguments = hubprune_arguments(command)
        if arguments is None:
            subprocess.run(["bash", "-euc", command], check=True, capture_output=True)
            continue
        if "--out" in arguments and tuple(arguments) not in DONE:
            shutil.rmtree(arguments[arguments.index("--out") + 1], ignore_errors=True)
        run(arguments)


PAGES = sorted({block.page for block in RUN})


@pytest.mark.parametrize(
    "page", [page if "README" in page else pytest.param(page, marks=pytest.mark.slow) for page in PAGES]
)
def test_what_a_page_shows_runs(page, place):
    names = {}
    for block in RUN:
        if block.page == page:
            run_block(block, names)


def run_notebook(name, **parameters):
    for out in ("kept", "pruned", "sweep"):
        shutil.rmtree(out, ignore_errors=True)
    return [shown(text, names) for names in [{}] for text in cells(ROOT / "examples" / f"{name}.ipynb", **parameters)]


def test_the_notebook_for_a_free_gpu_goes_all_the_way(place, capsys):
    told = run_notebook("free_notebook")
    tables = [text for text in told if "<table>" in text]
    assert len(tables) == 2
    assert told[-1].startswith("'http://127.0.0.1")
    out = capsys.readouterr().out
    assert "One morning" in out
    assert "device" in out


def test_the_notebook_for_choosing_recommends_and_prunes(place):
    told = run_notebook("choose_a_count", counts="0:2", num_samples=8)
    assert told[1].count("data:image/png") >= 1
    assert told[2].startswith("[('attn', ")
    assert "'loss': " in told[3]
    assert Path("pruned/model.safetensors").is_file()


def test_the_notebook_for_readers_loads_trains_and_quantizes(place, capsys):
    told = run_notebook("use_a_pruned_model", group_size=16, num_samples=8)
    losses = next(text for text in told if text.startswith("[") and text.count(",") == 4)
    first, *_, last = map(float, losses.strip("[]").split(","))
    assert last < first
    assert "True" in told
    assert capsys.readouterr().out.count("One morning") == 2


@pytest.mark.parametrize("block", READ, ids=lambda block: block.name)
def test_what_is_not_run_says_why_and_can_be_read(block):
    if block.language in ("bash", "python"):
        assert len(block.reason.split()) >= 2
    if block.language == "bash":
        assert subprocess.run(["bash", "-n"], input=block.text.encode(), check=False).returncode == 0
    elif block.language == "python":
        compile(block.text, block.name, "exec")
    elif block.language == "yaml":
        values = yaml.safe_load(block.text)
        if "base" in values:
            from hubprune.core.recipe import Recipe

            Recipe.model_validate(values)
        else:
            assert "jobs" in values


def commands_of(which):
    found = [(block.name, c) for block in which if block.language == "bash" for c in block.commands]
    return [(name, arguments) for name, c in found if (arguments := hubprune_arguments(c)) is not None]


@pytest.mark.parametrize(("name", "arguments"), commands_of(BLOCKS))
def test_every_command_has_the_options_that_it_is_shown_with(name, arguments):
    typed(arguments)


def test_the_examples_of_every_help_have_the_options_that_they_name():
    import generate

    for name, command in generate.commands():
        for example in generate.examples(command):
            for part in example.split("&&"):
                arguments = hubprune_arguments(part)
                assert arguments, (name, part)
                typed(arguments)


def test_a_command_that_does_not_exist_would_be_found():
    with pytest.raises(Exception, match="attn-dorp"):
        typed(["publish", BASE, "--attn-dorp", "3"])
    with pytest.raises(AssertionError, match="names no command"):
        typed(["publich", BASE])
    with pytest.raises(AssertionError, match="earlier versions"):
        typed(["publish", BASE, "--drop-attn", "3"])


def test_most_are_run():
    counted = Counter("run" if block in RUN else "read" for block in BLOCKS if block.language in ("bash", "python"))
    assert counted["run"] > counted["read"]
    assert {block.language for block in BLOCKS} <= set(LANGUAGES)
