"""A quantized checkpoint and the one that it was made of: opened, and held against each other."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import (
    BaseCheckpoint,
    Check,
    QuantizationRecord,
    Verification,
)
from hubprune.core.config import Structure, read_structure, stock_config, write_json
from hubprune.core.console import Reporter, size
from hubprune.core.devices import resolve_device, resolve_dtype
from hubprune.core.errors import UnsupportedFormatError, UnverifiedError, VerificationError
from hubprune.core.files import (
    StageStore,
    scratch_folder,
)
from hubprune.core.memory import available_bytes, kv_cache_bytes
from hubprune.core.prompts import PACKAGE_PROMPTS, read_prompts
from hubprune.core.recipe import CalibrationMix
from hubprune.core.specs import QuantizationSpec
from hubprune.core.weights import Weights
from hubprune.pruning import verify
from hubprune.pruning.base_files import examine, settle, shapes_in
from hubprune.pruning.checkpoint import carry_files, count_parameters
from hubprune.pruning.comparing import CompareRequest
from hubprune.pruning.layouts import Runnable, make_runnable
from hubprune.pruning.placing import SMALL_BYTES
from hubprune.quantizing.packing import extra_parameters
from hubprune.quantizing.schemes import (
    Matrix,
    decoded_config,
    find_matrices,
    require_fit,
    require_floats,
)
from hubprune.workflows.run import refuse_tokenizer_code


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


def refuse_quantized(config: Mapping[str, Any], *, name: str, do: str = "Quantize") -> None:
    """Refuse a checkpoint whose weights have few bits already; `do` says what is to be done with the one before.

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
        hint=f"{do} the checkpoint that it was made of{f', {source:.100}' if isinstance(source, str) else ''}.",
    )


@dataclass(frozen=True, kw_only=True)
class Opened:
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


def open_source(base: BaseCheckpoint, spec: QuantizationSpec, work: Path, how: How) -> Opened:
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
    return Opened(
        base=base, structure=structure, runnable=runnable, matrices=matrices, device=device, dtype=dtype
    )  # fmt: skip


def config_of(opened: Opened) -> dict[str, Any]:
    """Return the config.json before, of a stock base without what names foreign code."""
    config = opened.base.config
    return dict(config) if opened.structure.layout != "stock" else stock_config_of(config, opened.structure)


def stock_config_of(config: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """Return a stock checkpoint's config.json; what hubprune said of it stays."""
    kept = stock_config(config, structure)
    return {**kept, **({"hubprune": config["hubprune"]} if "hubprune" in config else {})}


def carry(opened: Opened, folder: Path) -> None:
    """Copy tokenizer, licence and modeling files as they are."""
    source, structure = Path(opened.base.folder or ""), opened.structure
    carry_files(source, folder)
    if structure.layout != "stock":
        name = structure.architecture.modeling_file(structure.layout)
        shutil.copyfile(source / name, folder / name)


def verify_against(
    opened: Opened, spec: QuantizationSpec, folder: Path, how: How, *, record: QuantizationRecord | None = None
) -> Verification:
    """Compare a quantized folder with the checkpoint that it was made of: tensors, and what a fresh process computes.

    With a record, the next tokens of both are compared too, and held against the divergence that it tells.

    Raises:
        VerificationError: the fresh process could not load it.
    """
    from hubprune.quantizing.checking import check_tensors
    from hubprune.quantizing.writing import write_decoded

    structure, weights = opened.structure, opened.weights
    checks = check_tensors(opened.source, folder, opened.matrices, spec)
    if record and all(check.passed for check in checks):
        checks.append(_divergence_check(opened, spec, folder, record, how))
    small = 4 * weights.parameters() <= SMALL_BYTES
    _require_memory(weights, small=small)
    with scratch_folder(how.store.folder, name="decoded") as decoded:
        write_decoded(
            weights, opened.matrices, spec, quantized=folder, folder=decoded, dtype="float32" if small else None
        )  # fmt: skip
        carry(opened, decoded)
        write_json(config_of(opened) | decoded_config(spec), decoded)
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


def _require_memory(weights: Weights, *, small: bool) -> None:
    """Refuse to load what does not fit: transformers decodes all of a quantized model into memory.

    Raises:
        UnverifiedError: it does not fit; what the layers became is kept.
    """
    needed = 4 * weights.parameters() if small else weights.size()
    if needed > (free := available_bytes()):
        raise UnverifiedError(
            f"To be verified, the quantized checkpoint is loaded by transformers, which decodes it into "
            f"{size(needed)} of memory; {size(free)} may be taken.",
            hint="Give it more. What its layers became is kept, and the same command goes on there.",
        )


def _divergence_check(
    opened: Opened, spec: QuantizationSpec, folder: Path, record: QuantizationRecord, how: How
) -> Check:
    """Run both on the prompts that come with hubprune."""
    from hubprune.quantizing.checking import check_divergence
    from hubprune.quantizing.divergence import compare_states
    from hubprune.quantizing.layerwise import LayerPass

    tokenizer = opened.runnable.tokenizer()
    texts = [tuple(tokenizer(text)["input_ids"]) for text in (*read_prompts(PACKAGE_PROMPTS), *verify.PROMPTS)]
    with scratch_folder(how.store.folder, name="pass") as kept:
        going = LayerPass(opened.source, opened.matrices, spec, kept=kept, held_out=texts, made=folder)
        with how.reporter.progress("comparing", total=going.cost, unit="batches") as advance:
            going.run(advance, say=how.reporter.note)
    return check_divergence(compare_states(opened.source, going.held_out, going.before, going.after), record.divergence)
