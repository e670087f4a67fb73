"""Answers are remembered for the model that gave them, across processes that were killed."""

from __future__ import annotations

import pytest

from hubprune.core.errors import EvaluationError
from hubprune.evaluation.requests import AT_ONCE, Answer, Memo

KEYS = [bytes([n]) * 32 for n in range(4)]


def test_answers_come_back_as_they_were(tmp_path):
    answers = {KEYS[0]: Answer(-1 / 3, is_greedy=True), KEYS[1]: Answer(-1e-300, is_greedy=False)}
    memo = Memo(tmp_path / "new" / "answers.sqlite")
    memo.put_answers("base", answers)
    memo.close()
    again = Memo(tmp_path / "new" / "answers.sqlite")
    assert again.answers("base", KEYS) == answers


def test_one_model_never_gets_the_answers_of_another():
    memo = Memo()
    memo.put_answers("base", {KEYS[0]: Answer(-1.0, is_greedy=True)})
    memo.put_texts("base", {KEYS[0]: "text"})
    memo.put_check("base", 8, 1e-5)
    assert memo.answers("pruned", KEYS) == {}
    assert memo.texts("pruned", KEYS) == {}
    assert memo.check("pruned") is None
    assert memo.check("base") == (8, 1e-5)


def test_many_requests_are_asked_for_at_once():
    keys = [n.to_bytes(32, "big") for n in range(2 * AT_ONCE + 3)]
    memo = Memo()
    memo.put_answers("base", {key: Answer(-float(n), is_greedy=False) for n, key in enumerate(keys)})
    assert len(memo.answers("base", keys)) == len(keys)


def test_what_another_run_wrote_meanwhile_is_seen(tmp_path):
    one, other = Memo(tmp_path / "a.sqlite"), Memo(tmp_path / "a.sqlite")
    one.put_texts("base", {KEYS[0]: "héllo\0"})
    assert other.texts("base", KEYS) == {KEYS[0]: "héllo\0"}


def test_a_file_that_is_no_memory_is_named(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"something else" * 99)
    with pytest.raises(EvaluationError, match=r"Cannot use the memory of answers in .*answers.sqlite") as caught:
        Memo(path)
    assert "Delete the file" in caught.value.hint


def test_a_file_that_breaks_while_it_is_used_is_named(tmp_path):
    memo = Memo(tmp_path / "answers.sqlite")
    memo._db.execute("drop table answers")
    for use in (lambda: memo.answers("m", [b"k"]), lambda: memo.put_answers("m", {b"k": Answer(-1.0, True)})):
        with pytest.raises(EvaluationError, match=r"answers in .*answers\.sqlite: no such table"):
            use()
