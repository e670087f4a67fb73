"""Quantize a checkpoint, pruned or not, layer by layer; the folder appears once it was verified.

    resolve -> check names and shapes -> download -> draw texts -> layer by layer -> write -> compare -> verify

What the layers became waits in the work folder until then, so that a run that was stopped goes on with the next layer.
The record of it all stands in the written config.json; see `QuantizationRecord`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import (
    BaseCheckpoint,
    CalibrationRecord,
    Divergence,
    QuantizationRecord,
    QuantizedCheckpoint,
    Verification,
    WrittenCheckpoint,
)
from hubprune.core.config import Structure, check_config, read_structure, stock_config, write_json
from hubprune.core.console import Reporter
from hubprune.core.devices import resolve_device, resolve_dtype
from hubprune.core.errors import CalibrationError, RecipeError, UnsupportedFormatError, VerificationError
from hubprune.core.files import (
    StageStore,
    check_new_folder,
    key_of,
    list_files,
    scratch_folder,
    staged_folder,
    work_folder,
)
from hubprune.core.memory import kv_bytes_per_layer, kv_cache_bytes, say_where
from hubprune.core.recipe import BaseModelSpec, CalibrationMix, parse
from hubprune.core.requests import QuantizeRequest
from hubprune.core.specs import QuantizationSpec
from hubprune.core.weights import DTYPE_BITS, Weights, open_weights
from hubprune.hub import repos as hub
from hubprune.hub.session import HubSession
from hubprune.pruning import calibration, documents, verify
from hubprune.pruning.base_files import examine, settle, shapes_in
from hubprune.pruning.checkpoint import carry_files, count_parameters
from hubprune.pruning.comparing import CompareRequest
from hubprune.pruning.layouts import Runnable, make_runnable
from hubprune.pruning.placing import SMALL_BYTES
from hubprune.quantizing.packing import extra_parameters, require_package, stored_shapes
from hubprune.quantizing.schemes import (
    IGNORED,
    Matrix,
    bits_per_weight,
    decoded_config,
    find_matrices,
    require_fit,
    require_floats,
)
from hubprune.workflows.run import open_session, open_store, refuse_tokenizer_code

NO_TEXTS = "none"
"""What --calibration is where no texts are to be read."""
LEAST_HELD_OUT, MOST_HELD_OUT, SHARE = 8, 64, 4
"""Texts that the divergence is measured on: one for so many that are calibrated on, within these bounds."""


@dataclass(frozen=True, kw_only=True)
class How:
    """By which texts and where a checkpoint is quantized."""

    mix: CalibrationMix | None
    """None where no texts are read: nothing is made up for then, and nothing is measured."""
    store: StageStore
    reporter: Reporter
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"


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


def refuse_quantized(config: Mapping[str, Any], *, name: str) -> None:
    """Refuse a checkpoint whose weights have few bits already.

    Raises:
        UnsupportedFormatError: they have; the hint names what it was made of, where that is told.
    """
    told = config.get("quantization_config")
    if told is None:
        return
    method = told.get("quant_method") if isinstance(told, Mapping) else told
    record = told.get("hubprune") if isinstance(told, Mapping) else None
    source = record.get("source") if isinstance(record, Mapping) else None
    raise UnsupportedFormatError(
        f"{name} is quantized already ({method or 'unknown method'!s:.60}).",
        hint=f"Quantize the checkpoint that it was made of{f', {source:.100}' if isinstance(source, str) else ''}.",
    )


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """An unquantized checkpoint on this machine, as it is run and read."""

    base: BaseCheckpoint
    structure: Structure
    runnable: Runnable
    matrices: Mapping[str, Matrix]
    device: str
    dtype: str

    @property
    def weights(self) -> Weights:
        """Its weights as the model calls them."""
        return self.runnable.weights()

    @property
    def source(self) -> Any:
        """The same for the pass over its layers."""
        from hubprune.quantizing.layerwise import Source

        return Source(
            folder=self.runnable.folder, architecture=self.structure.architecture, own_code=self.runnable.own_code,
            tensor_names=self.runnable.tensor_names, dtype=self.dtype, device=self.device,
        )  # fmt: skip


def open_source(base: BaseCheckpoint, spec: QuantizationSpec, work: Path, how: How) -> _Opened:
    """Make a checkpoint on this machine ready to be run and read; `work` is a folder for what that takes.

    Raises:
        CheckpointError: its files contradict each other.
        UnsupportedFormatError: its weights are no floats of 16 or 32 bits, or its tokenizer needs code.
        VerificationError: it ships code that this version of hubprune does not write.
        RecipeError: the group size does not fit, or this machine has no such device.
    """
    folder = Path(base.folder or "")
    refuse_tokenizer_code(folder, name=base.name)
    examine(base, folder=folder, shapes=shapes_in(folder), reporter=how.reporter)
    base = settle(base, reporter=how.reporter)
    structure = read_structure(base.config, name=base.name)
    if structure.layout != "stock" and not verify.ships_only_our_code(folder, base.config, structure):
        raise VerificationError(
            f"{base.name} names or ships code that this version of hubprune would not write, and would carry it on.",
            hint="If an earlier hubprune published it, `hubprune refresh REPO` writes its code anew.",
        )
    runnable, device = make_runnable(base, work / "base"), resolve_device(how.device)
    weights = runnable.weights()
    matrices = find_matrices({tensor.name: tensor.shape for _, tensor in weights}, structure.architecture)
    require_fit(matrices, spec, name=base.name)
    require_floats(weights, matrices, name=base.name)
    dtype = resolve_dtype(how.dtype, base.config, device=device)
    return _Opened(
        base=base, structure=structure, runnable=runnable, matrices=matrices, device=device, dtype=dtype
    )  # fmt: skip


def quantize_base(base: BaseCheckpoint, spec: QuantizationSpec, out: Path, how: How) -> QuantizedCheckpoint:
    """Quantize a downloaded checkpoint into a new folder, which appears once it was verified.

    The errors are those of `quantize`.
    """
    package = require_package()
    check_new_folder(out)
    commits = _commits(how.mix)
    key = key_of(_identity(base), spec, how.mix, commits, how.seed, how.device, how.dtype)
    kept = how.store.folder / "quantized" / key
    with scratch_folder(how.store.folder, name="quantize") as work:
        opened = open_source(base, spec, work, how)
        say_where(opened.base.config, device=how.device, dtype=how.dtype, reporter=how.reporter)
        record, texts = None, list[tuple[int, ...]]()
        held_out: Sequence[Sequence[int]] = ()
        if how.mix is not None:
            record, texts, held_out = _draw(opened, how.mix, commits, how)
        gptq = spec.method == "gptq"
        divergence, layers = _pass(opened, spec, kept, texts if gptq else (), held_out, how)
        told = _record(opened, spec, record if gptq else None, divergence, package=package)
        with staged_folder(out) as staged:
            _write(opened, spec, told, layers, staged, how)
            made = _verified(opened, spec, told, staged, how)
    shutil.rmtree(kept, ignore_errors=True)
    return made


def _commits(mix: CalibrationMix | None) -> tuple[str | None, ...]:
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


def _draw(
    opened: _Opened, mix: CalibrationMix, commits: Sequence[str | None], how: How
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
    opened: _Opened, spec: QuantizationSpec, kept: Path, texts: Sequence[Sequence[int]],
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
    opened: _Opened, spec: QuantizationSpec, texts: CalibrationRecord | None, divergence: Divergence | None, *,
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
    opened: _Opened, spec: QuantizationSpec, record: QuantizationRecord, layers: Sequence[Path], folder: Path, how: How
) -> None:
    from hubprune.quantizing.writing import write_config, write_weights

    with how.reporter.progress("writing", total=record.weight_bytes, unit="B") as advance:
        write_weights(
            opened.weights, opened.matrices, spec, layers=layers, folder=folder, advance=advance
        )  # fmt: skip
    _carry(opened, folder)
    write_config(_config(opened), spec, record, folder)


def _config(opened: _Opened) -> dict[str, Any]:
    """Return the config.json before, of a stock base without what names foreign code."""
    config = opened.base.config
    return dict(config) if opened.structure.layout != "stock" else stock_config_of(config, opened.structure)


def stock_config_of(config: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """Return a stock checkpoint's config.json; what hubprune said of it stays."""
    kept = stock_config(config, structure)
    return {**kept, **({"hubprune": config["hubprune"]} if "hubprune" in config else {})}


def _carry(opened: _Opened, folder: Path) -> None:
    """Copy tokenizer, licence and modeling files as they are."""
    source, structure = Path(opened.base.folder or ""), opened.structure
    carry_files(source, folder)
    if structure.layout != "stock":
        name = structure.architecture.modeling_file(structure.layout)
        shutil.copyfile(source / name, folder / name)


# ---- what has to be true of it ---------------------------------------------------------------------------------------


def _verified(
    opened: _Opened, spec: QuantizationSpec, record: QuantizationRecord, folder: Path, how: How
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


def verify_against(opened: _Opened, spec: QuantizationSpec, folder: Path, how: How) -> Verification:
    """Compare a quantized folder with the checkpoint that it was made of: tensors, and what a fresh process computes.

    Raises:
        VerificationError: the fresh process could not load it.
    """
    from hubprune.quantizing.checking import check_tensors
    from hubprune.quantizing.writing import write_decoded

    structure, weights = opened.structure, opened.weights
    checks = check_tensors(opened.source, folder, opened.matrices, spec)
    small = 4 * weights.parameters() <= SMALL_BYTES
    with scratch_folder(how.store.folder, name="decoded") as decoded:
        write_decoded(
            weights, opened.matrices, spec, quantized=folder, folder=decoded, dtype="float32" if small else None
        )  # fmt: skip
        _carry(opened, decoded)
        write_json(_config(opened) | decoded_config(spec), decoded)
        custom = structure.layout != "stock"
        request = CompareRequest(
            base_folder=str(decoded.resolve()), base_custom_code=custom, folder=str(folder.resolve()),
            layers=structure.architecture.layers_prefix.removesuffix("."), zeroed=(), prompts=verify.PROMPTS,
            new_tokens=verify.NEW_TOKENS, custom_code=custom, device=how.device, dtype=how.dtype,
        )  # fmt: skip
        seen = verify.observe(request, reporter=how.reporter)
    parameters = count_parameters(weights, opened.base.config, structure.architecture)
    parameters += extra_parameters(opened.matrices.values(), spec)
    cache = kv_cache_bytes(opened.base.config, gone=structure.no_attn, tokens=seen.cache_tokens, dtype=seen.dtype)
    ids = f"{seen.compared_texts - seen.other_ids} of {seen.compared_texts} texts in transformers {seen.transformers}"
    loaded = verify.checks_of(seen, parameters, cache, like="those of the decoded weights", ids=ids)
    return Verification(
        checks=(*checks, *loaded), max_logit_difference=seen.max_logit_difference, dtype=seen.dtype,
        device=seen.device, read_bytes=seen.read_bytes, new_tokens=seen.new_tokens, parameters=seen.parameters,
        cache_bytes=seen.cache_bytes, cache_tokens=seen.cache_tokens, transformers=seen.transformers,
    )  # fmt: skip
