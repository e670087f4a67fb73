"""The suite `long`: many questions behind the same examples, which are read once, and prompts that are too long."""

from __future__ import annotations

import json
import random
from functools import partial

import datasets
import pytest
from datasets import Dataset, DatasetDict

from hubprune.core.errors import EvaluationError
from hubprune.core.recipe import EvaluationSpec
from hubprune.core.suites import SUITES
from hubprune.evaluation import harness, lengths, tasks
from hubprune.evaluation.layer_tree import LayerTree

LABELS = ("card_arrival", "card_about_to_expire", "lost_or_stolen_card", "exchange_rate", "top_up", "pin_blocked")
TWO = ("banking77_2shot", "banking77_3shot")
WORDS = ("my", "card", "where", "is", "rate", "lost", "the", "pin", "why", "money", "please")


def banking(rows, seed):
    """Rows in the columns of BANKING77."""
    source = random.Random(seed)
    return Dataset.from_list(
        [
            {"text": " ".join(source.choices(WORDS, k=source.randint(2, 6))), "label": n, "label_text": LABELS[n]}
            for n in (source.randrange(len(LABELS)) for _ in range(rows))
        ]
    )


@pytest.fixture(autouse=True)
def dataset(monkeypatch):
    """Let the data set be a small one, in memory, of which a spec names the id on the Hub."""
    made, load = DatasetDict(train=banking(90, 0), test=banking(12, 1)), datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, **more: made if path == "mteb/banking77" else load(path, **more)
    )
    return made


@pytest.fixture(scope="module")
def long_folders(base_folder, pruned_folder, tmp_path_factory):
    """The tiny models with positions for thousands of tokens, which byte for byte these prompts have."""
    import shutil

    made = []
    for folder in (base_folder, pruned_folder):
        copy = tmp_path_factory.mktemp("long") / folder.name
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text()) | {"max_position_embeddings": 4096}
        (copy / "config.json").write_text(json.dumps(config))
        made.append(copy)
    return made


def spec(*names, shots=None, **more):
    """The examples of a label as of 77, of which there are but six here."""
    given = {name: len(LABELS) * int(name[-5]) for name in names} if shots is None else shots
    return EvaluationSpec(tasks=names, num_fewshot=given, **more)


def prompts(name):
    (task,) = tasks.load_tasks(spec(name)).tasks.values()
    task.build_all_requests()
    return [request.args for request in task.instances]


def test_the_suite_has_one_to_five_examples_of_each_of_77_intents():
    assert SUITES["long"] == {f"banking77_{k}shot": 77 * k for k in range(1, 6)}
    assert set(SUITES["long"]) == set(tasks.own_tasks())
    sources = tasks.data_sources(tasks.find_tasks(EvaluationSpec(tasks=("long",))), SUITES["long"])
    assert [source.dataset for source in sources] == ["mteb/banking77"]


def test_a_prompt_is_that_of_longiclbench_and_its_examples_the_same_for_all_rows(dataset):
    asked = prompts("banking77_2shot")
    first, ending = asked[0]
    words = (
        "Given a customer service query, please predict the intent of the query. The predict answer must come from the"
        " demonstration examples with the exact format. The examples are as follows: \n"
    )
    examples, query = first.removeprefix(words).rsplit("service query: ", 1)
    assert first.startswith(words)
    assert query.endswith("\nintent category:")
    assert ending == f" {sorted(LABELS)[0]}\n"
    assert {context.rsplit("service query: ", 1)[0] for context, _ in asked} == {words + examples}
    # Twice each label, in the order in which labels first appear, with the first row of each before any second one.
    shown = [line.removeprefix("intent category: ") for line in examples.splitlines() if line.startswith("intent")]
    order = list(dict.fromkeys(dataset["train"]["label_text"]))
    assert shown == order * 2
    queries = [line.removeprefix("service query: ") for line in examples.splitlines() if line.startswith("service")]
    firsts = {label: [r["text"] for r in dataset["train"] if r["label_text"] == label] for label in order}
    assert queries == [firsts[label][turn] for turn in (0, 1) for label in order]


def test_rows_and_answers_are_those_of_the_test_split(dataset):
    (task,) = tasks.load_tasks(spec("banking77_1shot")).tasks.values()
    documents = list(task.eval_docs)
    assert len(documents) == 12  # of 100 at most
    assert all(d["answers"][d["answer"]] == d["label_text"] + "\n" for d in documents)
    order = list(dict.fromkeys(dataset["test"]["label_text"]))
    assert [d["label_text"] for d in documents[: len(order)]] == order


@pytest.mark.parametrize("backend", ["shared", "layers"])
def test_examples_are_read_once_and_answers_are_those_of_lm_eval_one_row_at_a_time(
    backend, long_folders, reporter, monkeypatch
):
    base, pruned = (harness.ModelFolder(f, own_code=n == 1) for n, f in enumerate(long_folders))
    runs = []
    original = LayerTree.hidden_states

    def counted(self, batch):
        yield from original(self, batch)
        runs.append(self.token_layers)

    monkeypatch.setattr(LayerTree, "hidden_states", counted)
    found, theirs = (
        harness.run(
            base, pruned, spec=spec(*TWO, limit=4, batch_size=size, backend=way), seed=0, device="cpu",
            dtype="float32", reporter=reporter,
        )
        for way, size in ((backend, None), ("hf", 1))
    )  # fmt: skip
    assert found.backend == backend
    assert [(r.task, r.metric, r.base, r.pruned) for r in found.tasks] == [
        (r.task, r.metric, r.base, r.pruned) for r in theirs.tasks
    ]
    assert {r.metric for r in found.tasks} == {"acc", "exact_match"}
    accuracy = found.tasks[0]
    assert accuracy.chance == pytest.approx(1 / len(LABELS))
    assert (accuracy.num_fewshot, accuracy.dataset, accuracy.documents) == (12, "mteb/banking77", 4)
    longest = max(len(c.encode()) + len(e) - 1 for c, e in prompts("banking77_2shot")[: 4 * len(LABELS)])
    assert accuracy.prompt_tokens == longest  # a token is a byte
    assert accuracy.prompts_cut == 0
    assert found.self_check.largest_difference < 3e-5  # of answers of 25 tokens, some 150 nats
    if backend == "shared":  # the first layer is run for both, and the examples are once there for all of it
        asked = [request for name in TWO for request in prompts(name)[: 4 * len(LABELS)]]
        one_by_one = 2 * 2 * sum(len(context.encode()) + len(ending) - 1 for context, ending in asked)
        assert 10 * runs[-1] < one_by_one


def test_prompts_that_a_base_has_no_positions_for_are_refused_with_what_fits(base_folder, reporter):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    config = json.loads((base_folder / "config.json").read_text())
    asked = spec(*SUITES["long"])
    needed = {n: max(len(c.encode()) + len(e) - 1 for c, e in prompts(n)) for n in SUITES["long"]}

    def check(positions, free=2**40, **more):
        return lengths.check(
            asked, tokenizer=tokenizer, config=config | {"max_position_embeddings": positions} | more, itemsize=4,
            free=free, reporter=reporter,
        )  # fmt: skip

    exactly = needed["banking77_5shot"]
    assert check(exactly) == needed  # a token is a byte
    assert any(f"banking77_5shot {exactly:,}" in note for note in reporter.notes)
    with pytest.raises(EvaluationError, match=f"{exactly:,} tokens, and the base has {exactly - 1:,} pos") as refused:
        check(exactly - 1)
    assert "4shot" in refused.value.hint
    assert "5shot" not in refused.value.hint
    with pytest.raises(EvaluationError, match="states, keys and values of one take"):
        check(exactly, free=exactly * 100)
    check(exactly, sliding_window=500)
    assert any("see the last 500 tokens" in note for note in reporter.notes)


def test_the_largest_number_of_examples_that_fits_is_named(base_folder, reporter, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setattr(lengths, "_longest", lambda name, spec, tokenizer: 1000 * int(name[-5]))
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    config = json.loads((base_folder / "config.json").read_text())
    for positions, hint in ((2500, "--tasks banking77_1shot,banking77_2shot."), (128, "nothing of it fits")):
        with pytest.raises(EvaluationError) as caught:
            lengths.check(
                EvaluationSpec(tasks=("long",)), tokenizer=tokenizer, itemsize=4, free=2**40, reporter=reporter,
                config=config | {"max_position_embeddings": positions},
            )  # fmt: skip
        assert hint in caught.value.hint


def test_long_prompts_are_counted_with_what_a_chat_template_puts_around_them(base_folder, reporter):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}A:\n"
    (task,) = tasks.load_tasks(asked := spec("banking77_2shot", apply_chat_template=True)).tasks.values()
    task.build_all_requests(
        apply_chat_template=True, fewshot_as_multiturn=True,
        chat_template=partial(tokenizer.apply_chat_template, tokenize=False),
    )  # fmt: skip
    needed = max(len(tokenizer("".join(request.args))["input_ids"]) - 1 for request in task.instances)
    config = json.loads((base_folder / "config.json").read_text()) | {"max_position_embeddings": needed}
    found = lengths.check(asked, tokenizer=tokenizer, config=config, itemsize=4, free=2**40, reporter=reporter)
    assert found == {"banking77_2shot": needed}


def test_other_prompts_that_are_cut_are_counted_and_said(base_folder, pruned_folder, task_folder, write_task, reporter):
    rows = [{"question": "why? " * n, "choices": ["a", "b"], "answer": 0} for n in (2, 40, 50)]
    write_task(task_folder, "wordy", rows)
    base, pruned = harness.ModelFolder(base_folder), harness.ModelFolder(pruned_folder, own_code=True)
    asked = EvaluationSpec(tasks=("wordy",), include_path=str(task_folder))
    found = harness.run(base, pruned, spec=asked, seed=0, device="cpu", dtype="auto", reporter=reporter)
    assert found.tasks[0].prompts_cut == 2
    assert any("2 prompts of wordy are longer than the model has positions for" in note for note in found.left_out)
