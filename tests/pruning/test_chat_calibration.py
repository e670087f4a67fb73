"""A calibration mix through a chat template: each document is what the template makes of its turns, and no more."""

from __future__ import annotations

import json

import pytest
from bases import write_tokenizer
from transformers import AutoTokenizer

from hubprune.core.console import Reporter
from hubprune.core.errors import CalibrationError, UnsupportedFormatError
from hubprune.core.recipe import CalibrationMix
from hubprune.pruning.calibration import draw
from hubprune.pruning.documents import check_subsets, stream

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
TURNS = [{"role": "user", "content": "What sings?"}, {"role": "assistant", "content": "A bird."}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One that puts <start> before a text, as the template does by itself."""
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    made = AutoTokenizer.from_pretrained(folder)
    made.add_special_tokens({"bos_token": "<start>", "eos_token": "<end>"})
    template = TemplateProcessing(single="<start> $A", special_tokens=[("<start>", made.bos_token_id)])
    made.backend_tokenizer.post_processor = template
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def mix(tmp_path):
    """A mix of one file with one row."""

    def write(row, *, column="text", **settings):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        subset = {"dataset": str(tmp_path / "rows.jsonl"), "column": column, "weight": 1}
        values = {"name": "own", "subsets": [subset], "num_samples": 1, "chat_template": True, **settings}
        return CalibrationMix.model_validate(values)

    return write


def drawn(wanted, tokenizer):
    check_subsets(wanted, [None])
    found = draw(
        wanted, commits=[None], seed=0, tokenizer=tokenizer, context_length=None, reporter=Reporter(quiet=True)
    )
    return found, tokenizer.decode(found.documents[0].ids)


@pytest.mark.parametrize(
    ("row", "column", "said"),
    [
        ({"text": "Sing."}, "text", "<start>[user]Sing."),
        ({"a": "Sing", "b": "now"}, ["a", "b"], "<start>[user]Sing\n\nnow"),
        ({"messages": TURNS}, "messages", "<start>[user]What sings?[assistant]A bird."),
        ({"messages": [{**turn, "id": 1} for turn in TURNS]}, "messages", "<start>[user]What sings?[assistant]A bird."),
        ({"prompt": "What?", "completion": "It."}, ["prompt", "completion"], "<start>[user]What?[assistant]It."),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, ["prompt", "completion"],
         "<start>[user]What sings?[assistant]A bird."),
        ({"turns": ["What sings?", "A bird."]}, "turns", "<start>[user]What sings?\n\nA bird."),
    ],
)  # fmt: skip
def test_a_document_is_what_the_template_makes_of_its_turns(mix, tokenizer, row, column, said):
    found, text = drawn(mix(row, column=column), tokenizer)
    assert text == said
    assert found.record.chat_template


def test_it_has_the_tokens_that_transformers_gives_a_conversation(mix, tokenizer):
    found, _ = drawn(mix({"messages": TURNS}, column="messages"), tokenizer)
    assert list(found.documents[0].ids) == tokenizer.apply_chat_template(TURNS, return_dict=True)["input_ids"]


def test_it_is_cut_off_and_packed_as_any_other(mix, tokenizer):
    assert drawn(mix({"text": "Sing."}, max_tokens=7), tokenizer)[1] == "<start>[user]"
    _, text = drawn(mix({"text": "Sing."}, max_tokens=12, packed=True), tokenizer)
    assert text == "<start>[user]Sing."[: len(text)]


def test_without_a_template_messages_are_their_texts(mix, tokenizer):
    wanted = mix({"messages": TURNS}, column="messages").plain
    found, text = drawn(wanted, tokenizer)
    assert text == "<start>What sings?\n\nA bird."
    assert not found.record.chat_template
    (document,) = stream(wanted.subsets[0], commit=None, seed=0, buffer=1)
    assert document.turns == tuple(TURNS)


def test_a_template_that_fails_and_a_column_of_other_things_are_named(mix, tokenizer):
    with pytest.raises(CalibrationError, match="has no text column 'messages'"):
        drawn(mix({"messages": [{"speaker": "me"}]}, column="messages"), tokenizer)
    broken = AutoTokenizer.from_pretrained(tokenizer.name_or_path, chat_template="{{ raise_exception('not you') }}")
    with pytest.raises(UnsupportedFormatError, match="cannot be rendered: not you"):
        drawn(mix({"text": "Sing."}), broken)


def test_documents_to_train_on_are_told_from_scored_ones_behind_a_long_template(tmp_path, tokenizer):
    from hubprune.healing.texts import Seen
    from hubprune.workflows.heal.texts import draw as draw_texts
    from hubprune.workflows.heal.texts import heads

    long = AutoTokenizer.from_pretrained(tokenizer.name_or_path, chat_template="x" * 99 + TEMPLATE)
    rows = [{"text": f"Text {n} of the birds."} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    subset = {"dataset": str(tmp_path / "rows.jsonl"), "weight": 1}
    wanted = CalibrationMix.model_validate(
        {"name": "own", "subsets": [subset], "num_samples": 3, "chat_template": True, "shuffle_buffer": 2}
    )
    common = {"commits": [None], "seed": 0, "tokenizer": long, "reporter": Reporter(quiet=True)}
    scored = draw(wanted.plain, context_length=None, **common)
    found = draw_texts(
        wanted, max_tokens=512, wanted=9, held_out=2, benchmarks=Seen(frozenset()),
        scored=heads([document.ids for document in scored.documents]), **common,
    )  # fmt: skip
    assert len(found.held_out) + len(found.trained) == 5
    assert all(long.decode(ids).startswith("x" * 99) for ids in (*found.trained, *found.held_out))
    assert found.record.chat_template
