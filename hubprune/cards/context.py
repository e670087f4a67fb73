"""What a card template sees: one frozen object in which every number is formatted already.

Text is raw here.  Templates escape it with the filter that fits the place, so that nothing is escaped twice or never.
A section that has no data is None.  The JSON schema of it all, for those who write templates of their own, lies beside
the templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar


class Described:
    """A value whose fields are described by the text below them, in its JSON schema too."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class Table(Described):
    """A table of raw text cells; every row has as many cells as there are columns."""

    columns: tuple[str, ...]
    align: str
    """One letter per column: l for text, r for numbers."""
    rows: tuple[tuple[str, ...], ...]
    links: Mapping[str, str] = field(default_factory=dict)
    """Text of a cell -> where it leads."""

    def __post_init__(self) -> None:
        widths = {len(self.columns), len(self.align), *map(len, self.rows)}
        if len(widths) != 1:
            raise ValueError(f"the table under {self.columns} is not rectangular: {sorted(widths)}")

    @property
    def rules(self) -> tuple[str, ...]:
        """The cells of the line below the header."""
        return tuple("---:" if a == "r" else "---" for a in self.align)


@dataclass(frozen=True, kw_only=True)
class Link(Described):
    """A name and where it leads."""

    name: str
    url: str | None = None


@dataclass(frozen=True, kw_only=True)
class Glance(Described):
    """What a reader asks for first."""

    table: Table
    verdict: tuple[str, ...]
    """What the measurements come to, by fixed rules."""


@dataclass(frozen=True, kw_only=True)
class CustomCode(Described):
    """The modeling file that ships with the model."""

    file: str
    sha256: str
    without: str
    """What kind of parts it leaves out."""
    shrinks_cache: bool
    """Whether these had a part of the KV cache."""


@dataclass(frozen=True, kw_only=True)
class Printed(Described):
    """What the snippet printed when it was run."""

    label: str
    text: str


@dataclass(frozen=True, kw_only=True)
class OtherRuntime(Described):
    """A runtime that ran the model and computed the same."""

    sentence: str
    """Which version, and how close it came."""
    command: str | None
    """Command line, the very text that was run; None where none was."""


@dataclass(frozen=True, kw_only=True)
class Usage(Described):
    """How to use the model."""

    snippet: str
    """Python code, the very text that was run where `printed` shows what came of it."""
    printed: Printed | None
    code: CustomCode | None
    runtimes: tuple[str, ...]
    """What the layout asks for, and what the files were run in."""
    others: tuple[OtherRuntime, ...]
    """The runtimes beside transformers that did run it; none that was not tried."""
    train: str | None = None
    """Python code that puts trainable adapters on the model."""
    quantize: str | None = None
    """Command that writes it in fewer bits."""


@dataclass(frozen=True, kw_only=True)
class VerificationSummary(Described):
    """What a fresh process saw."""

    sentence: str
    checks: Table


@dataclass(frozen=True, kw_only=True)
class Picture(Described):
    """A picture among the published files, and what it shows in words."""

    path: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Credit(Described):
    """Whose published choice the result follows."""

    source: Link
    """Their repo at its commit."""
    told: str
    """What was taken over, as the end of a sentence that begins with their name."""


@dataclass(frozen=True, kw_only=True)
class Removal(Described):
    """What was removed and why."""

    sentences: tuple[str, ...]
    credit: Credit | None
    """Who chose what went, where that is taken over."""
    methods: tuple[str, ...]
    """Which files of `methods/` tell what was done, as the recipe spells them."""
    metric: str
    """What the scores are, as the recipe spells it."""
    scores: Table | None
    picture: Picture | None
    score_notes: tuple[str, ...]
    verification: VerificationSummary


@dataclass(frozen=True, kw_only=True)
class Targeted(Described):
    """A saving that was asked for, and loss against saving of the base."""

    sentences: tuple[str, ...]
    """What was asked for and came of it, and what that lost: predicted and measured."""
    table: Table
    """The frontier."""
    notes: tuple[str, ...]
    picture: Picture | None


@dataclass(frozen=True, kw_only=True)
class Calibration(Described):
    """The texts that the scores were computed on."""

    sentence: str
    table: Table


@dataclass(frozen=True, kw_only=True)
class Long(Described):
    """Base and pruned behind prompts of thousands of tokens."""

    sentence: str
    table: Table


@dataclass(frozen=True, kw_only=True)
class Benchmarks(Described):
    """Base and pruned on the same documents."""

    sentences: tuple[str, ...]
    table: Table
    details: Table
    """The same rows: standard errors, relative change, documents, shots and chance."""
    picture: Picture | None
    notes: tuple[str, ...]
    """How the values were computed and the changes tested."""
    long: Long | None = None
    """The same intents after more and more examples; None where they were not asked for."""


@dataclass(frozen=True, kw_only=True)
class Pair(Described):
    """One prompt and what both models made of it."""

    number: int
    reason: str
    prompt: str
    base_label: str
    """Whose text it is, and how much of it is repetition."""
    base: str
    pruned_label: str
    pruned: str


@dataclass(frozen=True, kw_only=True)
class FreeText(Described):
    """Free text of both models."""

    sentences: tuple[str, ...]
    measures: Table | None
    notes: tuple[str, ...]
    """What the measures are."""
    rule: tuple[str, ...]
    """Which pairs are shown, and where the others are."""
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class Speed(Described):
    """Base and pruned timed in turns on one machine."""

    sentences: tuple[str, ...]
    """Where, and which shape."""
    table: Table
    memory: Table
    notes: tuple[str, ...]
    """What the columns are."""


@dataclass(frozen=True, kw_only=True)
class Reproduction(Described):
    """How to get the same files again."""

    check: str | None
    """Command that runs the published recipe again and says what is equal."""
    command: str
    """Command that publishes it again."""
    needs_tasks: bool
    """Whether the command reads task files that are published with the model."""
    refreshed: str | None
    """Which files a later version wrote anew, so that nothing here was measured with them; None where none did."""
    environment: Table
    seconds: Table | None


@dataclass(frozen=True, kw_only=True)
class Licence(Described):
    """Whose terms apply."""

    name: str | None
    """None where nobody names a licence."""
    sentences: tuple[str, ...]
    files: tuple[Link, ...]
    """Licence files that were copied from the base."""


@dataclass(frozen=True, kw_only=True)
class Beside(Described):
    """A repo that holds the same model otherwise."""

    link: Link
    told: str
    """What it holds, in some words."""


@dataclass(frozen=True, kw_only=True)
class CardContext(Described):
    """Everything that a card says."""

    front_matter: str
    """YAML without its markers."""
    title: str
    base: Link
    summary: str
    """The sentence after "This is <base> with "."""
    beside: tuple[Beside, ...]
    """The same model quantized, or for another runtime."""
    attribution: str | None
    """Line that the base's licence asks to be shown."""
    warnings: tuple[str, ...]
    """What a reader has to know before all else."""
    glance: Glance
    purpose: tuple[str, ...]
    """What the measurements speak for and against, by fixed rules."""
    usage: Usage
    removal: Removal
    target: Targeted | None
    """Where a saving was asked for instead of a number of drops."""
    calibration: Calibration | None
    benchmarks: Benchmarks | None
    speed: Speed | None
    free_text: FreeText | None
    limits: tuple[str, ...]
    """What the numbers warn of and what was not measured, by fixed rules."""
    notes: str | None
    """The author's own words: the one value that is Markdown already, checked to hold neither HTML nor scripts."""
    reproduction: Reproduction
    licence: Licence
    citations: tuple[str, ...]
    """BibTeX entries."""
    footer: str


@dataclass(frozen=True, kw_only=True)
class Made(Described):
    """How a sibling was made of the pruned model."""

    title: str
    sentences: tuple[str, ...]
    table: Table
    """What was done, or the files that were written."""
    folded: str
    """What stands over the table while it is folded."""
    calibration: Calibration | None
    """The texts that it was quantized with; None where that took none."""
    trained_on: Calibration | None = None
    """The texts that it was trained on."""
    picture: Picture | None = None
    """The course of a training."""
    verification: VerificationSummary | None
    """What was checked of the written files; None where the table says it."""


@dataclass(frozen=True, kw_only=True)
class Adding(Described):
    """What dropping and quantizing cost, each alone and both together, or how much of a loss came back."""

    title: str
    sentences: tuple[str, ...]
    table: Table
    verdict: str = ""
    """The same in a few words, for the top of the card."""


@dataclass(frozen=True, kw_only=True)
class SiblingContext(Described):
    """Everything that the card of a sibling says; what has the name of a part of other cards is shown as there."""

    front_matter: str
    title: str
    base: Link
    """The pruned model."""
    summary: str
    beside: tuple[Beside, ...]
    attribution: str | None
    warnings: tuple[str, ...]
    glance: Glance
    usage: Usage
    made: Made
    benchmarks: Benchmarks | None
    """Base and pruned model with this one, or each of both as it is and quantized."""
    adding: Adding | None
    free_text: FreeText | None
    limits: tuple[str, ...]
    reproduction: Reproduction
    licence: Licence
    citations: tuple[str, ...]
    footer: str


SCHEMA = "context.schema.json"
"""File among the card templates that holds the schema."""


def context_schema() -> str:
    """Write the JSON schema of the context, with what every field holds, as it is kept beside the templates."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(CardContext).json_schema(mode="serialization")
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
