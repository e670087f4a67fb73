"""Look before anything is computed: at this machine, at what could stop a publish, at what its stages would need.

It takes seconds.  Of a base, config.json and the headers of its weights are read, or where these are not there, their
index; two matrix products and some megabytes from the disk are timed; nothing is written.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.cards.provenance import check_license, license_name
from hubprune.core import memory
from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import BaseCheckpoint, Checkup, Finding, StageNeed
from hubprune.core.config import check_config, read_config
from hubprune.core.console import Reporter, size
from hubprune.core.devices import (
    computes,
    describe_environment,
    resolve_device,
    resolve_dtype,
    stored_dtype,
    unused_gpu,
)
from hubprune.core.errors import (
    AuthenticationError,
    CheckpointError,
    DiskSpaceError,
    HubpruneError,
    HubUnreachableError,
)
from hubprune.core.extras import EXTRAS, install, is_installed, require
from hubprune.core.files import existing_folder, work_folder
from hubprune.core.memory import available_bytes, device_bytes, limited_groups, told_limit
from hubprune.core.requests import DoctorRequest, PublishRequest
from hubprune.core.strict import parse_json
from hubprune.core.weights import INDEX_NAME
from hubprune.hub import repos as hub
from hubprune.hub.preflight import check_disk, identify, preflight
from hubprune.hub.session import HubSession
from hubprune.workflows.chat import check_texts
from hubprune.workflows.publish.counting import counting, open_ranking, with_count
from hubprune.workflows.publish.siblings import look
from hubprune.workflows.publish.stages import has_checkpoint
from hubprune.workflows.recipes import recipe_of
from hubprune.workflows.run import Run, open_run, open_session

if TYPE_CHECKING:
    from hubprune.workflows.estimate import Machine

LITTLE = 5 * 10**9
"""Bytes of disk below which hardly a model fits."""
DISK_RATE = 5e8
"""Bytes per second of a disk on which there is nothing to be timed yet."""
TIMED_BYTES = 2**26
ROWS, WIDTH = 512, 4096
"""Of the product that is timed: as large as a batch in a model of some billion parameters."""


class _Findings(list[Finding]):
    """What was found so far."""

    def add(self, name: str, told: str, *, warning: str | None = None) -> None:
        """Note what is as it should be, or with a hint what is to be looked at."""
        self.append(Finding(name=name, status="warning" if warning else "ok", told=told, hint=warning))

    @contextmanager
    def looking_at(self, name: str) -> Iterator[None]:
        """Note as an error what stands in the way."""
        try:
            yield
        except HubpruneError as error:
            if all(found.told != error.message for found in self):
                self.append(Finding(name=name, status="error", told=error.message, hint=error.hint))


class _Listening(Reporter):
    """Keeps quiet, and notes warnings."""

    def __init__(self, found: _Findings) -> None:
        super().__init__(quiet=True)
        self._found = found

    def warn(self, text: str) -> None:
        self._found.append(Finding(name="note", status="warning", told=text))


def doctor(request: DoctorRequest, *, reporter: Reporter) -> Checkup:
    """Look at this machine and the Hub, and at what a publish of a base would need, where one is named."""
    found = _Findings()
    _machine(found, device=request.device or "auto")
    reached = _hub(found, request.endpoint)
    if request.base is None or not (reached or existing_folder(request.base)):
        return Checkup(base=request.base, findings=tuple(found))
    asked = PublishRequest(
        request.base, attn_drop=1, base_revision=request.base_revision, tasks=request.tasks, device=request.device,
        dtype=request.dtype, endpoint=request.endpoint,
    )  # fmt: skip
    run = open_run(recipe_of(asked), request.endpoint, _Listening(found))
    stages: tuple[StageNeed, ...] = ()
    with found.looking_at("base"):
        stages = _needs(found, run)
    if reached:
        _sources(found, run)
    return Checkup(base=request.base, findings=tuple(found), stages=stages)


def check_publish(request: PublishRequest, *, reporter: Reporter) -> Checkup:
    """List what would stop a publish, and what every stage of it needs; nothing is computed or written.

    Raises:
        RecipeError: an option has a value that cannot be used.
    """
    found = _Findings()
    counted = with_count(request, reporter=reporter, sweeps=False) if request.from_sweep else request
    if ranking := open_ranking(counted):
        counted = counting(counted, ranking, 1)  # what a publish needs is nearly the same for any number
    run = open_run(recipe_of(counted), request.endpoint, _Listening(found))
    _place(found, run.recipe.device)
    stages: tuple[StageNeed, ...] = ()
    with found.looking_at("base"):
        run.base  # noqa: B018
        stages = _needs(found, run)
    if stages:
        with found.looking_at("weights"):
            check_texts(run, hub.small_files(run.examined, session=run.session))
            found.add("weights", "the headers fit config.json")
        _target(found, run, request)
        _sources(found, run)
        with found.looking_at("disk"):
            check_disk(run.base, folder=run.store.folder, written=has_checkpoint(run), loads_back=not request.dry_run)
    return Checkup(base=run.recipe.base.repo_id, findings=tuple(found), stages=stages)


# ---- the machine -------------------------------------------------------------------------------------------------


def _machine(found: _Findings, *, device: str) -> None:
    here = describe_environment()
    named = ", ".join(f"{name} {here.versions[name]}" for name in ("torch", "transformers") if name in here.versions)
    found.add("python", f"{platform.python_version()}, hubprune {here.hubprune}, {named}")
    native = [dtype for dtype in ("bfloat16", "float16") if is_installed("torch") and computes(dtype, "cpu")]
    found.add("CPU", f"{here.machine}, {here.threads} threads, computes float32{''.join(f' and {d}' for d in native)}")
    _place(found, device)
    import psutil

    limits = [f"a control group allows {size(group.limit)}, {size(group.held)} held" for group in limited_groups()]
    limits += [f"--max-memory {size(limit)}"] if (limit := told_limit()) else []
    free, whole = available_bytes(), psutil.virtual_memory().total
    told = f"{size(free)} of {size(whole)} may be taken{''.join(f'; {text}' for text in limits)}"
    little = None if free >= 2 * memory.LEAST else "End other programs, or raise the limit."
    found.add("memory", told, warning=little)
    for variable, (place, _, free) in _places().items():
        hint = None if free >= LITTLE else f"Free some space, or set {variable} to a larger disk."
        found.add(variable, f"{place}, {size(free)} free", warning=hint)
    for name, extra in EXTRAS.items():
        absent = f"not installed, and only needed for {extra.use}: {install(name)}"
        found.add(f"extra {name}", "installed" if is_installed(extra.modules[0]) else absent)


def _place(found: _Findings, device: str) -> None:
    """Say what computes."""
    with found.looking_at("device"):
        if not is_installed("torch"):
            found.add("device", "torch is not installed: nothing can be computed here", warning=install("torch"))
            return
        import torch

        place = resolve_device(device)
        told = f"{place}, {size(device_bytes(place))} may be taken"
        if place.startswith("cuda"):
            casts = "" if computes("bfloat16", place) else "; it has no units for bfloat16 and computes it in float16"
            told = f"{torch.cuda.get_device_name(place)} as {told}{casts}"
        found.add("device", told, warning=unused_gpu(place))


def _places() -> dict[str, tuple[Path, int, int]]:
    """Return where downloads and work are kept: by the variable that moves it, folder, disk and bytes free."""
    from huggingface_hub import constants

    found = {}
    for variable, place in (("HF_HOME", Path(constants.HF_HUB_CACHE)), ("HUBPRUNE_HOME", work_folder())):
        there = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
        found[variable] = place, there.stat().st_dev, shutil.disk_usage(there).free
    return found


# ---- the Hub -----------------------------------------------------------------------------------------------------


def _hub(found: _Findings, endpoint: str | None) -> bool:
    """Look at the Hub and the token; False where there is no connection, so that nothing else need be asked there."""
    reached = True
    with found.looking_at("Hub"):
        session = open_session(endpoint)
        try:
            session.reach()
        except HubUnreachableError:
            reached = False
            raise
        found.add("Hub", f"{session.endpoint} answers")
        _token(found, session)
    return reached


def _token(found: _Findings, session: HubSession) -> None:
    try:
        who = identify(session)
    except AuthenticationError as error:
        if session.token is not None:
            raise
        found.add("token", "there is none: public bases can be read, and nothing published", warning=error.hint)
        return
    found.add("token", f"of {who.name}{f', role {who.role}' if who.role else ''}")


def _target(found: _Findings, run: Run, request: PublishRequest) -> None:
    with found.looking_at("token"):
        _token(found, run.session)
    with found.looking_at("licence"):
        check_license(run.recipe, base=run.base)
        named = license_name(run.base.card) or run.recipe.target.license
        hint = None if named else "The card will say so; --license names one."
        found.add("licence", named or "the card of the base names none", warning=hint)

    def excuse(error: HubpruneError) -> None:
        found.add("target", error.message, warning=error.hint or "A dry run goes on without it.")

    with found.looking_at("target"):
        target = preflight(
            run.recipe, base=run.base, session=run.session, overwrite=request.replaces,
            excuse=excuse if request.dry_run else None,
        )  # fmt: skip
        excused = excuse if request.dry_run else None
        for each in look(run, request, target, excuse=excused):
            found.add("beside it", f"{each.target.repo_id}: {each.told}")
        state = f"is there, branch {target.revision}" if target.exists else "is new"
        how = "as a pull request" if target.create_pr else "in one commit"
        found.add("target", f"{target.repo_id} {state}{', private' if target.private else ''}, {how}")


def _sources(found: _Findings, run: Run) -> None:
    """Look whether calibration texts and benchmarks are within reach."""
    with found.looking_at("calibration"):
        run.found_data  # noqa: B018
        found.add("calibration", f"{run.recipe.calibration.name} is within reach")
    with found.looking_at("tasks"):
        run.task_texts, run.task_sources  # noqa: B018
        found.add("tasks", ", ".join(run.recipe.evaluation.tasks) or "none asked for")


# ---- what the stages need ----------------------------------------------------------------------------------------


def _needs(found: _Findings, run: Run) -> tuple[StageNeed, ...]:
    """Say what the base is and compute what its stages take here."""
    require("torch", doing="What its stages need")
    from huggingface_hub import try_to_load_from_cache

    from hubprune.workflows.estimate import Shape, needs

    base, stored_bytes, names = _seen(run)
    architecture = architecture_of(base.config, name=base.name)
    stored, device = stored_dtype(base.config), run.device
    dtype = resolve_dtype(run.recipe.dtype, base.config, device=device)
    tied = bool(base.config.get("tie_word_embeddings")) if names is None else architecture.head not in names
    shape = Shape.of(base.config, weight_bytes=stored_bytes, stored=stored, tied=tied)
    machine = _timed(base, device=device, dtype=dtype)
    at = f" at {base.commit[:12]}" if base.commit else ""
    found.add(
        "base",
        f"{base.name}{at}: {shape.layers} layers, about {shape.parameters / 1e9:.2f} G parameters, {size(stored_bytes)}"
        f" in {stored}, computed in {dtype}",
    )
    cached = (
        f.size
        for f in hub.weight_files(base.files)
        if isinstance(try_to_load_from_cache(base.name, f.path, revision=base.commit), str)
    )
    missing = 0 if base.folder else stored_bytes - sum(cached)
    stages = needs(run.recipe, shape, machine, missing=missing)
    room = machine.device if device.startswith("cuda") else machine.host
    for need in (need for need in stages if need.memory > room):
        hint = "Allow it more, or take a machine that has it." if told_limit() else "Take a machine that has it."
        found.add("memory", f"{need.stage} takes about {size(need.memory)}, and {size(room)} are free", warning=hint)
    free = sum({disk: free for _, disk, free in _places().values()}.values())
    written = sum(need.written for need in stages)
    with found.looking_at("disk"):
        if written > free:
            hint = "Free some space, or set HF_HOME and HUBPRUNE_HOME to a larger disk."
            raise DiskSpaceError(f"A publish writes {size(written)} in all, and {size(free)} are free.", hint=hint)
        found.add("disk", f"a publish writes {size(written)} in all, and {size(free)} are free")
    return stages


def _seen(run: Run) -> tuple[BaseCheckpoint, int, frozenset[str] | None]:
    """Return a base with the bytes of its weights and the names of its tensors, None where these are not known.

    An index without weights is enough: it knows both.

    Raises:
        HubpruneError: there is no such base, or no weights and no index.
    """
    spec, session, folder = run.recipe.base, run.session, existing_folder(run.recipe.base.repo_id)
    if folder and (folder / INDEX_NAME).is_file() and not any(folder.glob("*.safetensors")):
        config, path = read_config(folder), folder / INDEX_NAME
        base = BaseCheckpoint(name=spec.repo_id, commit=None, folder=str(folder), config=config, files=())
    else:
        base = run.base if folder else hub.resolve_repo(spec, session=session)
        if hub.weight_files(base.files) or all(file.path != INDEX_NAME for file in base.files):
            return run.base, sum(file.size for file in hub.weight_files(run.base.files)), None
        doing = f"read {INDEX_NAME} of {base.name}"
        asked = session.ask(lambda api: api.hf_hub_download(base.name, INDEX_NAME, revision=base.commit), doing=doing)
        path = Path(asked)
    check_config(base.config, where=f"config.json of {base.name}")
    index = parse_json(path.read_bytes(), where=INDEX_NAME)
    total, names = (index.get("metadata") or {}).get("total_size"), index.get("weight_map")
    if not isinstance(total, int) or not isinstance(names, dict):
        raise CheckpointError(f"{INDEX_NAME} of {base.name} names no total_size, and the weights are not there.")
    return base, total, frozenset(names)


def _timed(base: BaseCheckpoint, *, device: str, dtype: str) -> Machine:
    """Time a product of matrices, which computing bounds, one with a vector, which memory bounds, and the disk."""
    import torch

    from hubprune.workflows.estimate import Machine

    kind = getattr(torch, dtype)
    rows = torch.full((ROWS, WIDTH), 0.5, dtype=kind, device=device)
    weights = [torch.full((WIDTH, WIDTH), 0.5, dtype=kind, device=device) for _ in range(4)]  # more than caches hold

    def rate(amount: float, rows: torch.Tensor) -> float:
        """Of several tries, take the one that was disturbed least."""
        best = 0.0
        for _ in range(3):
            for matrix in weights:
                start = time.perf_counter()
                torch.nn.functional.linear(rows, matrix)
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
                best = max(best, amount / (time.perf_counter() - start))
        return best

    with torch.inference_mode():
        flops, streamed = rate(2.0 * ROWS * WIDTH * WIDTH, rows), rate(weights[0].nbytes, rows[:1])
    return Machine(
        flops=flops, memory_rate=streamed, disk_rate=_disk_rate(base), host=available_bytes(),
        device=device_bytes(device), gpu=device.startswith("cuda"), itemsize=kind.itemsize,
    )  # fmt: skip


def _disk_rate(base: BaseCheckpoint) -> float:
    """Read some megabytes of the weights, where they are here, past the page cache where the system lets us."""
    files = Path(base.folder).glob("*.safetensors") if base.folder else ()
    path = max(files, key=lambda path: path.stat().st_size, default=None)
    if path is None or path.stat().st_size < TIMED_BYTES:
        return DISK_RATE
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, TIMED_BYTES, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while file.tell() < TIMED_BYTES:
            file.read(2**22)
        return TIMED_BYTES / (time.perf_counter() - start)
