"""Packed mixes: sequences of one length whose tokens are the documents', one after the other, nothing left out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubprune.core.console import Reporter
from hubprune.core.errors import CalibrationError
from hubprune.core.recipe import CalibrationMix
from hubprune.pruning.calibration import draw
from hubprune.pruning.documents import end_of_document, pack, stream

token_ids = st.lists(st.integers(0, 9), max_size=12)


@given(st.lists(token_ids, max_size=12), st.integers(1, 15))
def test_the_sequences_are_the_documents_tokens_up_to_the_last_whole_sequence(documents, length):
    sequences = list(pack(documents, length=length))
    joined = [token for document in documents for token in document]
    assert {len(sequence) for sequence in sequences} <= {length}
    assert [token for sequence in sequences for token in sequence] == joined[: len(sequences) * length]
    assert len(joined) - len(sequences) * length < length


@given(st.lists(token_ids, min_size=1, max_size=12), st.integers(1, 15), st.data())
def test_how_many_are_asked_for_does_not_change_the_first_ones(documents, length, data):
    everything = list(pack(documents, length=length))
    number = data.draw(st.integers(0, len(everything)))
    some = pack(documents, length=length)
    assert [next(some) for _ in range(number)] == everything[:number]


def test_documents_are_taken_only_as_they_are_needed():
    taken = []

    def documents():
        for number in range(100):
            taken.append(number)
            yield [number, number]

    sequences = pack(documents(), length=3)
    assert [next(sequences), next(sequences)] == [(0, 0, 1), (1, 2, 2)]
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("length", [0, -1])
def test_a_sequence_without_tokens_is_a_bug(length):
    with pytest.raises(ValueError, match="at least one token"):
        next(pack([[1]], length=length))


def test_a_document_ends_with_one_end_of_text_token_where_there_is_one():
    assert end_of_document([1, 2], eos=9) == (1, 2, 9)
    assert end_of_document([1, 9], eos=9) == (1, 9)
    assert end_of_document([], eos=9) == (9,)
    assert end_of_document([1], eos=None) == (1,)


# ---- drawn from a file -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One token per byte, one at the start of a text and another for its end."""
    from bases import write_tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    made = AutoTokenizer.from_pretrained(folder)
    made.add_special_tokens({"bos_token": "<start>", "eos_token": "<end>"})
    template = TemplateProcessing(single="<start> $A", special_tokens=[("<start>", made.bos_token_id)])
    made.backend_tokenizer.post_processor = template
    return made


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n}" + " x" * n}) + "\n" for n in range(30)))
    return path


@pytest.fixture
def drawn(tokenizer, reporter, file):
    def run(*, seed=0, context_length=None, reporter=reporter, **options):
        subset = {"dataset": str(file), "weight": 1}
        mix = CalibrationMix.model_validate({"name": "own", "packed": True, "subsets": [subset], **options})
        return draw(
            mix, commits=[None], seed=seed, tokenizer=tokenizer, context_length=context_length, reporter=reporter
        )

    return run


def test_every_document_of_a_packed_sequence_starts_and_ends_as_a_text(drawn, tokenizer, file):
    found = drawn(num_samples=20, max_tokens=32, shuffle_buffer=4)
    assert [len(document.ids) for document in found.documents] == [32] * 20
    subset = CalibrationMix.model_validate({"name": "m", "subsets": [{"dataset": str(file), "weight": 1}]}).subsets[0]
    texts = [text.plain for text in stream(subset, commit=None, seed=0, buffer=4)]
    expected = "".join(f"<start>{text}<end>" for text in texts)
    joined = tokenizer.decode([token for document in found.documents for token in document.ids])
    assert expected.startswith(joined)


def test_the_record_says_what_was_packed(drawn):
    record = drawn(num_samples=5, max_tokens=40).record
    [source] = record.sources
    assert (record.packed, record.unit, record.max_tokens) == (True, "sequences", 40)
    assert (source.documents, source.tokens) == (5, 200)
    assert 0 < source.texts < 30


def test_the_same_seed_packs_the_same_sequences_and_another_seed_others(drawn):
    options = {"num_samples": 5, "max_tokens": 40}
    assert drawn(seed=1, **options) == drawn(seed=1, **options)
    assert drawn(seed=1, **options).record.token_sha256 != drawn(seed=2, **options).record.token_sha256


def test_a_base_with_a_shorter_context_gets_sequences_of_that_length_and_is_told(drawn, capsys):
    found = drawn(num_samples=5, max_tokens=64, context_length=16, reporter=Reporter())
    assert {len(document.ids) for document in found.documents} == {16}
    assert found.record.max_tokens == 16
    assert "samples have 16 tokens, the base's context, instead of the mix's 64" in capsys.readouterr().err


def test_a_text_longer_than_the_context_is_packed_without_a_warning(drawn, tokenizer, file, caplog):
    file.write_text(json.dumps({"text": "a" * 5000}) + "\n")
    limit, tokenizer.model_max_length = tokenizer.model_max_length, 64
    try:
        assert len(drawn(num_samples=70, max_tokens=64).documents) == 70
    finally:
        tokenizer.model_max_length = limit
    assert caplog.text == ""


def test_too_little_text_says_how_many_sequences_it_makes(drawn):
    with pytest.raises(CalibrationError) as caught:
        drawn(num_samples=1000, max_tokens=100)
    assert "has 30 documents, enough for 11 sequences of 100 tokens, the mix wants 1000 of it." in str(caught.value)
    assert "--num-samples" in caught.value.hint
