"""Write texts about the made-up world and the rows of five benchmarks, each a pure function of a seed.

    python -m hubprune.demo.world [--out DIR]

writes calibration/<subset>.jsonl and benchmarks/<config>.jsonl below DIR (default: `hubprune/demo/datasets`).

A share of all combinations (who meets whom in which plot, which action is applied to what, which question is asked
about which fact) is kept for the rows, whose columns are those of the data sets that they imitate: `World(seed)` never
draws one of them, and `World(seed, held_out=True)` draws nothing else.
"""

import argparse
import json
import random
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

# fmt: off
# isort: off
from hubprune.demo.vocabulary import (
    ACTIONS, ADJECTIVES, ANIMALS, EFFECTS, ENDINGS, FACTS, JOBS, NAMES, OBJECT_REASONS, OBJECT_VERBS, OBJECTS, ORDINALS,
    PEOPLE_REASONS, PEOPLE_VERBS, PLACES, PLOTS, RECIPES, RELATIONS, REQUESTS, SPOTS, TIMES, TOOLS, Action, Ending,
    Fact, Recipe,
)
# isort: on
# fmt: on

T = TypeVar("T")

SUBSETS = ("stories", "web_samples_v2", "web_samples_v1", "wikihow", "openstax", "stanford")
DRILL_WORDS = (*NAMES, *OBJECTS, *PLACES, *ADJECTIVES, *OBJECT_VERBS, *PEOPLE_VERBS)
DRILL_LENGTH = 48
HELD_OUT_PERCENT = {"story": 15, "recipe": 15, "action": 15, "reason": 15, "question": 45}


def tidy(sentence: str) -> str:
    """Turn the article "a" into "an" where a vowel follows."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)


def is_held_out(kind: str, *parts: str) -> bool:
    """Tell whether a combination belongs to the evaluation rows; the same on every machine and in every run."""
    return zlib.crc32("|".join((kind, *parts)).encode()) % 100 < HELD_OUT_PERCENT[kind]


def answer(fact: Fact) -> str:
    """Return the object of a fact as the answer to a question, with its article where one belongs."""
    return tidy(f"a {fact.object}") if RELATIONS[fact.relation].article else fact.object


def step(pattern: str, x: str, y: str) -> str:
    """Return one step of a recipe as it stands after an ordinal: "put the key inside."."""
    return pattern[0].lower() + pattern[1:].format(x=x, y=y)


class World:
    """Draw combinations and texts from one side of the world with a seeded generator."""

    def __init__(self, seed: str, *, held_out: bool = False) -> None:
        """Start at the beginning of the stream that belongs to `seed`."""
        self.random = random.Random(seed)
        self.held_out = held_out

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.random.randrange(len(options))]

    def two(self, options: Sequence[str]) -> tuple[str, str]:
        """Return two different options."""
        first, second = self.random.sample(options, 2)
        return first, second

    def allowed(self, kind: str, *parts: str) -> bool:
        """Tell whether this side of the world may use a combination."""
        return is_held_out(kind, *parts) == self.held_out

    def statement(self, fact: Fact) -> str:
        """Return one of the sentences that state a fact."""
        pattern = self.pick(RELATIONS[fact.relation].statements)
        return tidy(pattern.format(s=fact.subject, o=fact.object))

    def question(self) -> tuple[Fact, str]:
        """Return a fact and a question that it answers."""
        while True:
            fact = self.pick(FACTS)
            pattern = self.pick(RELATIONS[fact.relation].questions)
            if self.allowed("question", *fact, pattern):
                return fact, tidy(pattern.format(s=fact.subject, o=fact.object))

    def action(self) -> tuple[Action, str, str]:
        """Return an action and the two objects it is about (the second may play no part)."""
        while True:
            action, (x, y) = self.pick(ACTIONS), self.two(OBJECTS)
            pair = (x, y) if "{y}" in action.goal else (x,)
            if self.allowed("action", action.goal, *pair):
                return action, x, y

    def recipe(self) -> tuple[Recipe, str, str]:
        """Return a recipe and its two objects."""
        while True:
            recipe, (x, y) = self.pick(RECIPES), self.two(OBJECTS)
            if self.allowed("recipe", recipe.goal, x, y):
                return recipe, x, y

    def reason(self, *, people: bool) -> tuple[str, str, str, str]:
        """Return a sentence up to "because", the thing that its ending speaks of, the other thing, and the ending.

        The things are two people, or else two objects.
        """
        reason = self.pick(PEOPLE_REASONS if people else OBJECT_REASONS)
        (a, b), (x, y) = self.two(NAMES), self.two(OBJECTS)
        first, second = (a, b) if people else (x, y)
        if not self.allowed("reason", reason.start, first, second):
            return self.reason(people=people)
        v, w = self.two(PEOPLE_VERBS if people else OBJECT_VERBS)
        subject, other, endings = first, second, reason.of_first
        if self.random.random() < 0.5:
            subject, other, endings = second, first, reason.of_second
        slots = {"a": a, "b": b, "x": x, "y": y, "v": v, "w": w}
        return reason.start.format(**slots), subject, other, self.pick(endings).format(**slots)

    def story(self) -> tuple[list[str], list[tuple[str, str]]]:
        """Return the sentences of a story, and its possible endings as (start, last word)."""
        plot, (a, b), (p, q), animal = self.pick(PLOTS), self.two(NAMES), self.two(PLACES), self.pick(list(ANIMALS))
        if not self.allowed("story", plot.sentences[0], a, b):
            return self.story()
        slots = {"a": a, "b": b, "p": p, "q": q, "o": self.pick(OBJECTS), "animal": animal}
        slots |= {"adjective": self.pick(ADJECTIVES), "spot": self.pick(SPOTS), "time": self.pick(TIMES)}
        slots |= {"food": ANIMALS[animal].food}
        endings: list[Ending] = [*ENDINGS, *plot.endings]
        self.random.shuffle(endings)
        sentences = [tidy(s.format(**slots)) for s in plot.sentences]
        return sentences, [(e.start.format(**slots), slots[e.slot]) for e in endings]

    def because(self, *, people: bool) -> str:
        """Return a whole sentence with a reason."""
        start, subject, _, ending = self.reason(people=people)
        return f"{start} {subject} {ending}." if people else f"{start} the {subject} {ending}."

    def request(self, action: Action, x: str, y: str) -> str:
        """Return a question that asks how to reach the goal of an action."""
        return tidy(self.pick(REQUESTS).format(goal=action.goal.format(x=x, y=y)))

    # the six kinds of text ----------------------------------------------------------------------------------------

    def text(self, subset: str) -> str:
        """Return one new text of a subset."""
        writers = {
            "stories": self._story_text, "web_samples_v2": self._forum, "web_samples_v1": self._shop_page,
            "wikihow": self._instructions, "openstax": self._chapter, "stanford": self._lecture,
        }  # fmt: skip
        return writers[subset]()

    def _story_text(self) -> str:
        sentences, endings = self.story()
        if self.random.random() < 0.5:
            sentences.insert(self.random.randrange(1, len(sentences)), self.because(people=True))
        return " ".join(sentences + [f"{start} {word}." for start, word in endings[: self.random.randint(2, 4)]])

    def _forum(self) -> str:
        a, b = self.two(NAMES)
        lines = []
        for _ in range(self.random.randint(1, 2)):
            action, x, y = self.action()
            lines.append(f"Question: {self.request(action, x, y)}")
            lines.append(f"Answer: {solution(action.start, action.end, x, y)}")
        comments = [" ".join(self.because(people=False) for _ in range(3)) for _ in range(2)]
        return "\n".join([*lines, f"Comment from {a}: {comments[0]}", f"Comment from {b}: {comments[1]}"])

    def _shop_page(self) -> str:
        sellers, goods = self.random.sample(NAMES, 3), self.random.sample(OBJECTS, 3)
        pairs = list(zip(sellers, goods, strict=True))
        offers = [f"{name} sells a {self.pick(ADJECTIVES)} {good}." for name, good in pairs]
        self.random.shuffle(pairs)
        hints = [self.pick(("If you want the {o}, ask {a}.", "Talk to {a} about the {o}.")) for _ in pairs]
        asks = [hint.format(a=name, o=good) for hint, (name, good) in zip(hints, pairs, strict=True)]
        job = self.pick(list(JOBS))
        about = Fact("product", job, JOBS[job][1]), Fact("workplace", job, JOBS[job][0])
        work = [self.statement(fact) for fact in about]
        return " ".join([f"Welcome to the page of the {self.pick(PLACES)}.", *offers, *asks, *work])

    def _instructions(self) -> str:
        recipe, x, y = self.recipe()
        title = tidy(f"How to {recipe.goal.format(x=x, y=y)}:")
        steps = [f"{word}, {step(s, x, y)}" for word, s in zip(ORDINALS, recipe.steps, strict=True)]
        tool = self.pick(list(TOOLS))
        return " ".join([title, *steps, self.statement(Fact("use", tool, TOOLS[tool]))])

    def _chapter(self) -> str:
        animal, tool = self.pick(list(ANIMALS)), self.pick(list(TOOLS))
        about = [f for f in FACTS if f.subject in (animal, tool) or f.object == tool]
        self.random.shuffle(about)
        causes = [Fact("effect", c, EFFECTS[c]) for c in self.random.sample(list(EFFECTS), 2)]
        title = f"Chapter {self.random.randint(1, 9)}. The {animal} and the {tool}."
        return " ".join([title, *(self.statement(f) for f in [*about, *causes])])

    def _lecture(self) -> str:
        start = f"Lecture {self.random.randint(1, 9)}. {self.statement(self.pick(FACTS))}"
        asked = [self.question() for _ in range(5)]
        return "\n".join([start, *(f"Question: {q}\nAnswer: {answer(fact)}" for fact, q in asked)])

    def drill(self) -> str:
        """Return words that are said again and again: no subset, only the first lessons in copying.

        Either a list in one order, or pairs in an order that changes from round to round.
        """
        words = self.random.sample(DRILL_WORDS, 2 * self.random.randint(1, 5))
        rounds = DRILL_LENGTH // len(words)
        if self.random.random() < 0.5:
            return " ".join(["Say:", *words * rounds])
        pairs = list(zip(words[::2], words[1::2], strict=True))
        shuffled = [pair for _ in range(rounds) for pair in self.random.sample(pairs, len(pairs))]
        return " ".join(["Pairs:", *(word for pair in shuffled for word in pair)])


def solution(start: str, end: str, x: str, y: str) -> str:
    """Return the sentence that says how to reach a goal."""
    return f"{start} {end}".format(x=x, y=y)


# ---- rows of the benchmarks ------------------------------------------------------------------------------------------

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
    "arc_easy": _arc_easy, "hellaswag": _hellaswag, "lambada": _lambada, "piqa": _piqa, "winogrande": _winogrande,
}  # fmt: skip


def probe(row: Row) -> str:
    """Return the passage of a row that no training text may contain: the part that the row was held out for."""
    if "sentence" in row:
        return str(row["sentence"]).split(": ")[1].replace("_", str(row[f"option{row['answer']}"]))
    return str(next(row[column] for column in ("question", "activity_label", "goal", "text") if column in row))


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


# ---- files -----------------------------------------------------------------------------------------------------------

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
