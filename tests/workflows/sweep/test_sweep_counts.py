"""What `--counts` and `--method` take, and which counts a base refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubprune.core.errors import PlanError, RecipeError
from hubprune.core.requests import SweepRequest
from hubprune.pruning.selection import Shape
from hubprune.workflows.sweep.points import (
    RANKINGS,
    check_counts,
    check_measures,
    check_out,
    parse_counts,
    parse_methods,
)

SHAPE = Shape(num_hidden_layers=10, name="acme/base")
NUMBERS = st.integers(0, 200)


@given(NUMBERS, NUMBERS, st.integers(1, 30))
def test_a_range_includes_both_ends_and_always_the_base(first, more, step):
    last = first + more
    expected = {0, *range(first, last + 1, step)}
    if expected == {0}:
        with pytest.raises(RecipeError, match="drops nothing"):
            parse_counts(f"{first}:{last}:{step}")
        return
    assert parse_counts(f"{first}:{last}:{step}") == tuple(sorted(expected))
    if step == 1:
        assert parse_counts(f"{first}:{last}") == tuple(sorted(expected))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_a_list_is_sorted_and_each_number_stands_once(numbers):
    assert parse_counts(",".join(map(str, numbers))) == tuple(sorted({0, *numbers}))
    assert parse_counts(" , ".join(map(str, numbers))) == tuple(sorted({0, *numbers}))


@given(st.text(alphabet="0123456789:,- a٣", max_size=12))
def test_whatever_is_typed_is_numbers_or_a_clear_error(text):
    try:
        counts = parse_counts(text)
    except RecipeError as error:
        said = error
    else:
        assert (counts[0], list(counts)) == (0, sorted(set(counts)))
        assert len(counts) > 1
        return
    assert said.message.startswith(f"--counts {text!r}")
    assert "0:12" in said.hint


@pytest.mark.parametrize("text", ["", "0", "a", "-1", "1.5", "5:2", "0:8:0", "0:1:2:3", "1;2", "0:999999", "10%"])
def test_counts_that_mean_nothing_are_refused(text):
    with pytest.raises(RecipeError, match="--counts"):
        parse_counts(text)


def test_methods_come_once_and_in_a_fixed_order():
    assert parse_methods("joint, attn,attn") == ("attn", "joint")
    assert parse_methods(",".join(RANKINGS)) == RANKINGS


@pytest.mark.parametrize(("text", "words"), [("head", "There is no method 'head'"), (" , ", "names no method")])
def test_unknown_methods_and_none_at_all_are_refused_with_those_that_there_are(text, words):
    with pytest.raises(RecipeError, match=words) as caught:
        parse_methods(text)
    assert caught.value.hint == "Methods: attn, mlp, block, joint."


@pytest.mark.parametrize(
    ("methods", "counts", "protect", "most"),
    [
        (("attn",), (0, 12), (), 9),
        (("attn", "mlp"), (0, 9, 10), (), 9),
        (("block",), (0, 9), (0, 1), 8),
        (("joint",), (0, 19), (), 18),
    ],
)
def test_counts_past_the_end_name_the_most_that_can_go(methods, counts, protect, most):
    with pytest.raises(PlanError) as caught:
        check_counts(SweepRequest("base", method=methods, counts=counts), SHAPE, protect=protect)
    assert f"Cannot drop {counts[-1]} " in caught.value.message
    assert f"{most} of them can go" in caught.value.message
    assert caught.value.hint == f"Pass --counts 0:{most} or less for --method {methods[0]}."
    check_counts(SweepRequest("base", method=methods, counts=(0, most)), SHAPE, protect=protect)


def test_a_method_that_can_drop_nothing_is_refused():
    once = Shape(num_hidden_layers=2, name="acme/small", absent=(("attn", 0),))
    with pytest.raises(PlanError) as caught:
        check_counts(SweepRequest("base", method=("attn",), counts=(0, 1)), once, protect=())
    assert caught.value.hint == "Leave attn out of --method."


def test_a_sweep_that_measures_nothing_is_refused():
    with pytest.raises(RecipeError, match="nothing to measure"):
        check_measures(SweepRequest("base", method=("attn",), counts=(0, 1)), ())
    check_measures(SweepRequest("base", method=("attn",), counts=(0, 1), perplexity="texts.txt"), ())


def test_an_earlier_sweep_is_written_over_and_nothing_else(tmp_path):
    check_out(tmp_path / "new")
    (tmp_path / "new" / "sweep.json").write_text("{}")
    check_out(tmp_path / "new")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="exists already"):
        check_out(tmp_path / "other")
