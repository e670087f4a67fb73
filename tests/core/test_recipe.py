"""The recipe: frozen values that go to YAML and back, and refuse what cannot be meant."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hubprune.core.amounts import count_of
from hubprune.core.errors import RecipeError
from hubprune.core.recipe import (
    BaseModelSpec,
    CalibrationMix,
    CalibrationSubset,
    EvaluationSpec,
    Recipe,
    TargetSpec,
    parse,
    read_prompts,
    read_recipe,
)
from hubprune.core.specs import DropSpec, WidthSpec

MINIMAL = {
    "base": {"repo_id": "acme/base"},
    "drop": {"attn_drop": 3},
    "calibration": {"name": "own", "subsets": [{"dataset": "acme/data", "weight": 1}]},
}


def written(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


def refusal(**changes):
    """The message that a recipe with some changed parts is refused with."""
    with pytest.raises(RecipeError) as caught:
        parse(Recipe, {**MINIMAL, **changes})
    assert caught.value.exit_code == 2
    return str(caught.value)


# ---- to YAML and back --------------------------------------------------------------------------------------------

# Words that YAML would take for something else are among them.
words = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["no", "null", "1e3", "~", "a: b", "# c", "2024-01-01", "Ä", "a\x85b"]
)
numbers = st.integers(1, 10_000)
layers = st.lists(st.integers(0, 60), max_size=4).map(tuple)
subsets = st.builds(
    CalibrationSubset,
    dataset=words,
    config=st.none() | words,
    split=words,
    column=words | st.lists(words, min_size=1, max_size=3).map(tuple),
    weight=st.floats(1e-6, 1e6),
)
recipes = st.builds(
    Recipe,
    base=st.builds(BaseModelSpec, repo_id=words, revision=words),
    drop=st.builds(DropSpec, attn_drop=numbers, protect=layers)
    | st.builds(DropSpec, attn_layers=layers.filter(bool), protect=st.just(())),
    calibration=st.builds(
        CalibrationMix,
        name=words,
        subsets=st.lists(subsets, min_size=1, max_size=3).map(tuple),
        num_samples=numbers,
        max_tokens=st.integers(2, 10_000),
        packed=st.booleans(),
        shuffle_buffer=numbers,
    ),
    aggregation=st.sampled_from(["document", "token"]),
    score_batch_size=numbers,
    evaluation=st.builds(
        EvaluationSpec,
        tasks=st.lists(words, max_size=3).map(tuple),
        limit=st.none() | numbers,
        prompts=st.none() | st.lists(words, min_size=1, max_size=2).map(tuple),
        max_new_tokens=numbers,
    ),
    target=st.builds(
        TargetSpec,
        repo_id=st.none() | st.just("acme/result"),
        revision=words,
        private=st.booleans(),
        create_pr=st.booleans(),
    ),
    seed=st.integers(0, 2**32 - 1),
    device=st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:1"]),
    dtype=st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
)


@given(recipes)
def test_a_recipe_goes_to_yaml_and_back_unchanged(recipe):
    assert parse(Recipe, yaml.safe_load(recipe.to_yaml())) == recipe


def test_yaml_is_in_the_order_of_the_fields_and_leaves_out_what_holds_nothing():
    text = parse(Recipe, MINIMAL).to_yaml()
    assert list(yaml.safe_load(text)) == [
        "schema_version", "base", "drop", "calibration", "layout", "metric", "schedule", "aggregation",
        "score_batch_size", "evaluation", "target", "seed", "device", "dtype",
    ]  # fmt: skip
    assert "null" not in text
    assert yaml.safe_load(text)["drop"] == {"attn_drop": 3, "protect": []}


def test_a_recipe_file_is_read(tmp_path):
    recipe = parse(Recipe, MINIMAL)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(path) == recipe


def test_task_folders_are_taken_from_the_folder_of_the_recipe(tmp_path):
    path = written(tmp_path / "recipe.yaml", {**MINIMAL, "evaluation": {"include_path": "tasks"}})
    assert read_recipe(path).evaluation.include_path == str(tmp_path / "tasks")
    elsewhere = written(tmp_path / "other.yaml", {**MINIMAL, "evaluation": {"include_path": "/data/tasks"}})
    assert read_recipe(elsewhere).evaluation.include_path == "/data/tasks"


def test_a_recipe_cannot_be_changed():
    recipe = parse(Recipe, MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_yaml_never_makes_objects(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("base: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(RecipeError, match=r"the tag .* is not known"):
        read_recipe(path)


# ---- what is refused ---------------------------------------------------------------------------------------------

SUBSET = MINIMAL["calibration"]["subsets"][0]
REFUSED = {
    "unknown key": ({"sead": 1}, r"^sead: no such key; did you mean seed\?"),
    "unknown key inside": ({"drop": {"attn_drop": 1, "head_drop": 2}}, r"^drop\.head_drop: no such key"),
    "newer schema": ({"schema_version": 2}, r"^schema_version: "),
    "nothing to drop": ({"drop": {}}, "^Nothing to drop was asked for: pass --attn-drop N, "),
    "two ways to drop": (
        {"drop": {"attn_drop": 1, "attn_layers": [1]}},
        "^--attn-drop and --attn-layers exclude each other: pass one of them",
    ),
    "no layer given": ({"drop": {"attn_layers": []}}, "--attn-layers names no layer"),
    "zero layers": ({"drop": {"attn_drop": 0}}, r"^--attn-drop: 0 is neither a number of 1 or more nor a share"),
    "negative layer": ({"drop": {"attn_layers": [-1]}}, r"^drop\.attn_layers\.0: .*greater than or equal to 0"),
    "protected and dropped": (
        {"drop": {"attn_layers": [1, 2], "protect": [2, 3]}},
        r"^Layers \[2\] are both in --attn-layers and in --protect",
    ),
    "a config and a file": (
        {"calibration": {"name": "m", "subsets": [{**SUBSET, "config": "en", "file": "train.jsonl"}]}},
        r"A subset of acme/data names a config and a file",
    ),
    "no column": (
        {"calibration": {"name": "m", "subsets": [{**SUBSET, "column": []}]}},
        r"^calibration\.subsets\.0\.column",
    ),
    "no subsets": ({"calibration": {"name": "m", "subsets": []}}, r"^calibration\.subsets: "),
    "weight of nothing": (
        {"calibration": {"name": "m", "subsets": [{**SUBSET, "weight": 0}]}},
        r"^calibration\.subsets\.0\.weight: .*greater than 0",
    ),
    "infinite weight": (
        {"calibration": {"name": "m", "subsets": [{**SUBSET, "weight": float("inf")}]}},
        r"^calibration\.subsets\.0\.weight: .*finite",
    ),
    "unknown aggregation": ({"aggregation": "median"}, r"^aggregation: .*'document' or 'token'"),
    "unknown device": ({"device": "tpu"}, r"^--device 'tpu' is none of auto"),
    "device with more behind it": ({"device": "cuda:0\n"}, r"^--device "),
    "unknown dtype": ({"dtype": "int8"}, r"^dtype: "),
    "negative seed": ({"seed": -1}, r"^seed: "),
    "target that is no repo id": ({"target": {"repo_id": "a/b/c"}}, "^'a/b/c' is no repo id"),
    "target with two dots": ({"target": {"repo_id": "a/b..c"}}, "is no repo id; it looks like namespace/name"),
    "target that climbs": ({"target": {"repo_id": "../c"}}, "is no repo id"),
    "target too long": (
        {"target": {"repo_id": "a/" + "b" * 97}},
        r"The name b{97} has 97 characters, and the Hub allows 96",
    ),
    "target with a newline": ({"target": {"repo_id": "a/b\n"}}, "is no repo id"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused_with_its_place(changes, message):
    assert re.search(message, refusal(**changes))


def test_recipes_that_are_out_keep_the_names_that_settings_had():
    old = {"drop_attn": [3], "drop_mlp": [1]}
    assert parse(DropSpec, old) == DropSpec(attn_layers=(3,), mlp_layers=(1,))
    assert parse(WidthSpec, {"drop_neurons": "60%"}).neuron_drop == "60%"
    with pytest.raises(RecipeError, match="The key drop_attn is the old name of attn_layers"):
        parse(DropSpec, {**old, "attn_layers": [3]})
    with pytest.raises(RecipeError, match="drop_neurons"):
        parse(DropSpec, {"drop_neurons": "60%"})


def test_only_the_first_problem_is_told_in_one_line():
    message = refusal(seed=-1, device="tpu")
    assert "\n" not in message
    assert "device" not in message


@pytest.mark.parametrize(("text", "message"), [("a: [", "Cannot read"), ("- 1", "holds no mapping"), ("", "holds no")])
def test_a_file_that_is_no_recipe_is_refused_with_its_name(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    if content:
        path.write_bytes(content)
    for read in (read_recipe, read_prompts):
        with pytest.raises(RecipeError, match="Cannot read") as caught:
            read(path)
        assert str(path) in str(caught.value)


BOUNDS = {
    "huge seed": ({"seed": 2**32}, "seed: .*less than 4294967296"),
    "huge number in base 16": ({"seed": 16**100}, "seed: "),
    "boolean for a number": ({"seed": True}, "seed: Input should be a number"),
    "boolean for a layer": ({"drop": {"attn_layers": [True]}}, "drop.attn_layers.0: Input should be a number"),
    "boolean for an amount": ({"drop": {"attn_drop": True}}, "True is neither a number"),
    "more than there can be": ({"drop": {"attn_drop": 10**30}}, "neither a number"),
    "endless amount": ({"drop": {"attn_drop": "9" * 5000}}, r"--attn-drop: '9{59}\.\.\. is neither"),
    "weight that a sum overflows with": (
        {"calibration": {"name": "own", "subsets": [{"dataset": "a/b", "weight": 1e308}] * 2}},
        r"calibration.subsets.0.weight: .*1000000000000",
    ),
    "samples that no share is computed of": (
        {"calibration": {**MINIMAL["calibration"], "num_samples": 10**400}}, "num_samples: .*2147483647",
    ),
    "endless ratio": ({"drop": {}, "width": {"expansion_ratio": 1e308}}, "expansion_ratio: .*1000"),
    "examples": ({"evaluation": {"tasks": ["piqa"], "num_fewshot": {"piqa": True}}}, "num_fewshot.piqa: .*a number"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BOUNDS.values(), ids=BOUNDS)
def test_numbers_that_nothing_could_count_are_refused_with_their_place(changes, message):
    said = refusal(**changes)
    assert re.search(message, said)
    assert len(said) < 500


def test_a_key_that_stands_in_a_recipe_twice_is_refused_with_its_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 1\ndrop: {attn_drop: 1}\ndrop: {attn_drop: 2}\n")
    with pytest.raises(RecipeError, match=r"recipe.yaml, line 3: the key 'drop' stands there twice"):
        read_recipe(tmp_path / "recipe.yaml")


# ---- small rules -------------------------------------------------------------------------------------------------


def test_layers_are_sorted_and_named_once():
    drop = DropSpec(attn_layers=(5, 1, 5), protect=(9, 0, 9))
    assert (drop.attn_layers, drop.protect, drop.by_hand) == ((1, 5), (0, 9), {"attn": (1, 5)})


def test_a_task_is_run_once():
    assert EvaluationSpec(tasks=("piqa", "arc_easy", "piqa")).tasks == ("piqa", "arc_easy")


def test_the_result_is_named_after_the_base_and_the_number_of_drops():
    assert parse(Recipe, MINIMAL).default_name == "base-attn-drop-3"
    local = {**MINIMAL, "base": {"repo_id": "./models/tiny/"}, "drop": {"attn_layers": [1, 2]}}
    assert parse(Recipe, local).default_name == "tiny-attn-drop-2"


def test_prompts_are_lines_without_the_empty_ones(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("  One day \n\n\nÄ second\n")
    assert read_prompts(path) == ("One day", "Ä second")
    path.write_text("\n \n")
    with pytest.raises(RecipeError, match="holds no prompt"):
        read_prompts(path)


def test_shipped_prompts_are_found():
    prompts = EvaluationSpec().prompt_texts()
    assert len(set(prompts)) == 32
    assert prompts[0] == "Paris is the capital of"
    assert EvaluationSpec(prompts=("own",)).prompt_texts() == ("own",)


@pytest.mark.parametrize("prompts", [[], [""]])
def test_a_recipe_without_a_prompt_to_continue_is_refused(prompts):
    with pytest.raises(RecipeError, match=r"prompts.* should have at least 1"):
        parse(EvaluationSpec, {"prompts": prompts})


# ---- what can be asked to go -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "kept"), [(3, 3), ("3", 3), ("10%", "10%"), (" 12.50 %", "12.5%"), ("100%", "100%")])
def test_amounts_are_numbers_or_shares_in_one_spelling(given, kept):
    assert DropSpec(attn_drop=given).attn_drop == kept


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "", "x", "1.5", "0%", "101%", "-5%", None.__class__])
def test_what_is_no_amount_is_refused(given):
    with pytest.raises(ValueError):
        DropSpec(mlp_drop=given)


@pytest.mark.parametrize(
    ("amount", "of", "count"), [(3, 8, 3), ("25%", 8, 2), ("10%", 28, 3), ("1%", 8, 1), ("50%", 5, 3), ("100%", 5, 5)]
)
def test_a_share_is_rounded_to_the_nearest_number_and_is_never_nothing(amount, of, count):
    assert count_of(amount, of=of) == count


EXCLUSIVE = {
    "joint and attention": {"joint_drop": 2, "attn_drop": 1},
    "joint and MLP": {"joint_drop": 2, "mlp_drop": 1},
    "block and attention": {"block_drop": 2, "attn_drop": 1},
    "block and joint": {"block_drop": 2, "joint_drop": 1},
    "attention by score and by hand": {"attn_drop": 1, "attn_layers": (1,)},
    "MLP by score and by hand": {"mlp_drop": 1, "mlp_layers": (1,)},
    "block and by hand": {"block_drop": 1, "mlp_layers": (1,)},
}


@pytest.mark.parametrize("given", EXCLUSIVE.values(), ids=EXCLUSIVE)
def test_requests_that_exclude_each_other_are_refused(given):
    with pytest.raises(ValueError, match="exclude each other: pass one of them"):
        DropSpec(**given)


def test_attentions_and_mlps_can_be_asked_for_together():
    drop = DropSpec(attn_drop=2, mlp_layers=(3, 1))
    assert drop.methods == ("attn-drop", "mlp-drop")
    assert drop.name_parts == ["attn-drop-2", "mlp-drop-2"]
    assert DropSpec(block_drop="12.5%").name_parts == ["block-drop-12.5pct"]


def test_one_way_to_say_how_narrow_is_enough():
    assert WidthSpec(neuron_drop="60%").name_part == "drop-neurons-60pct"
    assert WidthSpec(width=3277).name_part == "mlp-width-3277"
    assert WidthSpec(expansion_ratio=1.07).name_part == "expansion-1.07"
    with pytest.raises(ValueError, match="--neuron-drop and --mlp-width exclude each other"):
        WidthSpec(neuron_drop="60%", width=8)
    with pytest.raises(ValueError, match="how narrow"):
        WidthSpec()
    for bad in ({"width": 0}, {"neuron_drop": "0.6"}, {"neuron_drop": "120%"}, {"expansion_ratio": 0}):
        with pytest.raises(ValueError):
            WidthSpec(**bad)


def test_an_ablation_is_named_so_that_it_does_not_replace_what_it_is_compared_with():
    assert parse(Recipe, {**MINIMAL, "metric": "random"}).default_name == "base-attn-drop-3-random"
    assert parse(Recipe, {**MINIMAL, "schedule": "iterative"}).default_name == "base-attn-drop-3-iterative"


def test_protecting_layers_where_nothing_is_dropped_is_refused():
    with pytest.raises(RecipeError, match="--protect keeps sublayers, and none is to be dropped"):
        parse(Recipe, {**MINIMAL, "drop": {"protect": [1]}, "width": {"neuron_drop": "50%"}})


def test_a_tiny_share_is_read_back_from_yaml():
    assert DropSpec(attn_drop=DropSpec(attn_drop="0.00001%").attn_drop).attn_drop == "0.00001%"
