"""Find lm-eval tasks by name in a fraction of a second, load them, and list the files of tasks of one's own.

`TaskManager()` parses some 14,000 YAML files, which takes over 8 s.  Here their `task:` and `group:` lines are read for
the folder of each name, and only the folders that a run needs are indexed.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from hubprune.core.amounts import shown
from hubprune.core.console import LARGEST, log_level
from hubprune.core.errors import EvaluationError, HubpruneError
from hubprune.core.files import existing_folder
from hubprune.core.recipe import EvaluationSpec
from hubprune.core.suites import SUITES
from hubprune.evaluation import packages, sources

OWN = Path(__file__).parent / "banking77"
"""The tasks that come with this package, beside those of lm-eval."""
_DEFINITION = re.compile(rb"^[\"']?(?:task|group)[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[]+)", re.MULTILINE)


@dataclass(frozen=True)
class Suite:
    """Loaded tasks, in the form that `lm_eval.evaluate` takes."""

    tasks: dict[str, Any]
    """Task objects by name, their documents loaded."""
    groups: dict[str, Any]
    group_map: dict[str, list[str]]
    requested: dict[str, tuple[str, ...]]
    """Each requested name, in order, and the tasks it stands for: itself, or the members of a group or tag."""

    def task_dict(self) -> dict[str, Any]:
        """Put tasks and groups together as lm-eval's own `TaskDict`."""
        return {"tasks": self.tasks, "groups": self.groups, "group_map": self.group_map}


def find_tasks(spec: EvaluationSpec) -> Any:
    """Index the tasks of a spec and nothing else; no data set is read.

    Returns lm-eval's `TaskManager`.  Tasks under `include_path` come before stock ones of the same name.

    Raises:
        EvaluationError: a name is unknown, the include path is no folder, a file of a task there is broken, a task runs
            generated code, unpickles data or needs more than text, or it cannot be shown as many examples as the spec
            says.
    """
    if spec.include_path is not None and not existing_folder(spec.include_path):
        raise EvaluationError(f"There is no folder {spec.include_path}.", hint="Check --include-path.")
    broken = sources.broken_files(Path(spec.include_path)) if spec.include_path and spec.tasks else {}
    with log_level("lm_eval.tasks", logging.ERROR):
        manager = _index(spec, broken)
        if any(name not in manager.task_index and _is_mentioned(name) for name in spec.tasks):
            manager = _manager(broken, include_path=spec.include_path)  # a tag: its members may be anywhere
    # A file that cannot be read, or could be read in two ways, may be the one of a name that is not found.
    unknown = [name for name in spec.tasks if name not in manager.task_index]
    ours = [path.resolve() for path in task_paths(manager, spec.tasks)]
    ours += [p for p in broken if unknown and p.is_file() and any(n.encode() in p.read_bytes() for n in unknown)]
    if error := next((broken[path] for path in ours if path in broken), None):
        raise error
    if unknown:
        raise _unknown(unknown[0], spec, manager.task_index, broken)
    for name, entry in _walk(manager.task_index, spec.tasks):
        config = (entry.cfg or {}) if entry else {}
        if entry is not None and entry.kind.name == "TASK":
            sources.refuse_misfit(name, config)
        if config.get("unsafe_code"):
            raise EvaluationError(f"The benchmark {name} runs code that the model wrote, which hubprune never does.")
        if config.get("doc_to_image") or config.get("doc_to_audio"):
            raise EvaluationError(f"The benchmark {name} needs images or audio, and the base reads text.")
    _refuse_examples(spec, manager.task_index)
    return manager


def _index(spec: EvaluationSpec, broken: Mapping[Path, EvaluationError]) -> Any:
    """Index the folders of the requested names, then of what their groups name, until nothing is missing."""
    include = [spec.include_path] if spec.include_path else []
    folders: set[Path] = set()
    while True:
        # Folders inside others are left out, since lm-eval looks into subfolders itself.
        outermost = sorted(folder for folder in folders if not folders.intersection(folder.parents))
        manager = _manager(broken, include_path=[*outermost, *include], include_defaults=False)
        missing = {name for name, entry in _walk(manager.task_index, spec.tasks) if entry is None}
        new = {folder for name in missing if (folder := stock_folder(name))} - folders
        if not new:
            return manager
        folders |= new


def _manager(broken: Mapping[Path, EvaluationError], **options: Any) -> Any:
    """Make lm-eval's index, which fails over some of the files that are read otherwise here, or not at all."""
    from lm_eval.tasks import TaskManager

    try:
        return TaskManager(**options)
    except Exception as error:
        own = EvaluationError(f"lm-eval cannot read the files of tasks: {sources.first_line(error)}.")
        raise next(iter(broken.values()), own) from error


def stock_folder(name: str) -> Path | None:
    """Return the folder of a task or group that lm-eval or this package ships, None if there is none.

    Folders that are called as its name begins are looked through first: no name is defined twice.
    """
    near = (defined for top, defined in _top_folders() if name.startswith(top.name))
    return next((found for defined in near if (found := defined().get(name))), None) or stock_folders().get(name)


@cache
def _top_folders() -> tuple[tuple[Path, Callable[[], Mapping[str, Path]]], ...]:
    """List the folders of tasks, each with what tells where in it a name is defined."""
    folders = [OWN, *sorted(path for path in _stock().iterdir() if path.is_dir())]
    return tuple((folder, cache(partial(_defined_in, folder))) for folder in folders)


@cache
def stock_folders() -> Mapping[str, Path]:
    """Map every task and group that lm-eval and this package ship to the folder of its YAML file."""
    return {**_defined_in(_stock()), **own_tasks()}


@cache
def own_tasks() -> Mapping[str, Path]:
    """Map every task that comes with this package to the folder of its YAML file."""
    return _defined_in(OWN)


def _defined_in(folder: Path) -> Mapping[str, Path]:
    folders: dict[str, Path] = {}
    for path in sorted(_files(folder, suffix=".yaml"), key=Path.as_posix):
        for name in _DEFINITION.findall(path.read_bytes()):
            folders.setdefault(name.decode(), path.parent)
    return folders


def _stock() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


def _files(folder: Path, *, suffix: str) -> Iterator[Path]:
    # os.walk takes a third of the time of Path.rglob.
    for inside, _, names in os.walk(folder):
        yield from (Path(inside, name) for name in names if name.endswith(suffix))


@cache
def _is_mentioned(name: str) -> bool:
    """Tell whether a name occurs anywhere in the YAML files: only then can it be a tag."""
    return any(name.encode() in path.read_bytes() for path in _files(_stock(), suffix="yaml"))


def _walk(index: Mapping[str, Any], names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield names and everything below them with their index entries; None for a name that is not in the index."""
    stack, seen = list(reversed(list(names))), set()
    while stack:
        if (name := stack.pop()) not in seen:
            seen.add(name)
            entry = index.get(name)
            yield name, entry
            if entry and entry.kind.name == "TAG":
                stack.extend(sorted(entry.tags, reverse=True))
            elif entry and entry.kind.name == "GROUP":
                stack.extend(reversed(list(_member_names(entry.cfg.get("task")))))


def _member_names(items: Any) -> Iterator[str]:
    """Yield the names in a group's list; a member is a name, a task with changes, or a group written in place."""
    for item in items if isinstance(items, list) else ():
        if isinstance(item, str):
            yield item
        elif not isinstance(item, dict):
            raise EvaluationError(f"A group of benchmarks has a member that is no name: {shown(item)}.")
        elif isinstance(item.get("task"), list):
            yield from _member_names(item["task"])
        else:
            member = item.get("group") or item.get("task")
            yield member if isinstance(member, str) else shown(member)


def _unknown(name: str, spec: EvaluationSpec, index: Mapping[str, Any], broken: Mapping[Path, Any]) -> EvaluationError:
    near = difflib.get_close_matches(name, {*stock_folders(), *index, *SUITES}, n=3)
    places = f"lm-eval's own tasks or in {spec.include_path}" if spec.include_path else "lm-eval's own tasks"
    own = f"Suites: {', '.join(SUITES)}."
    own += "" if spec.include_path else " For tasks of your own, pass --include-path FOLDER."
    own += f" Not read: {next(iter(broken.values())).message}" if broken else ""
    hint = f"Did you mean {' or '.join(near)}? {own}" if near else own
    return EvaluationError(f"There is no benchmark {name} in {places}.", hint=hint)


def _refuse_examples(spec: EvaluationSpec, index: Mapping[str, Any]) -> None:
    """Refuse examples where lm-eval defines a task without any, and two numbers of them for one task."""
    asked: dict[str, int | None] = {}
    for name in spec.tasks:
        number = spec.num_fewshot.get(name)
        for task, config in _tasks_below(index, name):
            if number and config.get("num_fewshot") == 0:
                hint = f"Pass --num-fewshot {name}=0, or leave {name} out."
                raise EvaluationError(f"lm-eval defines the benchmark {task} without examples.", hint=hint)
            if asked.setdefault(task, number) != number:
                words = ("its own number of" if n is None else str(n) for n in (asked[task], number))
                message = f"The benchmark {task} is asked for twice, with {' and with '.join(words)} examples."
                raise EvaluationError(message, hint=f"Leave {name} out, or pass one --num-fewshot for all tasks.")


def _tasks_below(index: Mapping[str, Any], *names: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the tasks that names stand for, with their configs."""
    for task, entry in _walk(index, names):
        if entry is not None and entry.kind.name in ("TASK", "PY_TASK"):
            yield task, entry.cfg or {}


def refuse_missing(manager: Any, names: Iterable[str]) -> None:
    """Make sure that the packages are there which the code of the given tasks and groups imports.

    Raises:
        MissingDependencyError: naming what is missing, and the line that brings it.
    """
    for name in names:
        packages.refuse_missing(_tasks_below(manager.task_index, name), of=name)


def refuse_long(manager: Any, names: Iterable[str], *, positions: int) -> None:
    """Make sure that a model of so many positions has room for what tasks let it write.

    Raises:
        EvaluationError: it has not, for any prompt.
    """
    for name in names:
        for task, config in _tasks_below(manager.task_index, name):
            if config.get("output_type") != "generate_until":
                continue
            if (tokens := sources.new_tokens(config.get("generation_kwargs") or {})) >= positions:
                message = f"The benchmark {task} lets the model write {tokens} tokens, and it has {positions} positions"
                hint = f"Leave {name} out, or write a task file with fewer max_gen_toks."
                raise EvaluationError(f"{message} in all.", hint=hint)


def data_sources(manager: Any, names: Iterable[str]) -> tuple[sources.DataSource, ...]:
    """List where the tasks below the given names take their documents from; each data set once."""
    configs = (config for _, config in _tasks_below(manager.task_index, *names))
    return sources.merge(source for config in configs if (source := sources.DataSource.of_config(config)))


def local_data(spec: EvaluationSpec) -> list[tuple[str, str]]:
    """List the data sets of a spec that are made of local files: their names without folders, and the SHA-256."""
    local = [source for source in data_sources(find_tasks(spec), spec.tasks) if not sources.hub_id(source.dataset)]
    names = [", ".join(Path(place).name for place in source.files or (source.dataset,)) for source in local]
    return list(zip(names, map(sources.content_of, local), strict=True))


def task_paths(manager: Any, names: Iterable[str]) -> tuple[Path, ...]:
    """List the YAML files of the given tasks and groups and of everything below them."""
    return tuple(entry.yaml_path for _, entry in _walk(manager.task_index, names) if entry and entry.yaml_path)


def load_tasks(spec: EvaluationSpec) -> Suite:
    """Load the tasks of a spec with their documents.

    Raises:
        EvaluationError: a name is unknown, or a task or its data set cannot be loaded.
    """
    manager = find_tasks(spec)
    suite = Suite({}, {}, {}, {})
    for name in spec.tasks:
        try:
            with log_level("lm_eval.config.task", logging.ERROR):  # that a task leaves its settings to lm-eval
                loaded = manager.load([name])
        except HubpruneError:
            raise
        except Exception as error:  # whatever lm-eval, its templates or `datasets` make of a task and its rows
            datasets = ", ".join(sorted({s.dataset for s in data_sources(manager, [name])})) or "made by its own code"
            message = f"Cannot load the benchmark {name} (data set: {datasets}): {sources.first_line(error)}"
            raise EvaluationError(message) from error
        suite.tasks.update(loaded["tasks"])
        suite.groups.update(loaded.get("groups", {}))
        suite.group_map.update(loaded.get("group_map", {}))
        suite.requested[name] = tuple(loaded["tasks"])
        for task in loaded["tasks"].values():
            shots = spec.num_fewshot.get(name, task.get_config("num_fewshot") or 0)
            task.set_config(key="num_fewshot", value=shots)
            task.aggregation = partial(_bounded, task.aggregation)
            for step in ("build_all_requests", "process_results"):
                setattr(task, step, partial(_as_written, task.task_name, getattr(task, step)))
    return suite


def _as_written(name: str, step: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Take a step of a task that runs its templates and code, and tell of whatever these raise."""
    try:
        return step(*args, **kwargs)
    except HubpruneError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {sources.first_line(error)}"
        raise EvaluationError(f"The benchmark {name} cannot be run as it is written: {reason}") from error


class BoundedAggregation:
    """lm-eval's way to make one number of many, with `LARGEST` for one that is larger.

    The perplexity of a ruined model is more than a float holds, and that is a result.  lm-eval looks up how to find the
    standard error by the function, so this one is equal to what it stands for.
    """

    def __init__(self, function: Callable[[Sequence[Any]], Any]) -> None:
        self._function = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def __call__(self, values: Sequence[Any]) -> Any:
        """Make one number of many, `LARGEST` at most."""
        try:
            found = self._function(values)
        except OverflowError:
            return LARGEST
        return min(found, LARGEST) if isinstance(found, float) else found  # NaN stays NaN

    def __eq__(self, other: object) -> bool:
        return bool(self._function == getattr(other, "_function", other))

    def __hash__(self) -> int:
        return hash(self._function)


def _bounded(aggregation: Callable[[], Mapping[str, Any]]) -> dict[str, BoundedAggregation]:
    return {metric: BoundedAggregation(function) for metric, function in aggregation().items()}


def task_files(spec: EvaluationSpec) -> dict[str, Path]:
    """Find the files under `include_path` that the tasks of a spec are made of, and no others.

    Returns the YAML of each task and group, of members too, and what those files include, as paths relative to the
    folder, with slashes, and as absolute ones; nothing without an `include_path`.

    Raises:
        EvaluationError: a task is unknown or unfit, or its files reach outside the folder or call Python functions, so
            that they would mean something else, or nothing, elsewhere.
    """
    found: dict[str, Path] = {}
    if spec.include_path is not None and spec.tasks:
        folder = Path(spec.include_path)
        for path in task_paths(find_tasks(spec), spec.tasks):
            if path.is_relative_to(folder):
                _collect(path, folder.resolve(), found)
    return found


def _collect(path: Path, folder: Path, found: dict[str, Path]) -> None:
    """Add a file and what it includes; lm-eval follows links first, and then starts at a file's own folder."""
    file = path.resolve()
    if not file.is_relative_to(folder):
        hint = "Copy it there, or leave out the task that it belongs to."
        raise EvaluationError(f"The benchmark file {file} lies outside of {folder}.", hint=hint)
    name = file.relative_to(folder).as_posix()
    if name not in found:
        found[name] = file
        values = sources.read_task_file(file)
        if sources.calls_python(values):  # however it writes `!function`
            message = f"The benchmark file {file} calls Python functions, and such tasks cannot be published."
            raise EvaluationError(message, hint="Write it without !function, or bring the task into lm-eval.")
        names = sources.includes_of(values, where=file)
        if absolute := next((name for name in names if Path(name).is_absolute()), None):
            message = f"The benchmark file {file} includes {absolute}, a path of this machine alone."
            raise EvaluationError(message, hint="Write the path relative to the file that includes it.")
        for include in names:
            _collect(file.parent / include, folder, found)
