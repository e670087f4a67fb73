"""Quantize a checkpoint, pruned or not, layer by layer; the folder appears once it was verified.

    resolve -> check names and shapes -> download -> draw texts -> layer by layer -> write -> compare -> verify

What the layers became waits in the work folder until then, so that a run that was stopped goes on with the next layer.
The record of it all stands in the written config.json; see `QuantizationRecord`.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from hubprune.core.artifacts import (
    BaseCheckpoint,
    CalibrationRecord,
    Divergence,
    QuantizationRecord,
    QuantizedCheckpoint,
    WrittenCheckpoint,
)
from hubprune.core.config import check_config, read_structure
from hubprune.core.console import Reporter
from hubprune.core.errors import CalibrationError, RecipeError
from hubprune.core.files import (
    check_new_folder,
    key_of,
    list_files,
    scratch_folder,
    staged_folder,
    work_folder,
)
from hubprune.core.memory import kv_bytes_per_layer, say_where
from hubprune.core.recipe import BaseModelSpec, CalibrationMix, parse
from hubprune.core.requests import QuantizeRequest
from hubprune.core.specs import QuantizationSpec
from hubprune.core.weights import DTYPE_BITS, open_weights
from hubprune.hub import repos as hub
from hubprune.hub.session import HubSession
from hubprune.pruning import calibration, documents, verify
from hubprune.pruning.base_files import shapes_in
from hubprune.pruning.checkpoint import count_parameters
from hubprune.quantizing.packing import require_package, stored_shapes
from hubprune.quantizing.schemes import (
    IGNORED,
    bits_per_weight,
    find_matrices,
    require_fit,
)
from hubprune.workflows.prune import KEPT_SECONDS
from hubprune.workflows.quantized import How, Opened, carry, config_of, open_source, refuse_quantized, verify_against
from hubprune.workflows.run import open_session, open_store

NO_TEXTS = "none"
"""What --calibration is where no texts are to be read."""
LEAST_HELD_OUT, MOST_HELD_OUT, SHARE = 8, 64, 4
"""Texts that the divergence is measured on: one for so many that are calibrated on, within these bounds."""


def quantize(request: QuantizeRequest, *, reporter: Reporter) -> QuantizedCheckpoint:
    """Quantize a folder or repo into a new folder, and verify it.

    Raises:
        RecipeError: the target exists, or a group size does not fit.
        UnsupportedFormatError: it is quantized already, or has no floats of 16 or 32 bits.
        CalibrationError: the texts cannot be read.
        EvaluationError: the memory is too small.
        VerificationError: what was written is not what was computed; nothing is left of it then.
    """
    require_package()
    spec, mix = spec_of_request(request), mix_of(request)
    out = target_of(request)
    check_new_folder(out)
    session = open_session(request.endpoint)
    base = find_unquantized(request.checkpoint, request.revision, spec, session=session)
    store = open_store(work_folder(), reporter, earlier="run")
    how = How(
        mix=mix, store=store, reporter=reporter, seed=request.seed or 0, device=request.device or "auto",
        dtype=request.dtype or "auto",
    )  # fmt: skip
    base = hub.download_base(base, session=session, reporter=reporter)
    return quantize_base(base, spec, out, how)


def target_of(request: QuantizeRequest) -> Path:
    """Return the folder that a request is to write."""
    name = Path(request.checkpoint.rstrip("/")).resolve().name
    return Path(request.out or f"{name}{spec_of_request(request).suffix}")


def spec_of_request(request: QuantizeRequest) -> QuantizationSpec:
    """Return what a request asks for.

    Raises:
        RecipeError: there is no such scheme or method, or they do not go together.
    """
    given = {"scheme": request.scheme, "group_size": request.group_size, "method": request.method}
    return parse(QuantizationSpec, {key: value for key, value in given.items() if value is not None})


def mix_of(request: QuantizeRequest) -> CalibrationMix | None:
    """Return the mix that a request names; None where it wants no texts.

    Raises:
        RecipeError: there is no such mix or file, or the method needs texts.
    """
    if request.calibration == NO_TEXTS:
        if (request.method or "gptq") != "rtn":
            raise RecipeError(
                "GPTQ needs texts to calibrate on.", hint="Leave out --calibration none, or pass --method rtn."
            )
        return None
    sizes = {"num_samples": request.num_samples, "max_tokens": request.max_tokens}
    return documents.find_mix(request.calibration or documents.COSMOPEDIA.name, **sizes)


def find_unquantized(name: str, revision: str | None, spec: QuantizationSpec, *, session: HubSession) -> BaseCheckpoint:
    """Find a checkpoint that can be quantized so; of its weights, nothing but names and shapes are read.

    Raises:
        BaseNotFoundError: there is no such folder or repo.
        UnsupportedFormatError: it is quantized already.
        RecipeError: the group size does not fit.
    """
    base = hub.resolve_base(BaseModelSpec.of(name, revision=revision or "main"), session=session)
    refuse_quantized(base.config, name=base.name)
    check_config(base.config, where=f"config.json of {base.name}")
    structure = read_structure(base.config, name=base.name)
    shapes = shapes_in(Path(base.folder)) if base.folder else hub.stored_shapes(base, session=session)
    require_fit(find_matrices(shapes, structure.architecture), spec, name=base.name)
    return base


def quantize_base(base: BaseCheckpoint, spec: QuantizationSpec, out: Path, how: How) -> QuantizedCheckpoint:
    """Quantize a downloaded checkpoint into a new folder, which appears once it was verified.

    The errors are those of `quantize`.
    """
    package = require_package()
    check_new_folder(out)
    commits = commits_of(how.mix)
    key = key_of(_identity(base), spec, how.mix, commits, how.seed, how.device, how.dtype)
    kept = how.store.folder / "quantized" / key
    for other in kept.parent.glob("*"):  # of runs that nobody went on with: a disk has an end
        if other != kept and time.time() - other.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
    with scratch_folder(how.store.folder, name="quantize") as work:
        opened = open_source(base, spec, work, how)
        say_where(opened.base.config, device=how.device, dtype=how.dtype, reporter=how.reporter)
        record, texts = None, list[tuple[int, ...]]()
        held_out: Sequence[Sequence[int]] = ()
        if how.mix is not None:
            record, texts, held_out = draw_texts(opened, how.mix, commits, how)
        gptq = spec.method == "gptq"
        divergence, layers = _pass(opened, spec, kept, texts if gptq else (), held_out, how)
        told = _record(opened, spec, record if gptq else None, divergence, package=package)
        with staged_folder(out) as staged:
            _write(opened, spec, told, layers, staged, how)
            made = _verified(opened, spec, told, staged, how)
    shutil.rmtree(kept, ignore_errors=True)
    return made


def commits_of(mix: CalibrationMix | None) -> tuple[str | None, ...]:
    """Resolve the data sets of a mix, and find all that it names there.

    Raises:
        CalibrationError: something is not there; the hint says how to do without.
    """
    if mix is None:
        return ()
    try:
        commits = calibration.resolve_commits(mix)
        documents.check_subsets(mix, commits)
    except CalibrationError as error:
        error.advise(f"Or take other texts, with --calibration FILE; or none: --method rtn --calibration {NO_TEXTS}.")
        raise
    return commits


def _identity(base: BaseCheckpoint) -> object:
    if base.commit:
        return [base.name, base.commit]
    folder = Path(base.folder or "").resolve()
    return [str(folder), [[f.path, f.size, (folder / f.path).stat().st_mtime_ns] for f in base.files]]


def draw_texts(
    opened: Opened, mix: CalibrationMix, commits: Sequence[str | None], how: How
) -> tuple[CalibrationRecord, list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Draw the texts that are calibrated on, with their record, and others of the same mix."""
    held_out = min(MOST_HELD_OUT, max(LEAST_HELD_OUT, mix.num_samples // SHARE))
    larger = mix.model_copy(update={"num_samples": mix.num_samples + held_out})
    tokenizer = opened.runnable.tokenizer()

    def draw(mix: CalibrationMix) -> calibration.CalibrationSet:
        return calibration.draw(
            mix, commits=commits, seed=how.seed, tokenizer=tokenizer,
            context_length=opened.base.config.get("max_position_embeddings"), reporter=how.reporter,
        )  # fmt: skip

    first, others = calibration.divide(draw(larger), mix)
    record = draw(mix).record if mix.packed else first.record
    return record, [d.ids for d in first.documents], [d.ids for d in others]


def _pass(
    opened: Opened, spec: QuantizationSpec, kept: Path, texts: Sequence[Sequence[int]],
    held_out: Sequence[Sequence[int]], how: How,
) -> tuple[Divergence | None, list[Path]]:  # fmt: skip
    """Quantize layer by layer, and measure on other texts how far what comes of it is from what it was."""
    from hubprune.quantizing.divergence import compare_states
    from hubprune.quantizing.layerwise import LayerPass, needed_bytes, require_room

    prefix = opened.structure.architecture.layers_prefix
    require_room(needed_bytes(opened.matrices, spec, prefix=prefix, dtype=opened.dtype))
    going = LayerPass(opened.source, opened.matrices, spec, kept=kept, calibration=texts, held_out=held_out)
    with how.reporter.progress("quantizing", total=going.cost, unit="batches") as advance:
        going.run(advance, say=how.reporter.note)
    layers = going.files
    if not held_out:
        return None, layers
    found = compare_states(opened.source, going.held_out, going.before, going.after)
    how.reporter.note(
        f"on {found.documents} texts that were not calibrated on: KL {found.kl:.4f} nats per token, "
        f"{found.top1:.1%} the same first choice"
    )
    return found, layers


def _record(
    opened: Opened, spec: QuantizationSpec, texts: CalibrationRecord | None, divergence: Divergence | None, *,
    package: str,
) -> QuantizationRecord:  # fmt: skip
    weights, matrices = opened.weights, opened.matrices
    before = {t.name: t for _, t in weights if t.name in matrices}
    shapes = [s for m in matrices.values() for s in stored_shapes(m, spec, dtype=before[m.name].dtype).values()]
    made = sum(math.prod(shape) * DTYPE_BITS[dtype] // 8 for dtype, shape in shapes)
    return QuantizationRecord(
        source=opened.base.name, source_commit=opened.base.commit, scheme=spec.scheme, group_size=spec.columns,
        method=spec.method, ignored=IGNORED, matrices=len(matrices),
        quantized_parameters=sum(matrix.parameters for matrix in matrices.values()),
        bits_per_weight=round(bits_per_weight(matrices, spec), 4),
        source_bytes=weights.size(), weight_bytes=weights.size() - sum(t.size for t in before.values()) + made,
        calibration=texts, divergence=divergence, compressed_tensors=package,
    )  # fmt: skip


# ---- the folder ------------------------------------------------------------------------------------------------------


def _write(
    opened: Opened, spec: QuantizationSpec, record: QuantizationRecord, layers: Sequence[Path], folder: Path, how: How
) -> None:
    from hubprune.quantizing.writing import write_config, write_weights

    with how.reporter.progress("writing", total=record.weight_bytes, unit="B") as advance:
        write_weights(
            opened.weights, opened.matrices, spec, layers=layers, folder=folder, advance=advance
        )  # fmt: skip
    carry(opened, folder)
    write_config(config_of(opened), spec, record, folder)


# ---- what has to be true of it ---------------------------------------------------------------------------------------


def _verified(
    opened: Opened, spec: QuantizationSpec, record: QuantizationRecord, folder: Path, how: How
) -> QuantizedCheckpoint:
    seen = verify_against(opened, spec, folder, how)
    verify.require_passed(seen)
    how.reporter.note(f"verified in a fresh process: {len(seen.checks)} checks passed")
    weights, config, family = opened.weights, opened.base.config, opened.structure.architecture
    written, per_layer = open_weights(folder), kv_bytes_per_layer(opened.base.config)
    kv_bytes = per_layer * (opened.structure.num_hidden_layers - len(opened.structure.no_attn))
    parameters = count_parameters(weights, config, family)
    inventory = WrittenCheckpoint(
        files=list_files(folder), parameters=parameters, base_parameters=parameters, weight_bytes=written.size(),
        base_weight_bytes=weights.size(),
        dtypes=tuple(sorted({t.dtype for _, t in written}, key=lambda d: (-DTYPE_BITS[d], d))),
        kv_bytes_per_token=kv_bytes, base_kv_bytes_per_token=kv_bytes,
    )  # fmt: skip
    return QuantizedCheckpoint(written=inventory, record=record, verification=seen)
