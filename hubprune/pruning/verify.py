"""Check a written checkpoint: load it in a fresh process as a reader would, and compare it with its base.

The reference is the base itself with the dropped sublayers and neurons made to add zero to the residual stream, which
is what their removal must amount to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from hubprune.core import fresh
from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import Check, DroppedSublayer, DropPlan, SublayerKind, Verification, WidthPlan
from hubprune.core.config import MAX_LAYERS, Structure, needs_modeling_file, pruned_classes, read_structure
from hubprune.core.console import Advance, Reporter, size
from hubprune.core.devices import last_words, run_to_end
from hubprune.core.errors import CheckpointError, UnverifiedError, VerificationError
from hubprune.core.files import scratch_folder
from hubprune.core.memory import kv_cache_bytes
from hubprune.core.strict import parse_json
from hubprune.core.templates import modeling_code
from hubprune.core.weights import Weights, open_weights
from hubprune.pruning.checkpoint import ReadBack, count_parameters, read_back
from hubprune.pruning.comparing import CompareRequest, Comparison, NarrowedTensor, Word
from hubprune.pruning.layouts import Runnable
from hubprune.pruning.loading import Loaded, LoadRequest
from hubprune.pruning.tokenizer_files import ids_depend_on_version
from hubprune.pruning.width import KeptTensor, cuts, mask_of, neurons_of

OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""What is loaded from folders has no use for the Hub."""
TOLERANCE = 1e-4
"""Largest allowed difference of a logit, in float32."""
RELATIVE_TOLERANCE = 2e-6
"""The same as a share of the largest logit, some ten units in the last place: it counts where logits exceed 50."""
PROMPTS = ("Paris is the capital of", "One day", "The river was high, and the bridge", "To make bread you need")
NEW_TOKENS = 24
GO_ON = (
    "free some, or run the same with a --max-memory that is really there. What was written is kept, and the same "
    "command goes on there."
)
LEADS_TO_CODE = ("adapter_config.json", "custom_generate")

NO_ROOM = re.compile(r"MemoryError|out of memory|allocate memory|ALLOC_FAILED|No space left", re.IGNORECASE)
"""What the last words of a process have in them that ended for lack of memory or disk."""

Answer = TypeVar("Answer", bound=BaseModel)


def verify(
    base: Runnable, folder: Path, *, plan: DropPlan, config: Mapping[str, Any], architecture: Architecture,
    read: ReadBack | None = None, device: str = "auto", dtype: str = "auto", reporter: Reporter | None = None,
) -> Verification:  # fmt: skip
    """Load the written folder in a fresh process and compare it with the base without what was dropped.

    Config and architecture are the base's; what was read of the files before need not be read again.

    Raises:
        VerificationError: the fresh process could not load one of the two, or what they compute is no number.
        UnverifiedError: it was ended by a signal, or had too little memory or disk.
    """
    weights = base.weights()
    read = read or read_back(weights, folder, plan=plan, architecture=architecture)
    outputs = {"attn": architecture.attn_output, "mlp": architecture.mlp_output}
    request = CompareRequest(
        base_folder=str(base.folder.resolve()),
        base_custom_code=base.own_code,
        folder=str(folder.resolve()),
        layers=architecture.layers_prefix.removesuffix("."),
        # Projections whose output is set to zero, so that a dropped sublayer adds nothing.
        zeroed=tuple(f"{architecture.layers_prefix}{d.layer}.{outputs[d.kind]}" for d in plan.dropped),
        narrowed=_narrowed(weights, plan, architecture),
        prompts=PROMPTS,
        new_tokens=NEW_TOKENS,
        custom_code=needs_modeling_file(plan),
        device=device,
        dtype=dtype,
    )
    seen = observe(request, reporter=reporter or Reporter(quiet=True))
    planned = _planned_parameters(weights, plan, config, architecture)
    planned_cache = kv_cache_bytes(config, gone=plan.gone("attn"), tokens=seen.cache_tokens, dtype=seen.dtype)
    return Verification(
        checks=(
            _files_check(folder, plan, architecture),
            _bytes_check(read),
            *checks_of(
                seen,
                planned,
                planned_cache,
                like=f"the base without the dropped {plan.parts}",
                ids=_ids_told(seen, base, folder, architecture),
            ),
        ),
        max_logit_difference=seen.max_logit_difference,
        dtype=seen.dtype,
        device=seen.device,
        read_bytes=seen.read_bytes,
        new_tokens=seen.new_tokens,
        parameters=seen.parameters,
        cache_bytes=seen.cache_bytes,
        cache_tokens=seen.cache_tokens,
        transformers=seen.transformers,
    )


def observe(request: CompareRequest, *, reporter: Reporter) -> Comparison:
    """Let a fresh process load two folders, one after the other, and compare what they compute.

    Raises:
        VerificationError: it could not load one of them, or what they compute is no number.
        UnverifiedError: it was ended by a signal, or had too little memory or disk.
    """
    with _told(reporter) as listen:
        seen = _in_fresh_process("compare", request, Comparison, listen=listen)
    if seen.not_finite:
        raise VerificationError(
            f"The logits of the {seen.not_finite} are not finite numbers, so that nothing can be compared.",
            hint="Nothing was published. A weight is broken or overflows that no score depends on: the last norm or "
            "the head.",
        )
    return seen


@contextmanager
def _told(reporter: Reporter) -> Iterator[Callable[[str], None]]:
    """Yield what takes the words of a fresh process, line by line, and says them as its own."""
    with ExitStack() as stack:
        bars: list[Advance] = []

        def listen(line: str) -> None:
            """Say what one line holds."""
            with suppress(ValidationError):  # of what a library prints, and of the answer
                word = Word.model_validate_json(line)
                if word.note:
                    reporter.note(word.note)
                if word.passes:
                    bars.append(stack.enter_context(reporter.progress("verifying", total=word.passes, unit="passes")))
                if word.done and bars:
                    bars[-1](word.done)

        yield listen


def _narrowed(weights: Weights, plan: DropPlan, architecture: Architecture) -> tuple[NarrowedTensor, ...]:
    """List the tensors of the base of which only some neurons stay, with which ones."""
    if not (neurons := neurons_of(weights, plan, architecture)):
        return ()
    rows = cuts(weights, plan, architecture)
    masks = {cut.layer: mask_of(neurons.kept(cut.layer)) for cut in rows.values()}
    return tuple(
        NarrowedTensor(name=name, axis=cut.axis, blocks=cut.blocks, width=cut.width, kept=masks[cut.layer])
        for name, cut in rows.items()
    )


def _planned_parameters(base: Weights, plan: DropPlan, config: Mapping[str, Any], architecture: Architecture) -> int:
    gone = tuple(
        f"{architecture.layers_prefix}{d.layer}.{part}." for d in plan.dropped for part in architecture.parts[d.kind]
    )
    dropped = sum(t.parameters for _, t in base if t.name.startswith(gone) and architecture.is_parameter(t.name))
    narrower = cuts(base, plan, architecture)
    cut_off = sum(t.parameters - KeptTensor(t, t.name, narrower.get(t.name)).parameters for _, t in base)
    return count_parameters(base, config, architecture) - dropped - cut_off


def _files_check(folder: Path, plan: DropPlan, architecture: Architecture) -> Check:
    parts = architecture.parts
    gone = [(layer, part) for kind in parts for layer in plan.published_layers(kind) for part in parts[kind]]
    forbidden = tuple(f"{architecture.layers_prefix}{layer}.{part}." for layer, part in gone)
    names = [tensor.name for _, tensor in open_weights(folder)]
    left = [name for name in names if forbidden and name.startswith(forbidden)]
    detail = f"{left[0]} is still there" if left else f"none of {len(names)} tensors belongs to a dropped sublayer"
    return Check(name="dropped tensors are in no file", passed=not left, detail=detail)


def _bytes_check(read: ReadBack) -> Check:
    detail = ", ".join(read.differing[:3]) or f"{read.compared} tensors compared"
    return Check(name="kept tensors are the base's, byte for byte", passed=not read.differing, detail=detail)


def _ids_told(seen: Comparison, base: Runnable, folder: Path, architecture: Architecture) -> str:
    """Say what was found out about token ids, and with which transformers."""
    texts = f"{seen.compared_texts} texts"
    if seen.other_ids:
        return f"{seen.other_ids} of {texts} differ in transformers {seen.transformers}"
    depends = ids_depend_on_version(base.folder, folder, architecture=architecture)
    return f"{texts} in transformers {seen.transformers}" + (f"; {depends}" if depends else "")


def checks_of(seen: Comparison, parameters: int, cache_bytes: int, *, like: str, ids: str) -> list[Check]:
    """Hold what was seen against what was planned: so many parameters, and so many bytes of KV cache.

    `like` says what the result is to compute as, `ids` what was found out about token ids.
    """
    keys = [*seen.missing_keys, *seen.unexpected_keys]
    largest = max(TOLERANCE, RELATIVE_TOLERANCE * seen.largest_logit)
    counted = f"{seen.parameters:,} of {parameters:,} planned"
    cached = f"{seen.cache_bytes:,} of {cache_bytes:,} bytes planned for {seen.cache_tokens} tokens"
    difference = f"largest difference {seen.max_logit_difference:.2e} in {seen.dtype}"
    # A token of an offloaded model costs one more pass over all its weights.
    few = f", {seen.new_tokens} a text, since each reads {size(seen.read_bytes)} from disk" if seen.read_bytes else ""
    rows: list[tuple[str, bool, str]] = [
        ("loads without missing or unexpected keys", not keys, ", ".join(keys[:3]) or "all tensors used"),
        ("parameters as planned", seen.parameters == parameters, counted),
        ("KV cache as planned", seen.cache_bytes == cache_bytes, cached),
        (f"logits equal {like}", seen.max_logit_difference <= largest, difference),
        ("next tokens equal", seen.argmax_equal, f"{seen.positions} positions"),
        ("token ids equal the base's", not seen.other_ids, ids),
        ("greedy text with KV cache equals without", seen.cached_equal, f"{seen.generated} tokens{few}"),
        ("greedy text in a left-padded batch equals alone", seen.padded_equal, f"{len(PROMPTS)} prompts"),
    ]
    if seen.refused_without_trust is not None:
        text = "refused" if seen.refused_without_trust else "it loaded another class"
        rows.append(("does not load without trust_remote_code", seen.refused_without_trust, text))
    return [Check(name=name, passed=passed, detail=detail) for name, passed, detail in rows]


def require_passed(verification: Verification) -> None:
    """Raise VerificationError that names the checks that failed, if any."""
    if failed := [check for check in verification.checks if not check.passed]:
        raise VerificationError(
            f"The written checkpoint is not what was planned: {'; '.join(f'{c.name} ({c.detail})' for c in failed)}.",
            hint="Nothing was published. This is a bug worth reporting, with the name of the base.",
        )


def load_from_hub(
    repo_id: str,
    *,
    commit: str,
    prompt: str,
    new_tokens: int,
    custom_code: bool,
    work_folder: Path,
    check: Callable[[Path], None] = lambda _: None,
) -> Loaded:
    """Load a published commit over HTTP in a fresh process with an empty cache, and let it write a greedy text.

    With `custom_code` it ships a modeling file.  The files are put into `work_folder` for the moment, and `check` is
    called with their folder.

    Raises:
        VerificationError: it does not load.
    """
    with scratch_folder(work_folder, name="load") as cache:
        request = LoadRequest(
            repo_id=repo_id, commit=commit, prompt=prompt, new_tokens=new_tokens, custom_code=custom_code
        )
        loaded = _in_fresh_process("load", request, Loaded, environment={"HF_HUB_CACHE": str(cache)})
        check(cache / f"models--{repo_id.replace('/', '--')}" / "snapshots" / commit)
    return loaded


def _in_fresh_process(
    action: str, request: BaseModel, answer: type[Answer], *, environment: Mapping[str, str] | None = None,
    listen: Callable[[str], object] = lambda _: None,
) -> Answer:  # fmt: skip
    with scratch_folder(name="hubprune-fresh") as work:
        # transformers copies remote code into a cache of modules before it imports it; ours is thrown away.
        variables = {**os.environ, "HF_MODULES_CACHE": str(work / "modules"), **(environment or OFFLINE)}
        # The folders are found under the names of their fields, whatever they are called themselves: transformers makes
        # the last part of a path a part of a module's, with seven characters more for each hyphen.
        links = {name: work / name for name, value in request if name.endswith("folder") and isinstance(value, str)}
        for name, link in links.items():
            link.symlink_to(getattr(request, name), target_is_directory=True)
        asked = request.model_copy(update={name: str(link) for name, link in links.items()}).model_dump_json()
        command = fresh.python(["-m", "hubprune.pruning.loading", action], variables)
        done = run_to_end(command, input=asked, env=variables, listen=listen)
    if done.returncode < 0:
        raise UnverifiedError(
            f"The fresh process that loads the checkpoint was killed by signal {-done.returncode}.",
            hint=f"If nobody did that, too little memory was left: {GO_ON}",
        )
    try:
        return answer.model_validate_json(done.stdout.splitlines()[-1])
    except (IndexError, ValidationError) as error:
        said = f"A fresh process could not load the checkpoint: {last_words(done.stderr)}"
        if NO_ROOM.search(said):
            raise UnverifiedError(said, hint=f"There was too little room: {GO_ON}") from error
        raise VerificationError(said) from error


def ships_only_our_code(folder: Path, config: Mapping[str, Any], structure: Structure) -> bool:
    """Tell whether all code that loading a folder would run is what this version of hubprune writes.

    transformers runs what `auto_map` names, in this folder or in another repo, and a `custom_generate/generate.py`;
    where there is an adapter, it may load the model that this names instead.  mlx-lm before 0.32 runs a `model_file`.
    """
    architecture, layout = structure.architecture, structure.layout
    if "model_file" in config or any((folder / name).exists() for name in LEADS_TO_CODE):
        return False
    code = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    if layout == "stock":
        return "auto_map" not in config and not code
    classes, file = pruned_classes(architecture, layout), folder / architecture.modeling_file(layout)
    if code != {file.name} or {key: config.get(key) for key in classes} != classes or not file.is_file():
        return False
    tokenizer = folder / "tokenizer_config.json"
    if file.read_bytes() != modeling_code(architecture, layout=layout).encode():
        return False
    return not tokenizer.is_file() or "auto_map" not in parse_json(tokenizer.read_bytes(), where=str(tokenizer))


class _Origin(BaseModel):
    base_model: str
    base_commit: str | None
    base_num_hidden_layers: int = Field(ge=1, le=MAX_LAYERS)
    dropped_attn_layers_of_base: tuple[int, ...]
    dropped_mlp_layers_of_base: tuple[int, ...]
    absent_attn_layers_of_base: tuple[int, ...] = ()
    absent_mlp_layers_of_base: tuple[int, ...] = ()
    widths_of_base: WidthPlan | None = None


def plan_of(config: Mapping[str, Any]) -> DropPlan:
    """Rebuild the plan of a pruned checkpoint from its config.json.

    Raises:
        CheckpointError: the config was not written by hubprune.
    """
    origin = _origin(config)
    dropped = [DroppedSublayer(kind="attn", layer=i) for i in origin.dropped_attn_layers_of_base]
    dropped += [DroppedSublayer(kind="mlp", layer=i) for i in origin.dropped_mlp_layers_of_base]
    absent: list[tuple[SublayerKind, int]] = [("attn", layer) for layer in origin.absent_attn_layers_of_base]
    absent += [("mlp", layer) for layer in origin.absent_mlp_layers_of_base]
    return DropPlan(
        selected_by="hand",
        num_hidden_layers=origin.base_num_hidden_layers,
        dropped=tuple(dropped),
        absent=tuple(absent),
        widths=origin.widths_of_base,
        layout=read_structure(config).layout,
    )


def base_of(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return name and commit of the base that a pruned checkpoint was made of; the commit of a folder is None.

    Raises:
        CheckpointError: the config was not written by hubprune.
    """
    origin = _origin(config)
    return origin.base_model, origin.base_commit


def _origin(config: Mapping[str, Any]) -> _Origin:
    try:
        return _Origin.model_validate(config.get("hubprune"))
    except ValidationError as error:
        raise CheckpointError(
            "config.json does not say what was dropped from which base.",
            hint="Only checkpoints that hubprune wrote can be verified.",
        ) from error
