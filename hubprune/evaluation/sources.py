"""What stands behind benchmarks: the files that define tasks, and the data sets that these read.

lm-eval passes over a file that it cannot read, and then there is no such task; over one that nests too deep its parser
ends the process.  Here a broken file is told from a missing one, and what is read of a task before its data has a type
that it may have.  Of a data set is told whether it can be had, and at which commit it was read.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.core.amounts import shown
from hubprune.core.errors import EvaluationError
from hubprune.core.extras import client_library
from hubprune.core.files import existing_folder
from hubprune.core.strict import TaggedText, parse_yaml, refuse_depth

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo

FILE_FORMATS = frozenset({"arrow", "csv", "hdf5", "json", "pandas", "parquet", "text", "webdataset", "xml"})
"""Names that `load_dataset` takes for the format of files instead of for a repo."""
TIMEOUT_SECONDS = 10.0
ATTEMPTS = 3
LONGEST_WAIT_SECONDS = 4.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_COMMIT_FOLDER = re.compile(r"[\\/]([0-9a-f]{40})[\\/][^\\/]+$")
UNPICKLING = frozenset({"pandas", "webdataset"})
"""Formats of files whose reader in `datasets` unpickles, or has done so."""
TEXTS = (
    "dataset_path", "dataset_name", "training_split", "validation_split", "test_split", "fewshot_split", "output_type",
    "description", "target_delimiter", "fewshot_delimiter",
)  # fmt: skip
LM_EVAL_TOKENS = 256
"""Tokens that lm-eval lets a model write where a task does not say."""
KINDS: Mapping[type, str] = {str: "text", dict: "mapping", list: "list", int: "whole number"}


class _DeadlyFileError(EvaluationError):
    """A file that lm-eval would never come back from."""


def read_task_file(path: Path) -> dict[str, Any]:
    """Read one file without what it includes; calls of Python functions are texts with a tag.

    Raises:
        EvaluationError: it cannot be read, is no mapping, or has a key twice.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise _DeadlyFileError(f"Cannot read {path}: it is a pipe or a device.")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise EvaluationError(f"Cannot read {path}: {getattr(error, 'strerror', error)}.") from error
    refuse_depth(data, where=str(path), error=_DeadlyFileError)
    values = parse_yaml(data, where=str(path), error=EvaluationError, tags=True)
    if not isinstance(values, dict):
        raise EvaluationError(f"{path} holds no mapping, so it defines no benchmark.")
    return values


def includes_of(values: Mapping[str, Any], *, where: Path) -> tuple[str, ...]:
    """List the names of the files that a file includes.

    Raises:
        EvaluationError: they are no names.
    """
    given = values.get("include")
    names = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(name, str) for name in names):
        raise EvaluationError(f"{where} includes something that is no name of a file.")
    return tuple(names)


def broken_files(folder: Path) -> dict[Path, EvaluationError]:
    """Read every task file below a folder with what it includes, and return those that cannot be read, and why.

    Raises:
        EvaluationError: lm-eval would never come back from one: it is a pipe, or nests too deep for its parser.
    """
    broken: dict[Path, EvaluationError] = {}
    for path in sorted(folder.rglob("*.yaml")):
        try:
            _read_all(path.resolve(), above=())
        except _DeadlyFileError:
            raise
        except EvaluationError as error:
            broken[path.resolve()] = error
    return broken


def _read_all(path: Path, *, above: tuple[Path, ...]) -> None:
    if path in above:
        raise EvaluationError(f"{path} includes itself, by way of {above[-1].name}.")
    values = read_task_file(path)
    for key in {"task", "group", "tag"} & values.keys():
        given = values[key]
        # lm-eval sorts names, and cannot sort numbers among them; the members of a group are looked up, never sorted.
        names = given if isinstance(given, list) and key == "tag" else [] if isinstance(given, list) else [given]
        if odd := [name for name in names if not isinstance(name, str) and (name is not None or key != "tag")]:
            message = f"{path} has a {key} that is no text: {shown(odd[0])}."
            raise _DeadlyFileError(message, hint="Put it in quotes.")
    for name in includes_of(values, where=path):
        try:
            _read_all((path.parent / name).resolve(), above=(*above, path))
        except EvaluationError as error:
            raise type(error)(f"{path} includes {name}: {error.message}") from error


def calls_python(value: Any) -> bool:
    """Tell whether a value of a task file has a tag, such as `!function`, anywhere in it."""
    if isinstance(value, dict):
        return any(calls_python(item) for pair in value.items() for item in pair)
    return any(map(calls_python, value)) if isinstance(value, (list, tuple, set)) else isinstance(value, TaggedText)


def refuse_misfit(name: str, config: Mapping[str, Any]) -> None:
    """Make sure that the config of a task, includes merged in, has values of the types that are read of it.

    Raises:
        EvaluationError: naming the task, the key and the type; or it reads its data with a loader that unpickles.
    """
    for key in TEXTS:
        _expect(name, key, config.get(key), str)
    kwargs = config.get("dataset_kwargs")
    _expect(name, "dataset_kwargs", kwargs, dict)
    _expect(name, "dataset_kwargs.data_dir", (kwargs or {}).get("data_dir"), str)
    _expect(name, "num_fewshot", config.get("num_fewshot"), int)
    _expect(name, "metric_list", config.get("metric_list"), list)
    for row in config.get("metric_list") or ():
        if not isinstance(row, dict) or not isinstance(row.get("metric"), str):
            raise EvaluationError(f"The benchmark {name} has a metric in metric_list without a name: {shown(row)}.")
    _expect(name, "generation_kwargs", config.get("generation_kwargs"), dict)
    if config.get("dataset_path") in UNPICKLING:
        message = f"The benchmark {name} reads {config['dataset_path']} files, which are unpickled, and that runs code."
        raise EvaluationError(message, hint="Write the rows as json, csv or parquet.")
    if "\0" in "".join(_strings([config.get(key) for key in (*TEXTS, "dataset_kwargs")])):
        raise EvaluationError(f"The benchmark {name} names data with a NUL character, which no file has.")


def _expect(name: str, key: str, value: Any, kind: type) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is not None and not (is_count if kind is int else isinstance(value, kind)):
        raise EvaluationError(f"The benchmark {name} has a {key} that is no {KINDS[kind]}: {shown(value)}.")


def new_tokens(kwargs: Mapping[str, Any]) -> int:
    """Return how many tokens a model may write by the `generation_kwargs` of a task, which lm-eval spells in 4 ways."""
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    return next((given for name in names if isinstance(given := kwargs.get(name), int)), LM_EVAL_TOKENS)


@dataclass(frozen=True)
class DataSource:
    """Where a task's documents come from, as its YAML says it."""

    task: str
    dataset: str
    """Id on the Hub, local folder, or file format."""
    files: tuple[str, ...] = ()
    """Data files that the YAML names: local paths, patterns or addresses; of a folder alone, the folder."""
    configs: tuple[str, ...] = ()
    """Configs of the data set that are read, where the YAML names any; 57 of them for mmlu."""

    @property
    def name(self) -> str:
        """What tells it from every other source: the data set, and the files where the YAML names some."""
        return f"{self.dataset}: {', '.join(self.files)}" if self.files else self.dataset

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> DataSource | None:
        """Read the source from a task's config; None where code makes the documents."""
        if config.get("class"):
            config = {**config, **_of_class(str(config["class"]))}
        dataset = config.get("dataset_path")
        if not isinstance(dataset, str) or not dataset:
            return None
        kwargs = config.get("dataset_kwargs") or {}
        folder, named = kwargs.get("data_dir"), tuple(_strings(kwargs.get("data_files")))
        files = (f if "://" in f else str(Path(folder or "", f)) for f in named)
        configs = tuple(_strings(config.get("dataset_name")))
        return cls(str(config.get("task")), dataset, tuple(files) or tuple(_strings(folder)), configs)


def _of_class(name: str) -> dict[str, str]:
    """Read the data set out of the class of a task, which is a file's path and its name: `/folder/task.Name`."""
    path, _, kind = name.rpartition(".")
    try:
        body = ast.parse(Path(f"{path}.py").read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return {}  # lm-eval says itself what is wrong with it
    statements = (line for node in body if isinstance(node, ast.ClassDef) and node.name == kind for line in node.body)
    found: dict[str, str] = {}
    for line in statements:
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str):
            found |= {target.id.lower(): line.value.value for target in line.targets if isinstance(target, ast.Name)}
    return {key: found[key] for key in ("dataset_path", "dataset_name") if key in found}


def merge(sources: Iterable[DataSource]) -> tuple[DataSource, ...]:
    """List each data set once, with all configs that are read of it."""
    found: dict[tuple[str, tuple[str, ...]], DataSource] = {}
    for source in sources:
        known = found.setdefault((source.dataset, source.files), source)
        configs = tuple(dict.fromkeys((*known.configs, *source.configs)))
        found[source.dataset, source.files] = replace(known, configs=configs)
    return tuple(found.values())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)


def hub_id(dataset: str | None) -> str | None:
    """Name the Hub repo that lm-eval's `dataset_path` stands for; None for local folders and files."""
    return None if not dataset or dataset in FILE_FORMATS or existing_folder(dataset) else dataset


def commit_of(dataset: Any) -> str | None:
    """Name the commit at which a loaded Hub data set was read: 40 hex digits, or None for local files.

    `datasets` keeps the rows of each commit in a folder of that name, so this is what was read, offline as well.
    """
    splits = dataset.values() if isinstance(dataset, Mapping) else [dataset]
    files = [file["filename"] for split in splits for file in getattr(split, "cache_files", [])]
    return next((found[1] for file in files if (found := _COMMIT_FOLDER.search(file))), None)


def state_of(source: DataSource) -> str | None:
    """Find out without downloading anything whether a task's data set can be had, and in which state it is.

    Returns the commit on the Hub, None where the Hub does not answer and the data set is cached, or the sizes and times
    of local files, those below a folder included.

    Raises:
        EvaluationError: a local file is missing, or the Hub does not have the data set or a config of it, does not give
            it to this token, or does not answer while not all of it is cached.
    """
    if hub_id(source.dataset):
        return _state_on_hub(source)
    states = []
    for place in _places(source):
        paths = [] if "://" in place else list(_files_at(place))
        if not paths and "://" not in place:
            hint = f"It was looked for at {Path(place).absolute()}; relative paths start at the working directory."
            raise EvaluationError(f"The data file {place} of the benchmark {source.task} does not exist.", hint=hint)
        states += [f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in paths] or [place]
    return " ".join(states)


def is_commit(state: str | None) -> bool:
    """Tell whether a state from `state_of` is a commit on the Hub."""
    return state is not None and _COMMIT.fullmatch(state) is not None


def content_of(source: DataSource) -> str:
    """Compute the SHA-256, in 64 hex digits, over what a data set of local files holds.

    Unlike its state this is the same in every copy, since neither folders nor times are part of it.
    """
    digest = hashlib.sha256()
    for place in _places(source):
        for path in [] if "://" in place else _files_at(place):
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _places(source: DataSource) -> tuple[str, ...]:
    # The files that the YAML names in a folder are relative to it, and are among all of its files.
    return source.files if source.dataset in FILE_FORMATS else (source.dataset,)


def _files_at(place: str) -> Iterator[Path]:
    """Yield a file, or those below a folder, or those that a pattern fits."""
    path = Path(place)
    root = Path(path.anchor)
    below = path.rglob("*") if path.is_dir() else root.glob(str(path.relative_to(root)))
    yield from [path] if path.is_file() else sorted(p for p in below if p.is_file())


def _state_on_hub(source: DataSource) -> str | None:
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    named = f"The data set {source.dataset} of the benchmark {source.task}"
    try:
        info = _ask_hub(source.dataset)
    except GatedRepoError as error:
        page = f"https://hf.co/datasets/{source.dataset}"
        hint = f"Ask for access on the data set's page, {page}, or leave {source.task} out."
        raise EvaluationError(f"{named} is gated: this token has no access.", hint=hint) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        hint = f"Check its name and your login, or leave {source.task} out."
        raise EvaluationError(f"{named} does not exist, or this token may not see it.", hint=hint) from error
    except (OSError, client_library().HTTPError) as error:
        if missing := _not_cached(source):
            reason = f"{named} cannot be reached and {missing} not in the cache: {first_line(error)}"
            raise EvaluationError(reason, hint="Go online once, or leave this benchmark out.") from error
        return None
    # What follows `datasets` would refuse when it reads the data set, after everything else was computed.
    script = f"{source.dataset.split('/')[-1]}.py"
    if any(file.rfilename == script for file in info.siblings or ()):
        raise EvaluationError(f"{named} is read by a script, {script}, which datasets no longer runs.")
    declared = (info.card_data.get("configs") if info.card_data else None) or []
    names = [str(config.get("config_name", "default")) for config in declared if isinstance(config, dict)]
    if names and (absent := [config for config in source.configs if config not in names]):
        raise EvaluationError(f"{named} has no config {absent[0]}.", hint=f"It has: {', '.join(names)}.")
    return info.sha


def _ask_hub(dataset: str) -> DatasetInfo:
    """Read what a data set holds, and make sure that this token may read its files."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    api = HfApi()
    again = Retrying(
        # Such an answer may be another one in a second; without any connection, waiting is of no use.
        retry=retry_if_exception(
            lambda e: isinstance(e, HfHubHTTPError) and (e.response.status_code == 429 or e.response.status_code >= 500)
        ),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(max=LONGEST_WAIT_SECONDS),
        reraise=True,
    )
    info: DatasetInfo = again(api.dataset_info, dataset, timeout=TIMEOUT_SECONDS)
    if info.gated:
        again(api.auth_check, dataset, repo_type="dataset")
    return info


def _not_cached(source: DataSource) -> str | None:
    """Name what `datasets` does not hold of a data set, with its verb; None where it can go on without the Hub."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    *namespace, last = source.dataset.split("/")
    folder = Path(config.HF_DATASETS_CACHE, "___".join([*namespace, camelcase_to_snakecase(last)]))
    missing = []
    for name in source.configs or ("",):
        # A config that is read with settings of its own has a suffix; without a name, any will do.
        patterns = (escape(name), f"{escape(name)}-*") if name else ("*",)
        if not any(any(folder.glob(f"{pattern}/*/*/dataset_info.json")) for pattern in patterns):
            missing.append(name)
    if not missing:
        return None
    if len(missing) == len(source.configs or missing):
        return "is"
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return f"of its configs {', '.join(missing[:3])}{more} {'is' if len(missing) == 1 else 'are'}"


def first_line(error: Exception) -> str:
    """Shorten an error to its first line, or to its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
