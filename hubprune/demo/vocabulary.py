"""Hold the words, facts and sentence patterns of the small made-up world. Data only, no logic.

Patterns are `str.format` templates. Two people are `{a}` and `{b}`, objects `{o}`, `{x}` and `{y}`, places `{p}`
and `{q}`; in the facts `{s}` is the subject and `{o}` what is said of it.
"""

from typing import NamedTuple

NAMES = ("Mira", "Anna", "Elsa", "Greta", "Ida", "Rosa", "Vera", "Tom", "Ben", "Finn", "Hugo", "Leo", "Ned", "Paul")
PLACES = (
    *("barn", "kitchen", "garden", "market", "library", "forest", "school", "harbor"),
    *("mill", "attic", "cellar", "meadow", "bridge", "station", "tower", "shop"),
)
OBJECTS = (
    *("key", "lamp", "basket", "rope", "map", "bell", "coin", "book", "drum", "kite", "cup", "box"),
    *("hat", "ball", "ring", "shell", "letter", "flute", "clock", "mirror", "spoon", "blanket", "bag", "chair"),
)
ADJECTIVES = ("red", "blue", "green", "yellow", "new", "small", "heavy", "wooden", "silver", "round")
SPOTS = ("door", "wall", "stove", "window", "table", "bench", "stairs", "well")
TIMES = ("One morning", "One day", "Last week", "On a cold day", "In the summer", "After the rain")


class Animal(NamedTuple):
    """What the world knows about one animal."""

    family: str
    food: str
    home: str
    gives: str


ANIMALS = {
    "cow": Animal("mammal", "grass", "barn", "milk"),
    "hen": Animal("bird", "seeds", "coop", "eggs"),
    "sheep": Animal("mammal", "clover", "field", "wool"),
    "bee": Animal("insect", "nectar", "hive", "honey"),
    "goat": Animal("mammal", "leaves", "hill", "cheese"),
    "goose": Animal("bird", "weeds", "pond", "feathers"),
    "horse": Animal("mammal", "hay", "stable", "rides"),
    "dog": Animal("mammal", "meat", "kennel", "safety"),
    "owl": Animal("bird", "mice", "tree", "silence"),
    "frog": Animal("amphibian", "flies", "swamp", "songs"),
    "trout": Animal("fish", "worms", "river", "dinner"),
    "ant": Animal("insect", "crumbs", "nest", "order"),
    "toad": Animal("amphibian", "bugs", "ditch", "luck"),
    "carp": Animal("fish", "snails", "lake", "oil"),
    "moth": Animal("insect", "cloth", "closet", "silk"),
}
TOOLS = {
    "saw": "cut boards",
    "hammer": "drive nails",
    "needle": "sew shirts",
    "knife": "slice bread",
    "broom": "sweep floors",
    "shovel": "dig holes",
    "kettle": "boil water",
    "brush": "paint walls",
    "rake": "gather leaves",
    "net": "catch fish",
    "pen": "write letters",
    "axe": "split logs",
    "ladder": "reach roofs",
    "oven": "bake cakes",
    "ruler": "measure lines",
    "pump": "lift water",
}
EFFECTS = {
    "ice is heated": "it melts",
    "water is cooled": "it freezes",
    "iron gets wet": "it rusts",
    "a seed gets water": "it grows",
    "glass is dropped": "it breaks",
    "paper meets fire": "it burns",
    "milk stands in the sun": "it turns sour",
    "sugar is stirred in tea": "it dissolves",
    "a stone is put in a lake": "it sinks",
    "a cork is put in a lake": "it floats",
    "a balloon meets a pin": "it bursts",
    "water is boiled": "it becomes steam",
    "clay is baked": "it turns hard",
    "butter is warmed": "it turns soft",
    "metal is struck": "it rings",
    "a plant has no light": "it turns pale",
    "a wheel is pushed": "it rolls",
    "a wet shirt hangs in the wind": "it dries",
}
JOBS = {
    "baker": ("bakery", "bread"),
    "smith": ("forge", "horseshoes"),
    "tailor": ("workshop", "coats"),
    "carpenter": ("yard", "tables"),
    "potter": ("studio", "bowls"),
    "farmer": ("field", "corn"),
    "brewer": ("brewery", "beer"),
    "printer": ("press", "newspapers"),
    "miller": ("mill", "flour"),
    "gardener": ("garden", "flowers"),
}


class Relation(NamedTuple):
    """How one kind of fact is stated and asked for. The answer takes an article where `article` is true."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    article: bool = False


RELATIONS = {
    "family": Relation(
        ("A {s} is a kind of {o}.", "The {s} belongs to the {o} family.", "Every {s} is a {o}."),
        (
            "What kind of animal is a {s}?",
            "To which family does the {s} belong?",
            "A {s} is a kind of what?",
            "What is every {s}?",
        ),
        article=True,
    ),
    "food": Relation(
        ("A {s} eats {o}.", "The {s} lives on {o}.", "Give the hungry {s} some {o}."),
        (
            "What does a {s} eat?",
            "What does the {s} live on?",
            "What should you give to a hungry {s}?",
            "Which food does a {s} like?",
        ),
    ),
    "home": Relation(
        ("A {s} sleeps in the {o}.", "The home of the {s} is the {o}.", "You can find a {s} in the {o}."),
        (
            "Where does a {s} sleep?",
            "What is the home of the {s}?",
            "Where can you find a {s}?",
            "Where should you look for a {s}?",
        ),
    ),
    "gives": Relation(
        ("A {s} gives us {o}.", "From the {s} we get {o}.", "People keep a {s} for {o}."),
        (
            "What does a {s} give us?",
            "What do we get from the {s}?",
            "For what do people keep a {s}?",
            "What comes from a {s}?",
        ),
    ),
    "use": Relation(
        ("A {s} is used to {o}.", "With a {s} you can {o}.", "Take a {s} to {o}."),
        (
            "What is a {s} used for?",
            "What can you do with a {s}?",
            "Why would you take a {s}?",
            "What is a {s} good for?",
        ),
    ),
    "tool": Relation(
        ("To {s} you need a {o}.", "The best tool to {s} is a {o}.", "People {s} with a {o}."),
        (
            "What do you need to {s}?",
            "What is the best tool to {s}?",
            "With what do people {s}?",
            "What would help you to {s}?",
        ),
        article=True,
    ),
    "effect": Relation(
        ("When {s}, {o}.", "If {s}, {o}.", "As soon as {s}, {o}."),
        (
            "What happens when {s}?",
            "What happens if {s}?",
            "What happens as soon as {s}?",
            "What do you see when {s}?",
        ),
    ),
    "workplace": Relation(
        ("A {s} works in the {o}.", "The {s} goes to the {o} every day.", "You can meet the {s} in the {o}."),
        (
            "Where does a {s} work?",
            "Where does the {s} go every day?",
            "Where can you meet the {s}?",
            "Where should you look for the {s}?",
        ),
    ),
    "product": Relation(
        ("A {s} makes {o}.", "The {s} sells {o}.", "The work of a {s} is to make {o}."),
        (
            "What does a {s} make?",
            "What does the {s} sell?",
            "What is the work of a {s}?",
            "What can you buy from the {s}?",
        ),
    ),
}


class Fact(NamedTuple):
    """One thing that is true in the world: a key of `RELATIONS`, its subject and its object."""

    relation: str
    subject: str
    object: str


def _facts() -> tuple[Fact, ...]:
    animals = [Fact(field, name, value) for name, it in ANIMALS.items() for field, value in it._asdict().items()]
    tools = [fact for tool, use in TOOLS.items() for fact in (Fact("use", tool, use), Fact("tool", use, tool))]
    effects = [Fact("effect", cause, effect) for cause, effect in EFFECTS.items()]
    jobs = [Fact(r, job, o) for job, pair in JOBS.items() for r, o in zip(("workplace", "product"), pair, strict=True)]
    return (*animals, *tools, *effects, *jobs)


FACTS = _facts()
