"""The base on the Hub: which commit, which files, and how to get just those that are needed.

Of its weights the names and shapes are known before they are here.  Of data sets the Hub says which are benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.cards.front_matter import Tasks
from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import BaseCard, BaseCheckpoint, RepoFile
from hubprune.core.console import Reporter
from hubprune.core.errors import BaseNotFoundError, CheckpointError, GatedBaseError, RecipeError, UnsupportedFormatError
from hubprune.core.files import existing_folder, file_exists
from hubprune.core.privacy import is_carried, page
from hubprune.core.recipe import REPO_ID, BaseModelSpec
from hubprune.core.strict import parse_json, parse_yaml
from hubprune.hub.retry import REQUEST_SECONDS
from hubprune.hub.session import HubSession, is_publishers
from hubprune.hub.transfer import check_file, download

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.errors import GatedRepoError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"


# ---- resolve -----------------------------------------------------------------------------------------------------


def resolve_base(spec: BaseModelSpec, *, session: HubSession) -> BaseCheckpoint:
    """Find a base and read its config.json; no weights are touched.

    Args:
        spec: a repo id and a revision, or a local folder.  A folder is one that is written like a path, or that
            holds a config.json or an adapter.

    Raises:
        BaseNotFoundError: no such repo, revision or folder, or no config.json in it.
        GatedBaseError: access has to be asked for.
        UnsupportedArchitectureError: a family without an entry.
        UnsupportedFormatError: no safetensors.
    """
    folder = existing_folder(spec.repo_id)
    looks_local = spec.repo_id.startswith(("/", "~", ".")) or not REPO_ID.fullmatch(spec.repo_id)
    if folder is None and looks_local:
        hint = "A repo id looks like owner/name."
        raise BaseNotFoundError(f"{spec.repo_id} is neither a folder nor a repo id.", hint=hint)
    marked = folder is not None and any(file_exists(folder / name) for name in ("config.json", ADAPTER))
    if not (folder and (looks_local or marked)):
        return _supported(resolve_repo(spec, session=session))
    if not (folder / "config.json").is_file():
        raise _no_config(str(folder), [path.name for path in folder.iterdir()])
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    files = tuple(RepoFile(path=p.relative_to(folder).as_posix(), size=p.stat().st_size) for p in paths)
    config = _read_config(folder / "config.json", name=str(folder))
    folder = folder.resolve()
    return _supported(BaseCheckpoint(name=folder.name, commit=None, folder=str(folder), config=config, files=files))


def resolve_recorded(name: str, commit: str, *, session: HubSession) -> BaseCheckpoint:
    """Find the base that a result was made of, by the commit that the result names; never a folder of that name.

    Raises:
        BaseError, HubError: as `resolve_base`.
    """
    return _supported(resolve_repo(BaseModelSpec.of(name, revision=commit), session=session))


def _no_config(name: str, paths: Sequence[str]) -> BaseNotFoundError:
    if ADAPTER in paths:
        return BaseNotFoundError(
            f"{name} holds an adapter and no model: {ADAPTER} and no config.json.",
            hint="Merge it into its base first, with merge_and_unload() of peft, and prune what comes of it.",
        )
    gguf = any(path.endswith(".gguf") for path in paths)
    hint = "It holds GGUF files for llama.cpp: take the model that they were made of, which its card names."
    return BaseNotFoundError(
        f"{name} has no config.json, so it is no transformers model.", hint=hint if gguf else None
    )  # fmt: skip


def find_repo(name: str, *, revision: str | None, session: HubSession, needs_config: bool = True) -> BaseCheckpoint:
    """Find the model repo that a name stands for which is no folder here; all else is that of `resolve_repo`.

    Raises:
        BaseNotFoundError: it is no repo id, or there is no such repo or revision.
    """
    if not REPO_ID.fullmatch(name):
        raise BaseNotFoundError(f"{name} is neither a folder nor a repo id.", hint="A repo id looks like owner/name.")
    spec = BaseModelSpec.of(name, revision=revision or "main")
    return resolve_repo(spec, session=session, needs_config=needs_config)


def resolve_repo(spec: BaseModelSpec, *, session: HubSession, needs_config: bool = True) -> BaseCheckpoint:
    """Find a model repo, supported or not, and read its config.json, which may be missing where it is not needed.

    Raises:
        BaseNotFoundError: no such repo or revision, or no config.json in it.
        GatedBaseError: access has to be asked for.
        CheckpointError: the config.json in the cache is not the one of the commit.
    """
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    with _explained(spec, session=session):
        info = session.ask(
            lambda api: api.model_info(
                spec.repo_id, revision=spec.revision, files_metadata=True, timeout=REQUEST_SECONDS
            ), doing=f"look up {spec.repo_id}",
            passing=(RepositoryNotFoundError, RevisionNotFoundError, HFValidationError),
        )  # fmt: skip
    files = tuple(
        RepoFile(path=s.rfilename, size=s.size or 0, sha256=s.lfs.sha256 if s.lfs else None, git_oid=s.blob_id)
        for s in info.siblings or ()
    )
    listed = next((f for f in files if f.path == "config.json"), None)
    if listed is None and needs_config:
        raise _no_config(f"{spec.repo_id} at {spec.revision}", [file.path for file in files])
    # A gated repo tells everybody what it holds; only this tells whether its files may be read.
    with _explained(spec, session=session):
        doing, passing = f"read {spec.repo_id}", (RepositoryNotFoundError,)
        session.ask(lambda api: api.auth_check(spec.repo_id), doing=doing, passing=passing)
    commit, config = str(info.sha), dict[str, Any]()
    if listed is not None:
        doing = f"read config.json of {spec.repo_id}"
        at = session.ask(lambda api: api.hf_hub_download(spec.repo_id, "config.json", revision=commit), doing=doing)
        check_file(Path(at), listed, repo_id=spec.repo_id, commit=commit)
        config = dict(_read_config(Path(at), name=spec.repo_id))
    return BaseCheckpoint(
        name=spec.repo_id, commit=commit, private=bool(info.private), config=config, files=files, card=_card(info)
    )


@contextmanager
def _explained(spec: BaseModelSpec, *, session: HubSession) -> Iterator[None]:
    """Say why a repo cannot be read."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except HFValidationError as error:
        hint = "A repo id looks like owner/name, with at most 96 characters in each."
        raise BaseNotFoundError(f"{spec.repo_id} is no repo id, and no folder either.", hint=hint) from error
    except GatedRepoError as error:  # a subclass of RepositoryNotFoundError: it has to come first
        raise _gated(spec.repo_id, error, session=session) from error
    except RepositoryNotFoundError as error:
        raise _not_found(spec.repo_id, session=session) from error
    except RevisionNotFoundError as error:
        hint = "Pass a branch, a tag or a full commit id."
        raise BaseNotFoundError(f"{spec.repo_id} has no revision {spec.revision!r}.", hint=hint) from error


def _not_found(repo_id: str, *, session: HubSession) -> BaseNotFoundError:
    token = session.token
    if token is None:
        seen, then = "it is private: no token is set", "; for a private base run `hf auth login` first"
    elif is_publishers(token):
        seen, then = "this token may not see it", ". A trusted publisher's token sees public repos and its own"
    else:
        seen, then = "this token may not see it", ", and whose token it is with `hf auth whoami`"
    hint = f"Check the spelling{then}."
    return BaseNotFoundError(f"{session.endpoint} has no model {repo_id}, or {seen}.", hint=hint)


def _gated(repo_id: str, error: GatedRepoError, *, session: HubSession) -> GatedBaseError:
    token, page = session.token, f"{session.endpoint}/{repo_id}"
    if token is None:
        who, hint = "no token is set", f"Ask for access at {page}, then run `hf auth login`."
    elif is_publishers(token):
        who = "the token of a trusted publisher reads no gated repo"
        hint = "Run publish --dry-run --out FOLDER with a token that may, and send the folder with `hubprune push`."
    elif "fine-grained" in (error.server_message or ""):
        who = "this fine-grained token may not read gated repos"
        hint = f"Allow it to, at {session.endpoint}/settings/tokens."
    else:
        who, hint = "this token was not granted access", f"Ask for access at {page}."
    return GatedBaseError(f"{repo_id} is gated and {who}.", hint=hint)


def _card(info: ModelInfo) -> BaseCard:
    values: dict[str, Any] = dict(vars(info.card_data)) if info.card_data else {}
    language = values.get("language") or ()
    languages = (language,) if isinstance(language, str) else tuple(str(item) for item in language)
    texts = {key: str(values[key]) for key in ("license", "license_name", "license_link") if values.get(key)}
    return BaseCard(language=languages, **texts)


def _read_config(path: Path, *, name: str) -> dict[str, Any]:
    try:
        return parse_json(path.read_bytes(), where=f"config.json of {name}")
    except OSError as error:
        raise CheckpointError(f"config.json of {name} cannot be read: {error.strerror}.") from error


def _supported(base: BaseCheckpoint) -> BaseCheckpoint:
    """Return a base of a known family whose weights are safetensors."""
    architecture_of(base.config, name=base.name)
    require_safetensors(base, weight_files(base.files))
    return base


def require_safetensors(base: BaseCheckpoint, found: Sequence[RepoFile]) -> None:
    """Refuse a repo or folder in which no weights were found that can be read without running code.

    Raises:
        UnsupportedFormatError: its weights are in other files, or it has none.
    """
    if any(file.path.endswith(".safetensors") for file in found):
        return
    others = [f.path for f in base.files if f.path.endswith((".bin", ".pth", ".pt", ".gguf"))]
    if not others:
        raise UnsupportedFormatError(f"{base.name} has no model*.safetensors at its top level.")
    load = f"AutoModelForCausalLM.from_pretrained('{base.name if base.commit else 'FOLDER'}')"
    script = f"from transformers import AutoModelForCausalLM; {load}.save_pretrained('converted')"
    raise UnsupportedFormatError(
        f"{base.name} has no safetensors, only {others[0]}; files that can run code are never opened.",
        hint=f'Convert it where you trust it: python -c "{script}"',
    )


# ---- which files -------------------------------------------------------------------------------------------------


def weight_files(files: Iterable[RepoFile]) -> tuple[RepoFile, ...]:
    """Return the safetensors that transformers would load: never a `consolidated.safetensors` beside them."""
    top = [f for f in files if "/" not in f.path and f.path.endswith(".safetensors")]
    single = tuple(f for f in top if f.path == SINGLE)
    return single or tuple(f for f in top if fnmatch(f.path, "model-*-of-*.safetensors"))


def needed_files(base: BaseCheckpoint) -> tuple[RepoFile, ...]:
    """Return what a result is made of: weights and their index, config, tokenizer, templates, licence files."""
    weights = weight_files(base.files)
    index = INDEX if weights and weights[0].path != SINGLE else None
    keep = {f.path for f in weights} | {index, "config.json"}
    return tuple(f for f in base.files if f.path in keep or is_carried(f.path))


def download_base(base: BaseCheckpoint, *, session: HubSession, reporter: Reporter) -> BaseCheckpoint:
    """Fetch the needed files of a base at its commit, unless they are here, and return the base with its folder.

    Raises:
        CheckpointError: a file in the cache is not the one of the commit.
    """
    if base.folder is not None or base.commit is None:
        return base
    folder = download(needed_files(base), repo_id=base.name, commit=base.commit, session=session, reporter=reporter)
    return base.model_copy(update={"folder": str(folder)})


# ---- headers -------------------------------------------------------------------------------------------------------


AT_ONCE = 8
"""Headers that are asked for at the same time."""
BROKEN_HEADER = (AttributeError, KeyError, TypeError, ValueError)
"""What the client raises at a header that is JSON of another form."""


def small_files(base: BaseCheckpoint, *, session: HubSession) -> Path:
    """Return a folder with all files of a base that a result carries, without its weights where they are not here."""
    if base.folder is not None:
        return Path(base.folder)
    weights = weight_files(base.files)
    files = [file for file in needed_files(base) if file not in weights]
    return download(files, repo_id=base.name, commit=str(base.commit), session=session, reporter=Reporter(quiet=True))


def stored_headers(base: BaseCheckpoint, *, session: HubSession) -> dict[str, dict[str, tuple[int, ...]]]:
    """Read the headers of the weights of a base on the Hub: file -> name -> shape; a few kilobytes of each file.

    Raises:
        CheckpointError: a file is no safetensors file.
    """
    paths = [file.path for file in weight_files(base.files)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(paths, pool.map(partial(_shapes, base=base, session=session), paths), strict=True))


def stored_shapes(base: BaseCheckpoint, *, session: HubSession) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of all tensors from the headers, as `stored_headers`."""
    headers = stored_headers(base, session=session)
    return {name: shape for header in headers.values() for name, shape in header.items()}


def _shapes(path: str, *, base: BaseCheckpoint, session: HubSession) -> dict[str, tuple[int, ...]]:
    from huggingface_hub.errors import SafetensorsParsingError

    doing, broken = f"read the header of {path} of {base.name}", (SafetensorsParsingError, *BROKEN_HEADER)
    try:
        header = session.ask(
            lambda api: api.parse_safetensors_file_metadata(base.name, path, revision=base.commit),
            doing=doing, passing=broken,
        )  # fmt: skip
        return {name: tuple(tensor.shape) for name, tensor in header.tensors.items()}
    except broken as error:
        said = " ".join(str(error).split())
        raise CheckpointError(f"{path} of {base.name} is no safetensors file: {said}") from error


# ---- benchmarks ----------------------------------------------------------------------------------------------------


SPECIFICATION = "eval.yaml"
"""File by which a data set says which tasks its benchmark has."""


def registered_tasks(datasets: Iterable[str], *, session: HubSession) -> Tasks:
    """Look up which data sets are registered benchmarks, and their tasks; a Hub on loopback has no leaderboards."""
    wanted = {*datasets}
    if not wanted or page("x", endpoint=session.endpoint) is None:
        return {}
    listed = session.ask(lambda api: list(api.list_datasets(benchmark="official")), doing="list registered benchmarks")
    return {name: _tasks_of(name, session=session) for name in sorted({str(info.id) for info in listed} & wanted)}


def _tasks_of(dataset: str, *, session: HubSession) -> tuple[Mapping[str, Any], ...]:
    doing = f"read {SPECIFICATION} of {dataset}"
    path = session.ask(lambda api: api.hf_hub_download(dataset, SPECIFICATION, repo_type="dataset"), doing=doing)
    try:
        values = parse_yaml(Path(path).read_bytes(), where=SPECIFICATION)
    except (OSError, RecipeError):
        return ()
    tasks = values.get("tasks") if isinstance(values, dict) else None
    return tuple(task for task in tasks if isinstance(task, dict) and "id" in task) if isinstance(tasks, list) else ()
