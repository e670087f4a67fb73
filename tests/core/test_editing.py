"""What is wrong with a recipe is told with its file, its line, and the key that may have been meant."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from hubprune.cli import app
from hubprune.core.editing import line_of
from hubprune.core.errors import RecipeError
from hubprune.core.recipe import Recipe, parse, read_recipe, recipe_schema
from hubprune.core.requests import PublishRequest
from hubprune.workflows.recipes import recipe_of

TEMPLATE = Path(__file__).parents[2] / "template"
RECIPE = """\
# A comment, and an empty line.

base: acme/base
drop:
  attn_drop: 3
calibration:
  name: own
  subsets:
    - {dataset: acme/data, weight: 1}
    - dataset: acme/more
      weight: 1
evaluation:
  num_fewshot: 5
"""
WRONG = {
    "a key with a slip": ("attn_drop:", "attn_drops:", "line 5: drop.attn_drops: no such key; did you mean attn_drop?"),
    "a key of another part": (
        "evaluation:\n  num_fewshot", "max_tokens",
        "line 12: max_tokens: no such key; did you mean calibration.max_tokens?",
    ),
    "a key in a list": (
        "- dataset: acme/more", "- datasets: acme/more",
        "line 10: calibration.subsets.1.datasets: no such key; did you mean dataset?",
    ),
    "a key like none": ("attn_drop: 3", "zzz: 3", "line 5: drop.zzz: no such key; there are attn_drop, mlp_drop, "),
    "a value": (
        "weight: 1}", "weight: -1}", "line 9: calibration.subsets.0.weight: Input should be greater than 0, not -1.",
    ),
    "an amount": ("attn_drop: 3", "attn_drop: 0", "line 5: drop.attn_drop: 0 is neither a number of 1 or more nor"),
    "what is no mapping": ("drop:\n  attn_drop: 3", "drop: 3", "line 4: drop: 3 is no mapping of settings."),
    "what is missing": ("base: acme/base\n", "", ": base is missing."),
    "what does not fit together": ("attn_drop: 3", "protect: [1]", ": nothing to drop was asked for"),
}  # fmt: skip


def refusal(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert caught.value.message.startswith(str(path))
    return caught.value.message.removeprefix(f"{path}").removeprefix(", ")


@pytest.mark.parametrize(("right", "wrong", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_with_its_line_and_what_was_meant(tmp_path, right, wrong, told):
    assert RECIPE.count(right) == 1
    assert refusal(tmp_path, RECIPE.replace(right, wrong)).startswith(told)


def test_lines_are_found_behind_anchors_tabs_and_byte_order_marks():
    text = "\ufeffa: &x {b: 1}\nc: *x\nd:\n- 1\n- e: 2\n".encode()
    assert [line_of(text, way) for way in (("a", "b"), ("c",), ("d", 1, "e"), ("d", 7), ("nowhere",), ())] == [
        1, 2, 5, 3, None, None,
    ]  # fmt: skip
    assert line_of(b"a: [", ("a",)) is None


def test_a_base_is_named_by_its_id_alone(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    read = read_recipe(tmp_path / "recipe.yaml")
    assert (read.base.repo_id, read.base.revision) == ("acme/base", "main")
    assert yaml.safe_load(read.to_yaml())["base"] == {"repo_id": "acme/base", "revision": "main"}


# ---- the schema --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["by hand", "by us"])
def test_the_schema_takes_what_is_a_recipe(written):
    ours = yaml.safe_load(recipe_of(PublishRequest("a/b", attn_drop="10%", tasks="paper", heal=True)).to_yaml())
    jsonschema.validate(yaml.safe_load(RECIPE) if written == "by hand" else ours, recipe_schema())


@pytest.mark.parametrize(
    "case", ["a key with a slip", "a key in a list", "a value", "what is no mapping", "what is missing"]
)
def test_the_schema_refuses_what_is_none(case):
    right, wrong, _ = WRONG[case]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(RECIPE.replace(right, wrong)), recipe_schema())


def test_every_key_with_a_docstring_is_explained_in_the_schema():
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    drop = schema["$defs"]["DropSpec"]["properties"]
    assert drop["attn_drop"]["description"] == "Attention sublayers to drop, lowest score first."
    assert schema["properties"].keys() == Recipe.model_fields.keys()
    assert schema["$defs"]["HealSpec"]["properties"]["rank"]["description"] == "Of the adapters."


def test_the_template_has_the_schema_of_this_version_and_a_recipe_that_fits_it():
    schema = json.loads((TEMPLATE / "recipe.schema.json").read_text())
    assert schema == recipe_schema(), "run: hubprune recipe --schema > template/recipe.schema.json"
    jsonschema.validate(yaml.safe_load((TEMPLATE / "recipe.yaml").read_text()), schema)
    mix = recipe_of(PublishRequest("meta-llama/Llama-3.2-3B", attn_drop=3)).calibration
    assert read_recipe(TEMPLATE / "recipe.yaml").calibration == mix
    assert (TEMPLATE / "recipe.yaml").read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")


# ---- the command -------------------------------------------------------------------------------------------------


def test_a_recipe_is_checked_without_asking_anybody(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = CliRunner().invoke(app, ["recipe", "recipe.yaml"])
    assert (done.exit_code, done.stdout) == (0, "recipe.yaml: acme/base becomes base-attn-drop-3\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("attn_drop", "attn_drops"))
    done = CliRunner().invoke(app, ["recipe", "recipe.yaml"])
    assert done.exit_code == 2
    assert done.stderr == "error: recipe.yaml, line 5: drop.attn_drops: no such key; did you mean attn_drop?\n"
    assert CliRunner().invoke(app, ["recipe"]).exit_code == 2
    assert json.loads(CliRunner().invoke(app, ["recipe", "--schema"]).stdout) == recipe_schema()


def test_options_keep_being_called_as_options():
    with pytest.raises(RecipeError, match=r"^--attn-drop: 0 is neither"):
        parse(Recipe, {**yaml.safe_load(RECIPE), "drop": {"attn_drop": 0}})
