"""The recipe: everything that decides a publish, as frozen values that go to YAML and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from hubprune.core.amounts import MOST, Count, Number
from hubprune.core.artifacts import Aggregation, EvalBackend, LayoutChoice, Loop, Method, Metric, Schedule
from hubprune.core.editing import first_problem, first_problem_in, schema_of
from hubprune.core.errors import RecipeError
from hubprune.core.prompts import PACKAGE_PROMPTS, read_prompts
from hubprune.core.specs import Adopted, DropSpec, HealSpec, QuantizationSpec, Settings, WidthSpec
from hubprune.core.strict import parse_yaml
from hubprune.core.suites import DEFAULT_SUITE, SUITES, expand

REPO_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
LONGEST_NAME = 96
"""Characters that the Hub allows for a namespace, and as many for a name in it."""
MEAN = "mean"
"""Name, in a regression budget, of the mean change over all tasks."""
LOOPS, REPETITION = "loops", "repetition"
"""Names, in a regression budget, of the share of free texts that end in a loop, and of seq-rep-4."""
TEXT_BUDGETS: Mapping[str, int] = {LOOPS: Loop.MIN_TOKENS, REPETITION: 5}
"""What of the free text may have a budget -> tokens from which on a text can show it."""
DEFAULT_TASKS = tuple(SUITES[DEFAULT_SUITE])

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
GgufType = Annotated[str, Field(pattern=r"^[a-z0-9_]{2,12}$")]
"""Type of the matrices in a GGUF file, as llama.cpp calls it."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Revision = Annotated[str, Field(min_length=1, max_length=250)]
"""A branch, a tag or a commit, no longer than the name of a file, which git keeps it in."""
AnySettings = TypeVar("AnySettings", bound=Settings)


class BaseModelSpec(Settings):
    """Which base."""

    repo_id: str
    """Repo id on the Hub, or a local folder (not for publishing)."""
    revision: Revision = "main"
    """Branch, tag or commit of the base; resolved to a commit before anything else happens."""

    @classmethod
    def of(cls, repo_id: str, *, revision: str) -> BaseModelSpec:
        """Name a repo or folder as a user wrote it.

        Raises:
            RecipeError: the revision is none.
        """
        return parse(cls, {"repo_id": repo_id, "revision": revision})


def _by_name(value: Any) -> Any:
    return {"repo_id": value} if isinstance(value, str) else value


class CalibrationSubset(Settings):
    """One weighted part of a calibration mix."""

    dataset: str
    """Data set id on the Hub, or the path of a local .jsonl, .parquet or .txt file."""
    config: str | None = None
    revision: Revision | None = None
    """Branch, tag or commit of the data set; None for its main branch.  A published recipe names the commit."""
    file: str | None = None
    """Path of one file in the data set's repo that is read by itself; None for the files that its config names."""
    split: str = "train"
    """Name of the split; what is one file has one split, `train`."""
    column: str | Annotated[tuple[str, ...], Field(min_length=1)] = "text"
    """Column that holds the document, or several whose texts are joined by blank lines."""
    weight: Annotated[float, Number] = Field(gt=0, le=1e12)
    """Relative weight; weights need not add to 1."""

    @model_validator(mode="after")
    def _names_one_place(self) -> CalibrationSubset:
        if self.config is not None and self.file is not None:
            raise ValueError(f"a subset of {self.dataset} names a config and a file: it can be one of both")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold a document."""
        return (self.column,) if isinstance(self.column, str) else self.column

    @property
    def label(self) -> str:
        """Short name: the config where there is one, else the data set."""
        return self.config or self.dataset


class CalibrationMix(Settings):
    """A weighted mix of documents."""

    name: str
    subsets: tuple[CalibrationSubset, ...] = Field(min_length=1)
    num_samples: Count = 400
    """Documents in all, or sequences where they are packed."""
    max_tokens: Annotated[Count, Field(ge=2)] = 512
    """Tokens after which a document is cut off, or the exact length of a packed sequence."""
    packed: bool = False
    """Whether documents are joined and cut into sequences of one length, instead of each being cut off by itself."""
    chat_template: bool = False
    """Whether each document is what the chat template of the base makes of it: of a text as what a user says, of
    messages, or of the columns prompt and completion, as these turns."""
    shuffle_buffer: Count = 1000
    """Documents that the streaming shuffle holds at a time; the choice of documents depends on it."""

    @property
    def plain(self) -> CalibrationMix:
        """The same documents without any chat template."""
        return self.model_copy(update={"chat_template": False})

    def counts(self) -> tuple[int, ...]:
        """Samples per subset: largest-remainder rounding of the weights, so that they add up to `num_samples`."""
        total = sum(s.weight for s in self.subsets)
        shares = [self.num_samples * s.weight / total for s in self.subsets]
        # The epsilon keeps 0.15 * 400 = 59.99999999999999 from losing a document to floating point.
        counts = [int(share + 1e-9) for share in shares]
        by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
        for i in by_remainder[: self.num_samples - sum(counts)]:
            counts[i] += 1
        return tuple(counts)


class EvaluationSpec(Settings):
    """Which benchmarks and which free text."""

    tasks: tuple[str, ...] = DEFAULT_TASKS
    """lm-eval task names; names of suites may be given among them, and the tasks of these take their place."""
    num_fewshot: dict[str, Annotated[int, Number, Field(ge=0, le=MOST)]] = Field(default_factory=dict)
    """Task -> examples before each question; lm-eval's own number for tasks that are not named.  A number alone may be
    given for all tasks."""
    limit: Count | None = None
    """Documents per task at most."""
    include_path: str | None = None
    """Folder with task YAMLs of one's own."""
    batch_size: Count | None = None
    """Sequences that are read at once; None for as many as fit into memory."""
    backend: EvalBackend = "shared"
    """What computes log-likelihoods."""
    apply_chat_template: bool | None = None
    """Whether benchmarks, free text and the code of the card ask through the chat template of the base: all of them, or
    none; None for all but the benchmarks, where it has one."""
    prompts: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None = None
    """Prompts for the free text; None for the shipped ones."""
    max_new_tokens: Count = 128
    max_loss: dict[str, Annotated[float, Number, Field(ge=0)]] = Field(default_factory=dict)
    """The regression budget: task, or `mean` for the mean of all -> points that the result may lose at most; `loops`,
    or `repetition` -> points that the share of free texts that end in a loop, or the mean share of sequences of four
    tokens that a text had before, may rise.  What is over it is not published."""

    @model_validator(mode="before")
    @classmethod
    def _suites_are_their_tasks(cls, values: Any) -> Any:
        names = values.get("tasks", (DEFAULT_SUITE,)) if isinstance(values, dict) else None
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            return values  # the fields themselves say what is wrong
        given = values.get("num_fewshot")
        if not isinstance(given, (dict, int, type(None))) or isinstance(given, bool):
            return values
        tasks, shots = expand(names, {} if given is None else given)
        return {**values, "tasks": tasks, "num_fewshot": shots}

    @model_validator(mode="after")
    def _examples_and_budget_are_for_its_tasks(self) -> EvaluationSpec:
        if other := [task for task in self.num_fewshot if task not in self.tasks]:
            tasks = ", ".join(self.tasks) or "none"
            raise ValueError(f"--num-fewshot names {other[0]}, which is not among the tasks: {tasks}")
        for name in {MEAN, *TEXT_BUDGETS}.intersection(self.tasks, self.max_loss):
            raise ValueError(f"--max-loss names {name}, which is a task and more: give the task another name")
        known = (*self.tasks, *((MEAN,) if self.tasks else ()), *TEXT_BUDGETS)
        if other := [name for name in self.max_loss if name not in known]:
            raise ValueError(f"--max-loss names {other[0]}, which is not measured: {', '.join(known)}")
        for name, least in TEXT_BUDGETS.items():
            if name in self.max_loss and (tokens := self.max_new_tokens) < least:
                why = f"which a text of {tokens} tokens cannot show: set max_new_tokens to {least} or more"
                raise ValueError(f"--max-loss names {name}, {why}")
        return self

    def prompt_texts(self) -> tuple[str, ...]:
        """The prompts in their order."""
        return self.prompts if self.prompts is not None else read_prompts(PACKAGE_PROMPTS)


class TargetSpec(Settings):
    """Where the result goes."""

    repo_id: str | None = None
    """None for `<your namespace>/<base>-attn-drop-<N>`."""
    revision: Revision = "main"
    """Branch that the commit goes to."""
    private: bool = False
    create_pr: bool = False
    """Open a pull request instead of committing to the branch."""
    staged: bool = False
    """Open a pull request, load the result back from there, and only then merge it into the branch."""
    license: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.+-]*$")
    """Licence id for a base whose card names none; never another than the card's."""
    allow_name: bool = False
    """Publish under a name that the licence of the base does not allow."""
    collection: str | None = Field(default=None, min_length=1)
    """Slug or title of a collection that the result is added to; one with that title is created where it is missing."""
    supersedes: str | None = None
    """Repo of which the result is a new version: a pull request there proposes to say so."""

    @field_validator("repo_id", "supersedes")
    @classmethod
    def _valid_repo_id(cls, value: str | None) -> str | None:
        if value is not None and not REPO_ID.fullmatch(value):
            raise ValueError(f"{value!r} is no repo id; it looks like namespace/name")
        if value is not None and (part := max(value.split("/"), key=len)) and len(part) > LONGEST_NAME:
            raise ValueError(f"the name {part} has {len(part)} characters, and the Hub allows {LONGEST_NAME}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> TargetSpec:
        if self.staged and self.create_pr:
            raise ValueError("--create-pr leaves the pull request open, and --staged merges it: pass one of them")
        if self.supersedes and "/" not in self.supersedes:
            raise ValueError(f"--supersedes {self.supersedes} names no namespace; it looks like namespace/name")
        if self.supersedes and self.supersedes == self.repo_id:
            raise ValueError(f"--supersedes {self.supersedes} is the target itself; a new version is another repo")
        if self.supersedes and self.private:
            raise ValueError("--supersedes would tell everybody of a result that is to be private")
        return self


class Recipe(Settings):
    """Everything that decides a publish, and which kind of device it runs on."""

    schema_version: Literal[1] = 1
    base: Annotated[BaseModelSpec, BeforeValidator(_by_name, json_schema_input_type=BaseModelSpec | str)]
    """Which base: its id alone, or with a revision."""
    drop: DropSpec = DropSpec()
    width: WidthSpec | None = None
    """How narrow the MLPs become; None for as wide as they are."""
    calibration: CalibrationMix
    adopted: Adopted | None = None
    """Who chose what goes, where that is taken over from what somebody else published."""
    layout: LayoutChoice = "auto"
    """How the result is written; `auto` takes what most runtimes can load."""
    metric: Metric = "cosine"
    """What sublayers are ranked by."""
    schedule: Schedule = "one-shot"
    """Whether everything goes by one set of scores, or one after the other with new scores in between."""
    aggregation: Aggregation = "document"
    score_batch_size: Count = 8
    """Documents per batch while scoring; it changes speed, not scores."""
    evaluation: EvaluationSpec = EvaluationSpec()
    target: TargetSpec = TargetSpec()
    heal: HealSpec | None = None
    """How it is healed, in a sibling repo; None for no such sibling."""
    quantize: QuantizationSpec | None = None
    """In how few bits it is published besides, as a sibling repo; None for no such sibling."""
    gguf: Annotated[tuple[GgufType, ...], Field(min_length=1)] | None = None
    """Types of the GGUF files that are published besides, in one sibling repo; None for no such sibling."""
    seed: Annotated[int, Number] = Field(default=0, ge=0, lt=2**32)
    """Of all that is drawn; NumPy takes 32 bits."""
    device: Device = "auto"
    dtype: Dtype = "auto"
    """dtype that scoring and benchmarks compute in; `auto` is the checkpoint's own.  Files are never cast."""

    @field_validator("gguf")
    @classmethod
    def _each_type_once(cls, types: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return tuple(dict.fromkeys(types)) if types else types

    @model_validator(mode="before")
    @classmethod
    def _a_target_is_of_losses(cls, values: Any) -> Any:
        """Rank by the loss where something is to be saved and no metric is named."""
        drop = values.get("drop") if isinstance(values, dict) else None
        wanted = drop.get("target") if isinstance(drop, Mapping) else getattr(drop, "target", None)
        return {**values, "metric": "loss"} if wanted and "metric" not in values else values

    @model_validator(mode="after")
    def _asks_for_something(self) -> Recipe:
        narrower = self.width is not None
        self.drop.refuse_beside(metric=self.metric, schedule=self.schedule, layout=self.layout, width=narrower)
        if self.drop.protect and not self.drop.methods and self.width is not None:
            raise ValueError("--protect keeps sublayers, and none is to be dropped: leave it out")
        if not self.drop.methods and self.width is None:
            raise ValueError(
                "nothing to drop was asked for: pass --attn-drop N, --mlp-drop N, --block-drop N, --joint-drop N, "
                "--attn-layers 18,21,22, --neuron-drop 60% or --target kv=-30%"
            )
        if self.metric == "angular" and (list(self.drop.amounts) != ["block"] or self.schedule != "one-shot"):
            raise ValueError(
                "--metric angular looks for one run of consecutive layers, which goes as a whole: pass --block-drop N "
                "to `hubprune prune` or `publish`, and no other drop by rank or schedule, or rank by another metric"
            )
        if self.schedule == "iterative" and not self.drop.amounts:
            raise ValueError(
                "--schedule iterative chooses by rank, round after round, and nothing is to be chosen: pass "
                "--attn-drop N, --mlp-drop N, --block-drop N or --joint-drop N, or leave it out"
            )
        return self

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that are asked for, in a fixed order."""
        narrower: tuple[Method, ...] = ("mlp-width",) if self.width else ()
        return (*self.drop.methods, *narrower)

    @property
    def alone(self) -> Recipe:
        """The same without what is published beside the result, which changes nothing of it."""
        return self.model_copy(update={"heal": None, "quantize": None, "gguf": None})

    @property
    def needs_scores(self) -> bool:
        """Whether something is chosen by what the calibration texts say."""
        return bool(self.drop.amounts or self.drop.target) and self.metric not in ("reverse-order", "random")

    @property
    def reads_texts(self) -> bool:
        """Whether its mix is read: something is chosen, trained or quantized by what it says."""
        return self.needs_scores or self.quantize is not None or self.heal is not None

    @property
    def default_name(self) -> str:
        """Name of the result where none is given: the base's own, then what was dropped."""
        parts = [self.base.repo_id.rstrip("/").split("/")[-1], *self.drop.name_parts]
        if self.drop.amounts:  # an ablation must not take the place of what it is compared with
            parts += [*([self.metric] if self.metric != "cosine" else [])]
            parts += [*([self.schedule] if self.schedule != "one-shot" else [])]
        return "-".join([*parts, *([self.width.name_part] if self.width else [])])

    def to_yaml(self) -> str:
        """Write the recipe as YAML, in the order of its fields and without fields that hold nothing."""
        values = self.model_dump(mode="json", exclude_none=True)
        text = str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        # PyYAML writes this line break as it is and reads it back as another one; escaped it survives.
        return text if "\x85" not in text else str(yaml.safe_dump(values, sort_keys=False))


def parse(kind: type[AnySettings], values: dict[str, Any]) -> AnySettings:
    """Validate values into a part of the recipe.

    Raises:
        RecipeError: the first thing that is wrong, with the place it was found at.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RecipeError(first_problem(error, kind)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        RecipeError: the file is missing, is no YAML, holds no mapping, or has a key twice.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise RecipeError(f"Cannot read {path}: {getattr(error, 'strerror', error)}.") from error
    values = parse_yaml(data, where=str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds no mapping of settings.")
    return values


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file; a relative `include_path` is taken from the file's own folder.

    Raises:
        RecipeError: the file cannot be read or has a value that cannot be used, with its line.
    """
    values = read_yaml(path)
    evaluation = values.get("evaluation")
    if isinstance(evaluation, dict) and isinstance(folder := evaluation.get("include_path"), str):
        values["evaluation"] = {**evaluation, "include_path": str(path.resolve().parent / folder)}
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(first_problem_in(path.read_bytes(), error, Recipe, where=str(path))) from error


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors."""
    schema = schema_of(Recipe, title="Recipe of hubprune")
    fields = schema["$defs"][EvaluationSpec.__name__]["properties"]
    for_each = fields["num_fewshot"]
    told = {key: for_each.pop(key) for key in ("description", "default") if key in for_each}
    fields["num_fewshot"] = {"anyOf": [for_each, {"type": "integer"}], **told}
    return schema
