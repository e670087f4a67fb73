"""Hold the words, facts and sentence patterns of the small made-up world. Data only, no logic.

Patterns are `str.format` templates. Two people are `{a}` and `{b}`, objects `{o}`, `{x}` and `{y}`, places `{p}`
and `{q}`; in the facts `{s}` is the subject and `{o}` what is said of it.
"""

# fmt: off
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
    "cow": Animal("mammal", "grass", "barn", "milk"), "hen": Animal("bird", "seeds", "coop", "eggs"),
    "sheep": Animal("mammal", "clover", "field", "wool"), "bee": Animal("insect", "nectar", "hive", "honey"),
    "goat": Animal("mammal", "leaves", "hill", "cheese"), "goose": Animal("bird", "weeds", "pond", "feathers"),
    "horse": Animal("mammal", "hay", "stable", "rides"), "dog": Animal("mammal", "meat", "kennel", "safety"),
    "owl": Animal("bird", "mice", "tree", "silence"), "frog": Animal("amphibian", "flies", "swamp", "songs"),
    "trout": Animal("fish", "worms", "river", "dinner"), "ant": Animal("insect", "crumbs", "nest", "order"),
    "toad": Animal("amphibian", "bugs", "ditch", "luck"), "carp": Animal("fish", "snails", "lake", "oil"),
    "moth": Animal("insect", "cloth", "closet", "silk"),
}
TOOLS = {
    "saw": "cut boards", "hammer": "drive nails", "needle": "sew shirts", "knife": "slice bread",
    "broom": "sweep floors", "shovel": "dig holes", "kettle": "boil water", "brush": "paint walls",
    "rake": "gather leaves", "net": "catch fish", "pen": "write letters", "axe": "split logs", "ladder": "reach roofs",
    "oven": "bake cakes", "ruler": "measure lines", "pump": "lift water",
}
EFFECTS = {
    "ice is heated": "it melts", "water is cooled": "it freezes", "iron gets wet": "it rusts",
    "a seed gets water": "it grows", "glass is dropped": "it breaks", "paper meets fire": "it burns",
    "milk stands in the sun": "it turns sour", "sugar is stirred in tea": "it dissolves",
    "a stone is put in a lake": "it sinks", "a cork is put in a lake": "it floats",
    "a balloon meets a pin": "it bursts", "water is boiled": "it becomes steam", "clay is baked": "it turns hard",
    "butter is warmed": "it turns soft", "metal is struck": "it rings", "a plant has no light": "it turns pale",
    "a wheel is pushed": "it rolls", "a wet shirt hangs in the wind": "it dries",
}
JOBS = {
    "baker": ("bakery", "bread"), "smith": ("forge", "horseshoes"), "tailor": ("workshop", "coats"),
    "carpenter": ("yard", "tables"), "potter": ("studio", "bowls"), "farmer": ("field", "corn"),
    "brewer": ("brewery", "beer"), "printer": ("press", "newspapers"), "miller": ("mill", "flour"),
    "gardener": ("garden", "flowers"),
}


class Relation(NamedTuple):
    """How one kind of fact is stated and asked for. The answer takes an article where `article` is true."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    article: bool = False


RELATIONS = {
    "family": Relation(("A {s} is a kind of {o}.", "The {s} belongs to the {o} family.", "Every {s} is a {o}."),
        ("What kind of animal is a {s}?", "To which family does the {s} belong?", "A {s} is a kind of what?",
        "What is every {s}?"), article=True),
    "food": Relation(("A {s} eats {o}.", "The {s} lives on {o}.", "Give the hungry {s} some {o}."),
        ("What does a {s} eat?", "What does the {s} live on?", "What should you give to a hungry {s}?",
        "Which food does a {s} like?")),
    "home": Relation(("A {s} sleeps in the {o}.", "The home of the {s} is the {o}.", "You can find a {s} in the {o}."),
        ("Where does a {s} sleep?", "What is the home of the {s}?", "Where can you find a {s}?",
        "Where should you look for a {s}?")),
    "gives": Relation(("A {s} gives us {o}.", "From the {s} we get {o}.", "People keep a {s} for {o}."),
        ("What does a {s} give us?", "What do we get from the {s}?", "For what do people keep a {s}?",
        "What comes from a {s}?")),
    "use": Relation(("A {s} is used to {o}.", "With a {s} you can {o}.", "Take a {s} to {o}."),
        ("What is a {s} used for?", "What can you do with a {s}?", "Why would you take a {s}?",
        "What is a {s} good for?")),
    "tool": Relation(("To {s} you need a {o}.", "The best tool to {s} is a {o}.", "People {s} with a {o}."),
        ("What do you need to {s}?", "What is the best tool to {s}?", "With what do people {s}?",
        "What would help you to {s}?"), article=True),
    "effect": Relation(("When {s}, {o}.", "If {s}, {o}.", "As soon as {s}, {o}."), ("What happens when {s}?",
        "What happens if {s}?", "What happens as soon as {s}?", "What do you see when {s}?")),
    "workplace": Relation(("A {s} works in the {o}.", "The {s} goes to the {o} every day.",
        "You can meet the {s} in the {o}."), ("Where does a {s} work?", "Where does the {s} go every day?",
        "Where can you meet the {s}?", "Where should you look for the {s}?")),
    "product": Relation(("A {s} makes {o}.", "The {s} sells {o}.", "The work of a {s} is to make {o}."),
        ("What does a {s} make?", "What does the {s} sell?", "What is the work of a {s}?",
        "What can you buy from the {s}?")),
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


# ---- plots, recipes, actions and reasons -----------------------------------------------------------------------------


class Ending(NamedTuple):
    """A last sentence without its last word, and the slot whose value is that word."""

    start: str
    slot: str


class Plot(NamedTuple):
    """The sentences of one kind of story and the endings that only it can have."""

    sentences: tuple[str, ...]
    endings: tuple[Ending, ...]


PLOTS = (
    Plot(("{time} {a} lost a {adjective} {o} in the {p}.", "{a} looked behind the {spot} but did not see the {o}.",
        "{b} came to the {p} and wanted to help {a}.", "Soon {b} found the {adjective} {o} and gave it to {a}."),
        (Ending("The one who lost the {o} was", "a"), Ending("The one who found the {o} was", "b"))),
    Plot(("{time} {a} bought a {adjective} {o} at the {p}.",
        "{a} carried the {o} to the {q} and put it near the {spot}.",
        "{b} came to the {q} and liked the {o} very much.", "So {a} let {b} use the {adjective} {o} for a day."),
        (Ending("The one who bought the {o} was", "a"), Ending("The one who liked the {o} was", "b"))),
    Plot(("{time} {a} and {b} walked to the {p}.", "{a} carried a {adjective} {o} and {b} carried some {food}.",
        "Near the {spot} they met a hungry {animal}.", "{b} gave the {food} to the {animal} and {a} laughed."),
        (Ending("The one who fed the {animal} was", "b"), Ending("The one who laughed was", "a"))),
    Plot(("{time} {a} made a {adjective} {o} for {b}.", "{a} worked in the {p} until the {o} was ready.",
        "The next morning {a} walked to the {q} and met {b} there.", "{b} took the {adjective} {o} and sang for {a}."),
        (Ending("The one who made the {o} was", "a"), Ending("The one who sang was", "b"))),
    Plot(("{time} {a} hid a {adjective} {o} in the {p}.", "{b} saw {a} near the {spot} and followed {a} to the {p}.",
        "{b} guessed the place and carried the {o} to the {q}.",
        "In the end {b} laughed and showed {a} the {adjective} {o}."), (Ending("The one who hid the {o} was", "a"),
        Ending("The one who guessed the place was", "b"))),
)
ENDINGS = (
    Ending("{b} smiled and waved to", "a"), Ending("{a} said good night and thanked", "b"),
    Ending("That night they talked about the", "o"), Ending("From that day {a} took good care of the", "o"),
    Ending("It all happened in the", "p"),
)


class Recipe(NamedTuple):
    """A goal about two objects and its six steps in order."""

    goal: str
    steps: tuple[str, str, str, str, str, str]


RECIPES = (
    Recipe("hide a {x} in a {y}", ("Choose a quiet place for the {y}.", "Open the {y} with care.",
        "Put the {x} inside.", "Cover the {x} with leaves.", "Close the {y} again.",
        "Draw a plan that shows the {x}.")),
    Recipe("trade a {x} for a {y}", ("Clean the {x} with a cloth.", "Walk to the man with the {y}.",
        "Show the {x} to him.", "Ask for the {y} in return.", "Give the {x} away.", "Carry the {y} home.")),
    Recipe("tie a {x} to a {y}", ("Find a long thread for the {x}.", "Lay the {x} on the table.",
        "Put the {y} beside it.", "Wind the thread around the {x}.", "Make a knot on the {y}.",
        "Pull hard to test the {x}.")),
    Recipe("paint a {x} on a {y}", ("Wash the dust off the {y}.", "Look at the {x} for a while.",
        "Draw the first line of the {x}.", "Fill the {x} with color.", "Leave the {y} in the sun.",
        "Show the {y} to your friends.")),
    Recipe("turn a {x} into a {y}", ("Draw a plan of the {y}.", "Cut the {x} with a saw.", "Bend the parts of the {x}.",
        "Join them to form a {y}.", "Rub the {y} until it is smooth.", "Burn what is left of the {x}.")),
    Recipe("pack a {x} and a {y}", ("Buy paper and thread.", "Lay the {x} on the paper.", "Place the {y} on top.",
        "Fold the paper around the {x}.", "Write a name on the {y}.", "Send the {x} to a friend.")),
    Recipe("compare a {x} with a {y}", ("Weigh the {x} on a scale.", "Weigh the {y} as well.",
        "Measure the {x} with a ruler.", "Hold the {y} against the light.", "Note the price of the {x}.",
        "Keep the {y} if it is better.")),
    Recipe("mend a {x} with a {y}", ("Take the {x} from the wall.", "Find the broken part of the {x}.",
        "Cut a piece off the {y}.", "Join it to the {x} with glue.", "Wait until the {x} is dry.",
        "Throw the rest of the {y} away.")),
)
ORDINALS = ("First", "Then", "Next", "After that", "Later", "At last")


class Action(NamedTuple):
    """A goal, and the two parts of the sentence that says how to reach it."""

    goal: str
    start: str
    end: str


ACTIONS = (
    Action("dry a wet {x}", "Hang the {x}", "near the warm stove."),
    Action("wash a dirty {x}", "Rub the {x}", "with soap and water."),
    Action("bring a {x} to town", "Lay the {x}", "in the cart."),
    Action("find a {x} at night", "Look for the {x}", "with a bright lantern."),
    Action("wrap a {x} as a gift", "Fold the {x}", "into colored paper."),
    Action("repair a broken {x}", "Join the {x}", "with strong glue."),
    Action("keep a {x} from dust", "Store the {x}", "below a thin cloth."),
    Action("keep a {x} from rain", "Bring the {x}", "under the roof."),
    Action("sell a {x}", "Show the {x}", "at the busy market."),
    Action("send a {x} to a friend", "Take the {x}", "to the post office."),
    Action("cool a hot {x}", "Set the {x}", "in the cold cellar."),
    Action("lift a heavy {x}", "Pull the {x}", "up with a chain."),
    Action("put a {x} into a {y}", "Open the {y}", "and drop the {x} inside."),
    Action("lay a {x} on a {y}", "Turn the {y}", "and lower the {x} onto it."),
    Action("break a {x} with a {y}", "Lift the {y}", "and strike the {x} with it."),
    Action("cover a {x} with a {y}", "Spread the {y}", "and push the {x} below it."),
    Action("clean a {x} with a {y}", "Wet the {y}", "and wipe the {x} with it."),
    Action("swap a {x} for a {y}", "Choose the {y}", "and offer the {x} for it."),
    Action("hang a {x} on a {y}", "Fix the {y}", "and hook the {x} to it."),
    Action("copy a {x} from a {y}", "Study the {y}", "and carve the {x} like it."),
)
REQUESTS = ("How do you {goal}?", "What is a good way to {goal}?", "I want to {goal}. What should I do?")


class Reason(NamedTuple):
    """A sentence about two things up to "because", and the endings that fit the first and the second of them.

    `{v}` is what the first of them does, `{w}` what the second does.
    """

    start: str
    of_first: tuple[str, ...]
    of_second: tuple[str, ...]


OBJECT_REASONS = (
    Reason("The {x} did not fit into the {y} because", ("was big", "was wide"), ("was small", "was narrow")),
    Reason("{a} chose the {x} over the {y} because", ("was cheap", "looked nice"), ("was expensive", "looked ugly")),
    Reason("{a} repaired the {x} before the {y} because", ("was urgent", "came first"), ("could wait", "came later")),
    Reason("The {x} broke the {y} because", ("was hard", "fell from above"), ("was thin", "stood below")),
    Reason("{a} took the {x} and left the {y} because", ("was useful", "was clean"), ("was useless", "was dirty")),
    Reason("The {x} {v} but the {y} {w}, and {a} smiled because", ("{v}",), ("{w}",)),
    Reason("{a} saw that the {x} {v} and the {y} {w}, and came back because", ("{v}",), ("{w}",)),
    Reason("{a} heard that the {x} {v} while the {y} {w}, and left because", ("{v}",), ("{w}",)),
    Reason("The {x} {v} and the {y} {w}. {a} was glad when", ("{v}",), ("{w}",)),
    Reason("As the {x} {v} the {y} {w}. {a} was not happy until", ("{v}",), ("{w}",)),
)
PEOPLE_REASONS = (
    Reason("{a} thanked {b} because", ("was glad about the help", "felt grateful"), ("had helped", "did a good job")),
    Reason("{a} gave the {x} to {b} because", ("had two of them", "did not want it"), ("needed it", "asked for it")),
    Reason("{a} waited for {b} because", ("came too early", "was patient"), ("came too late", "was still asleep")),
    Reason("{a} looked for {b} because", ("felt lonely", "had some news"), ("was lost", "was hiding somewhere")),
    Reason("{a} {v} and {b} {w}, and the {x} was safe because", ("{v}",), ("{w}",)),
    Reason("{a} {v} while {b} {w}. The day was good because", ("{v}",), ("{w}",)),
    Reason("As {a} {v} the others saw that {b} {w}. They laughed because", ("{v}",), ("{w}",)),
)
OBJECT_VERBS = ("shines", "leaks", "floats", "sinks", "glows", "bends", "rattles", "creaks", "rolls", "rusts")
PEOPLE_VERBS = ("sings", "dances", "sleeps", "runs", "cooks", "reads", "waits", "laughs", "swims", "paints")
