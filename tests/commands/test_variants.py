"""Which options of `hubprune score` may be lists, and what they stand for."""

import pytest
from typer.testing import CliRunner

from hubprune.cli import app
from hubprune.core.errors import RecipeError
from hubprune.core.requests import ScoreRequest
from hubprune.workflows.recipes import passes_of


def asked(**given):
    return passes_of(ScoreRequest("acme/base", **given))


def test_without_a_list_there_is_one_pass_and_no_study():
    plain = asked(calibration="c4", num_samples="16", base_revision="v1")
    (recipe,) = plain.recipes.values()
    assert (plain.kind, plain.counts) == (None, ())
    assert (recipe.calibration.name, recipe.calibration.num_samples, recipe.base.revision) == ("c4", 16, "v1")


def test_revisions_are_one_pass_each_in_their_order():
    study = asked(revisions="step200, step100,step200", num_samples="16")
    assert study.kind == "revisions"
    assert {label: r.base.revision for label, r in study.recipes.items()} == {
        "step200": "step200",
        "step100": "step100",
    }
    assert list(study.recipes) == ["step200", "step100"]
    assert {r.calibration.num_samples for r in study.recipes.values()} == {16}


def test_mixes_are_one_pass_each_with_their_own_sizes():
    study = asked(calibration="cosmopedia,c4", max_tokens=64)
    assert study.kind == "calibration"
    sizes = {label: (r.calibration.num_samples, r.calibration.max_tokens) for label, r in study.recipes.items()}
    assert sizes == {"cosmopedia": (400, 64), "c4": (256, 64)}


def test_files_are_labelled_without_their_folder_unless_two_have_one_name(tmp_path):
    for name in ("a/x.txt", "b/x.txt", "b/y,z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    one, same, comma = (str(tmp_path / name) for name in ("a/x.txt", "b/x.txt", "b/y,z.txt"))
    assert list(asked(calibration=f"{one},c4").recipes) == ["x.txt", "c4"]
    assert list(asked(calibration=f"{one},{same}").recipes) == [one, same]
    assert asked(calibration=comma).kind is None


def test_numbers_of_samples_take_one_pass_with_the_largest():
    study = asked(num_samples="32,8,128,8")
    (recipe,) = study.recipes.values()
    assert (study.kind, study.counts, recipe.calibration.num_samples) == ("samples", (8, 32, 128), 128)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"revisions": "a", "num_samples": "8,16"}, "--revisions and --num-samples are both lists"),
        ({"calibration": "c4,lima", "num_samples": "8,16"}, "--calibration and --num-samples are both lists"),
        ({"revisions": "a,b", "base_revision": "c"}, "--revisions and --base-revision exclude each other"),
        ({"revisions": " , "}, "--revisions names no revision"),
        ({"num_samples": "8,many"}, "'8,many' is neither a number of 1 or more nor a list"),
        ({"num_samples": "0"}, "'0' is neither"),
        ({"num_samples": ""}, "'' is neither"),
        ({"calibration": "c4,nothing"}, "There is no calibration mix 'nothing'"),
        ({"calibration": "c4,cosmopedea"}, "Did you mean cosmopedia?"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(given, said):
    with pytest.raises(RecipeError, match=said):
        asked(**given)


def test_the_command_line_says_so_in_one_line():
    result = CliRunner().invoke(app, ["score", "acme/base", "--revisions", "a,b", "--num-samples", "1,2"])
    assert result.exit_code == 2
    assert "error: --revisions and --num-samples are both lists." in result.output
