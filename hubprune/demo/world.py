"""Write the calibration text and the benchmark rows: a pure function of two seeds.

    python -m hubprune.demo.world [--out DIR]

writes calibration/<subset>.jsonl and benchmarks/<config>.jsonl below DIR (default: `hubprune/demo/datasets`).

Make the rows of the five held-out benchmarks, in the columns of the real data sets they imitate.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hubprune.demo.patterns import ACTIONS, ORDINALS, RECIPES, Action
from hubprune.demo.texts import SUBSETS, World, answer, solution, step
from hubprune.demo.vocabulary import FACTS, NAMES, OBJECTS

# ---- rows ----------------------------------------------------------------------------------------------------------


Row = Mapping[str, object]
BENCHMARKS = ("arc_easy", "hellaswag", "lambada", "piqa", "winogrande")


def _arc_easy(world: World) -> Row:
    fact, question = world.question()
    wrong = sorted({answer(f) for f in FACTS if f.relation == fact.relation} - {answer(fact)})
    texts = [answer(fact), *world.random.sample(wrong, 3)]
    world.random.shuffle(texts)
    choices = {"text": texts, "label": list("ABCD")}
    return {"question": question, "choices": choices, "answerKey": "ABCD"[texts.index(answer(fact))]}


def _hellaswag(world: World) -> Row:
    recipe, x, y = world.recipe()
    foreign = world.pick([o for o in OBJECTS if o not in (x, y)])
    other = world.pick([r for r in RECIPES if r is not recipe])
    at = world.pick([i for i in range(2, 6) if "{" in recipe.steps[i]])
    gold = step(recipe.steps[at], x, y)
    near = step(recipe.steps[at + 1 if at == 2 else at - 1], x, y)
    swapped, strange = step(recipe.steps[at], y, x), step(recipe.steps[at], foreign, foreign)
    endings = [gold, swapped, strange, world.pick([near, step(other.steps[at], x, y)])]
    world.random.shuffle(endings)
    told = [f"{word}, {step(s, x, y)}" for word, s in zip(ORDINALS[:at], recipe.steps, strict=False)]
    title = f"How to {recipe.goal.format(x=x, y=y)}"
    context = " ".join([*told, f"{ORDINALS[at]},"])
    return {"activity_label": title, "ctx": context, "endings": endings, "label": str(endings.index(gold))}


def _lambada(world: World) -> Row:
    sentences, endings = world.story()
    start, word = endings[0]
    return {"text": " ".join([*sentences, f"{start} {word}"])}


def _wrong_solution(world: World, action: Action, x: str, y: str) -> str:
    two = "{y}" in action.goal
    if world.random.random() < 0.7:
        foreign = world.pick([o for o in OBJECTS if o not in (x, y)])
        return solution(action.start, action.end, y if two else foreign, x)
    other = world.pick([a for a in ACTIONS if a is not action and ("{y}" in a.goal) == two])
    return world.pick((solution(action.start, other.end, x, y), solution(other.start, action.end, x, y)))


def _piqa(world: World) -> Row:
    action, x, y = world.action()
    right, wrong = solution(action.start, action.end, x, y), _wrong_solution(world, action, x, y)
    label = world.random.randrange(2)
    first, second = (wrong, right) if label else (right, wrong)
    return {"goal": world.request(action, x, y), "sol1": first, "sol2": second, "label": label}


def _winogrande(world: World) -> Row:
    people = world.random.random() < 0.3
    start, subject, other, ending = world.reason(people=people)
    writer = world.pick([name for name in NAMES if name not in start])
    label = world.random.randrange(2)
    first, second = (other, subject) if label else (subject, other)
    sentence = f"Comment from {writer}: {start} {'_' if people else 'the _'} {ending}."
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(label + 1)}


_MAKERS: Mapping[str, Callable[[World], Row]] = {
    "arc_easy": _arc_easy,
    "hellaswag": _hellaswag,
    "lambada": _lambada,
    "piqa": _piqa,
    "winogrande": _winogrande,
}


def probe(row: Row) -> str:
    """Return the passage of a row that no training text may contain: the part that the row was held out for."""
    if "question" in row:
        return str(row["question"])
    if "activity_label" in row:
        return str(row["activity_label"])
    if "goal" in row:
        return str(row["goal"])
    if "sentence" in row:
        right = row[f"option{row['answer']}"]
        return str(row["sentence"]).split(": ")[1].replace("_", str(right))
    return str(row["text"])


def make(benchmark: str, count: int, *, seed: str) -> list[Row]:
    """Return `count` rows of one benchmark, no two of which ask about the same passage."""
    world, rows = World(f"{seed}-{benchmark}", held_out=True), dict[str, Row]()
    while len(rows) < count:
        row = _MAKERS[benchmark](world)
        rows.setdefault(probe(row), row)
    return list(rows.values())


def as_jsonl(items: list[Row]) -> str:
    """Return rows as JSON lines with sorted keys."""
    return "".join(json.dumps(item, sort_keys=True) + "\n" for item in items)


# ---- world ---------------------------------------------------------------------------------------------------------


CALIBRATION_SEED = "calibration-1"
BENCHMARK_SEED = "benchmarks-1"
TEXTS_PER_SUBSET = 150
ROWS_PER_BENCHMARK = 200


def texts(subset: str, count: int, *, seed: str) -> list[str]:
    """Return `count` texts of one subset."""
    world = World(f"{seed}-{subset}")
    return [world.text(subset) for _ in range(count)]


def files() -> Mapping[str, str]:
    """Return the content of every data file by its path below the folder of data sets."""
    content = dict[str, str]()
    for subset in SUBSETS:
        rows: list[Row] = [{"text": text} for text in texts(subset, TEXTS_PER_SUBSET, seed=CALIBRATION_SEED)]
        content[f"calibration/{subset}.jsonl"] = as_jsonl(rows)
    for name in BENCHMARKS:
        content[f"benchmarks/{name}.jsonl"] = as_jsonl(make(name, ROWS_PER_BENCHMARK, seed=BENCHMARK_SEED))
    return content


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write the calibration text and the benchmark rows of the demo.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "datasets")
    out: Path = parser.parse_args(arguments).out
    for path, content in files().items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
