"""The documents of a mix: exactly as many as asked, the same ones for the same seed, and clear words where not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubprune.core.errors import CalibrationError, RecipeError
from hubprune.core.recipe import CalibrationMix, CalibrationSubset
from hubprune.core.requests import PublishRequest
from hubprune.pruning.calibration import draw, file_hashes, resolve_commits
from hubprune.pruning.documents import COSMOPEDIA, MIXES, check_subsets, find_mix, text_of
from hubprune.workflows.recipes import recipe_of


def mix(*subsets, **options):
    given = [subset if isinstance(subset, dict) else {"dataset": str(subset), "weight": 1} for subset in subsets]
    return CalibrationMix.model_validate({"name": "own", "subsets": given, **options})


# ---- counts ------------------------------------------------------------------------------------------------------


def test_four_hundred_documents_of_cosmopedia_are_split_as_published():
    assert COSMOPEDIA.counts() == (120, 80, 60, 60, 50, 30)
    assert COSMOPEDIA.max_tokens == 512


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=8), st.integers(1, 2000))
def test_counts_add_up_and_each_is_within_one_of_its_share(weights, number):
    subsets = [{"dataset": str(i), "weight": weight} for i, weight in enumerate(weights)]
    counts = mix(*subsets, num_samples=number).counts()
    assert sum(counts) == number
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - number * weight / sum(weights)) < 1 + 1e-6


def test_counts_do_not_lose_a_document_to_floating_point():
    # 0.15 * 400 is 59.99999999999999 in binary.
    subsets = [{"dataset": "a", "weight": 0.15}, {"dataset": "b", "weight": 0.85}]
    assert mix(*subsets, num_samples=400).counts() == (60, 340)


# ---- drawing -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(llama_tokenizer_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama_tokenizer_folder)


@pytest.fixture(scope="module")
def llama_tokenizer_folder(tmp_path_factory):
    from bases import write_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


def texts(number, *, prefix="text"):
    return [f"{prefix} {i}" + " x" * i for i in range(number)]


def write(path, rows, *, column="text"):
    """Write documents as the kind of file that the suffix says."""
    if path.suffix == ".txt":
        path.write_text("\n".join(rows) + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(rows)))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({column: rows}), path)
    return path


@pytest.fixture
def drawn(tokenizer, reporter):
    """Draw a mix of local files."""

    def run(wanted, *, seed=0, context_length=None):
        commits = resolve_commits(wanted)
        assert set(commits) == {None}
        return draw(
            wanted, commits=commits, seed=seed, tokenizer=tokenizer, context_length=context_length, reporter=reporter
        )

    def words(wanted, **options):
        return [tokenizer.decode(document.ids) for document in run(wanted, **options).documents]

    run.words = words
    return run


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".txt"])
def test_local_files_of_every_kind_are_read(tmp_path, drawn, suffix):
    path = write(tmp_path / f"docs{suffix}", texts(6))
    found = drawn.words(find_mix(str(path), num_samples=6))
    assert sorted(found) == texts(6)


def test_each_subset_gives_its_share_in_the_order_of_the_mix(tmp_path, drawn):
    first, second = (write(tmp_path / f"{name}.jsonl", texts(20, prefix=name)) for name in ("one", "two"))
    wanted = mix({"dataset": str(first), "weight": 3}, {"dataset": str(second), "weight": 1}, num_samples=8)
    found = drawn(wanted)
    assert [document.source for document in found.documents] == [0] * 6 + [1] * 2
    record = found.record
    assert [(s.dataset, s.weight, s.documents, s.commit) for s in record.sources] == [
        ("one.jsonl", 0.75, 6, None),
        ("two.jsonl", 0.25, 2, None),
    ]
    assert record.documents == 8
    assert record.tokens == sum(len(document.ids) for document in found.documents)
    assert len({document.ids for document in found.documents}) == 8


def test_with_fewer_samples_than_subsets_the_heaviest_ones_give_them(tmp_path, drawn):
    paths = [write(tmp_path / f"{n}.jsonl", texts(3, prefix=str(n))) for n in range(4)]
    subsets = [{"dataset": str(path), "weight": weight} for path, weight in zip(paths, (1, 4, 2, 3), strict=True)]
    record = drawn(mix(*subsets, num_samples=2)).record
    assert [(s.dataset, s.documents) for s in record.sources] == [("1.jsonl", 1), ("3.jsonl", 1)]
    assert sum(s.weight for s in record.sources) == pytest.approx(1)


def test_the_same_seed_draws_the_same_documents_and_another_seed_others(tmp_path, drawn):
    wanted = mix(write(tmp_path / "d.jsonl", texts(50)), num_samples=10)
    assert drawn(wanted, seed=1) == drawn(wanted, seed=1)
    assert drawn.words(wanted, seed=1) != drawn.words(wanted, seed=2)
    assert drawn(wanted, seed=1).record.token_sha256 != drawn(wanted, seed=2).record.token_sha256


def test_the_digest_changes_with_any_token_and_with_where_documents_end(tmp_path, drawn):
    def digest(rows):
        return drawn(mix(write(tmp_path / "d.jsonl", rows), num_samples=len(rows))).record.token_sha256

    assert digest(["ab", "cd"]) == digest(["ab", "cd"])
    assert len({digest(rows) for rows in (["ab", "cd"], ["ab", "ce"], ["abc", "d"], ["abcd"], ["ab", "cd", "e"])}) == 5


def test_documents_are_cut_at_the_limit_and_at_the_context_of_the_base(tmp_path, drawn):
    path = write(tmp_path / "d.jsonl", ["a" * 100, "bcd"])
    wanted = mix(path, num_samples=2, max_tokens=40)
    for context, longest in ((None, 40), (512, 40), (16, 16)):
        found = drawn(wanted, context_length=context)
        assert sorted(len(document.ids) for document in found.documents) == [3, longest]
        assert found.record.max_tokens == longest


def test_blank_documents_are_passed_over(tmp_path, drawn):
    path = write(tmp_path / "d.jsonl", ["", "one", "  \n\t", "two"])
    assert sorted(drawn.words(mix(path, num_samples=2))) == ["one", "two"]
    with pytest.raises(CalibrationError, match="has 2 documents"):
        drawn(mix(path, num_samples=3))


def test_a_subset_that_is_too_small_says_how_many_it_has(tmp_path, drawn):
    path = write(tmp_path / "d.jsonl", texts(3))
    with pytest.raises(CalibrationError, match=r"has 3 documents, the mix wants 5 of it\.") as caught:
        drawn(mix(path, num_samples=5))
    assert "--num-samples" in caught.value.hint


def test_a_missing_column_lists_those_that_are_there(tmp_path, drawn):
    path = write(tmp_path / "d.jsonl", texts(3), column="body")
    with pytest.raises(CalibrationError, match="has no text column 'text'") as caught:
        drawn(mix(path, num_samples=1))
    assert caught.value.hint == "Its columns: id, body. Set `column` in the mix."
    subset = {"dataset": str(path), "weight": 1, "column": "body"}
    assert len(drawn(mix(subset, num_samples=3)).documents) == 3


def test_a_column_that_is_no_text_is_refused(tmp_path, drawn):
    subset = {"dataset": str(write(tmp_path / "d.jsonl", texts(3))), "weight": 1, "column": "id"}
    with pytest.raises(CalibrationError, match="has no text column 'id'"):
        drawn(mix(subset, num_samples=1))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"a": "one", "b": "two"}, "one\n\ntwo"),
        ({"a": " one\n", "b": ""}, " one\n"),
        ({"a": None, "b": "two"}, "two"),
        ({"a": ["one", " ", "two"], "b": "three"}, "one\n\ntwo\n\nthree"),
        ({"a": [], "b": ["one"]}, "one"),
        ({"a": "{{ b }}", "b": "{a}"}, "{{ b }}\n\n{a}"),
        ({"a": None, "b": "  "}, "  "),
        ({"a": None, "b": None}, ""),
    ],
)
def test_columns_are_joined_by_blank_lines_as_they_are(row, text):
    assert text_of(row, CalibrationSubset(dataset="d", column=("a", "b"), weight=1)) == text


@pytest.mark.parametrize("value", [1, {"from": "human"}, [{"from": "human"}], ["one", None]])
def test_a_column_of_several_that_holds_no_text_is_refused(value):
    subset = CalibrationSubset(dataset="d", column=("a", "b"), weight=1)
    with pytest.raises(CalibrationError, match="d \\(d\\) has no text column 'b'"):
        text_of({"a": "one", "b": value}, subset)


def test_one_column_is_taken_as_it_is(tmp_path, drawn):
    path = write(tmp_path / "d.jsonl", ["  one \n\n"])
    assert drawn.words(mix(path, num_samples=1)) == ["  one \n\n"]


def test_a_local_mix_is_checked_before_it_is_drawn(tmp_path):
    path = write(tmp_path / "d.jsonl", texts(3))
    good = {"dataset": str(path), "weight": 1}
    check_subsets(mix(good), [None])
    for wrong, said in (
        ({"column": "body"}, "no text column 'body'"),
        ({"column": ["text", "body"]}, "no text column 'body'"),
        ({"column": "id"}, "no text column 'id'"),
        ({"split": "test"}, "no split 'test'"),
    ):
        with pytest.raises(CalibrationError, match=said):
            check_subsets(mix(good, {**good, **wrong}), [None, None])


def test_a_file_that_is_no_jsonl_is_an_error_with_its_name(tmp_path, drawn):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b"\x00\xff{{{")
    with pytest.raises(CalibrationError, match=r"broken\.jsonl.* cannot be read"):
        drawn(mix(path, num_samples=1))


def test_a_file_that_is_not_there_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(CalibrationError, match=r"The calibration file .*gone\.jsonl does not exist"):
        resolve_commits(mix(tmp_path / "gone.jsonl"))


def test_a_tokenizer_without_tokens_for_a_document_is_an_error(tmp_path, drawn, tokenizer, reporter):
    wanted = mix(write(tmp_path / "d.jsonl", ["a"]), num_samples=1)

    def silent(text, **_):
        return {"input_ids": []}

    with pytest.raises(CalibrationError, match="makes no tokens"):
        draw(wanted, commits=[None], seed=0, tokenizer=silent, context_length=None, reporter=reporter)


def test_the_record_does_not_tell_where_files_are_kept(tmp_path, drawn):
    record = drawn(mix(write(tmp_path / "d.jsonl", texts(3)), num_samples=1)).record
    assert str(tmp_path) not in record.model_dump_json()


# ---- finding a mix -----------------------------------------------------------------------------------------------


def test_a_mix_is_found_by_name_with_other_sizes():
    found = find_mix("cosmopedia", num_samples=10, max_tokens=64)
    assert (found.num_samples, found.max_tokens, found.subsets) == (10, 64, COSMOPEDIA.subsets)
    assert find_mix("c4", max_tokens=64) == MIXES["c4"].model_copy(update={"max_tokens": 64})


def test_a_mix_is_read_from_yaml_and_named_after_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("subsets:\n- {dataset: acme/data, weight: 2}\nnum_samples: 7\n")
    expected = CalibrationMix(name="mine", subsets=(CalibrationSubset(dataset="acme/data", weight=2),), num_samples=7)
    assert find_mix(str(path)) == expected


def test_an_unknown_mix_lists_the_shipped_ones():
    with pytest.raises(RecipeError, match="no calibration mix 'gone'") as caught:
        find_mix("gone")
    assert caught.value.hint.startswith("Shipped: cosmopedia, c4, codealpaca, mathinstruct, lima.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subsets: []\n", "subsets: "),
        ("subsets:\n- {dataset: a, weight: 0}\n", r"subsets\.0\.weight: "),
        ("subsets:\n- {dataset: a, weight: .nan}\n", r"subsets\.0\.weight: "),
        ("subsets:\n- {dataset: a, weight: 1, colunm: b}\n", r"subsets\.0\.colunm: "),
        ("[1]\n", "holds no mapping"),
        ("a: [\n", "Cannot read"),
    ],
)
def test_a_yaml_that_is_no_mix_is_refused_with_the_place(tmp_path, text, message):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        find_mix(str(path))


def test_a_file_of_documents_keeps_the_settings_of_the_recipe_and_a_mix_has_its_own(tmp_path):
    path = write(tmp_path / "d.jsonl", texts(3))
    settings = {"num_samples": 7, "max_tokens": 99, "packed": True, "shuffle_buffer": 5}
    subset = {"dataset": "acme/data", "weight": 1}
    recipe = {
        "base": {"repo_id": "acme/base"}, "drop": {"attn_drop": 1},
        "calibration": {"name": "old", "subsets": [subset], **settings},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))

    def calibration(**options):
        return recipe_of(PublishRequest(recipe=tmp_path / "recipe.yaml", **options)).calibration

    assert calibration(calibration=str(path)) == mix(path, **settings).model_copy(update={"name": "d.jsonl"})
    assert calibration(calibration=str(path), max_tokens=50).max_tokens == 50
    assert calibration(calibration="c4") == MIXES["c4"]
    assert calibration(calibration="lima", num_samples=9).num_samples == 9
    assert calibration().num_samples == 7


@pytest.mark.parametrize("sizes", [{"num_samples": 0}, {"max_tokens": 1}])
def test_sizes_that_make_no_sense_are_refused(sizes):
    with pytest.raises(RecipeError, match=next(iter(sizes))):
        find_mix("cosmopedia", **sizes)


def test_another_text_in_a_local_file_is_another_state(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one"}\n')
    before = file_hashes(find_mix(str(path)))
    path.write_text('{"text": "two"}\n')
    assert file_hashes(find_mix(str(path))) != before
