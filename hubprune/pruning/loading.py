"""What the fresh process of a verification does; `python -m hubprune.pruning.loading ACTION`, JSON in and out.

It loads as a reader would: `AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)` where the checkpoint
ships a modeling file, which is one that hubprune rendered; so is that of a base that was pruned before.  What the files
only wish for, attention and settings of generation, is the same for both: see `hubprune.core.neutral`.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from hubprune.core import devices, memory
from hubprune.core.artifacts import Check
from hubprune.core.config import read_config
from hubprune.core.neutral import fresh_generation, load_causal_lm, load_with_report
from hubprune.core.weights import open_weights
from hubprune.pruning.tokenizer_files import load_tokenizer, token_ids
from hubprune.pruning.width import from_mask, stacked

TIE = 1e-4
"""Two logits are a tie when they differ by less than this share, or than four units in the last place."""


class NarrowedTensor(BaseModel):
    """A weight or bias of the base of which only some neurons stay."""

    name: str
    axis: int
    """0 where a neuron is a row, 1 where it is a column."""
    blocks: int
    """How many projections it holds, one below the other."""
    width: int
    """Neurons before."""
    kept: str
    """Those that stay, as a mask of bits in hex."""


class CompareRequest(BaseModel):
    """Compare a checkpoint with its base."""

    base_folder: str
    base_custom_code: bool
    """Whether the base was pruned before; its modeling file is then one that hubprune rendered, too."""
    folder: str
    zeroed: tuple[str, ...]
    """Weights of the base that are set to zero first."""
    narrowed: tuple[NarrowedTensor, ...] = ()
    """Tensors of the base whose other neurons must not count."""
    prompts: tuple[str, ...]
    new_tokens: int
    custom_code: bool


class Comparison(BaseModel):
    """What the comparison saw."""

    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    parameters: int
    dtype: str
    max_logit_difference: float
    largest_logit: float  # of the base, by its absolute value
    argmax_equal: bool
    positions: int
    cached_equal: bool
    padded_equal: bool
    generated: int
    refused_without_trust: bool | None
    cache_bytes: int
    cache_tokens: int
    other_ids: int
    """Texts for which a reader, trusting the checkpoint's code or not, gets other token ids than from the base."""
    compared_texts: int
    transformers: str
    not_finite: Literal["base", "result"] | None
    """Whose logits are no finite numbers, if any; `max_logit_difference` then says nothing."""


class LoadRequest(BaseModel):
    """Load a commit from a Hub and let it write."""

    repo_id: str
    commit: str
    prompt: str
    new_tokens: int
    custom_code: bool


class Loaded(BaseModel):
    """What a model that was loaded from a Hub wrote."""

    text: str
    """The prompt and its continuation."""
    parameters: int


def compare(request: CompareRequest) -> Comparison:
    """Run both models on the prompts, one after the other, so that only one is in memory."""
    import torch
    import transformers

    tokenizer = load_tokenizer(request.folder)
    other_ids, compared_texts = _other_ids(request, tokenizer)
    rows = [tokenizer(prompt, return_tensors="pt").input_ids for prompt in request.prompts]
    dtype = _comparison_dtype(request.base_folder)
    with torch.inference_mode():
        reference = _reference_logits(request, rows, dtype)
        model, info = load_with_report(request.folder, dtype=dtype, own_code=request.custom_code)
        logits = [model(ids).logits for ids in rows]
        pairs = list(zip(logits, reference, strict=True))
        finite = [all(bool(row.isfinite().all()) for row in found) for found in (reference, logits)]
        not_finite: Literal["base", "result"] | None = None if all(finite) else "result" if finite[0] else "base"
        alone = [_greedy(model, ids, request.new_tokens) for ids in rows]
        uncached = [_generate(model, ids, request.new_tokens, use_cache=False)[0] for ids in rows]
        cache = model(rows[0], use_cache=True).past_key_values
        return Comparison(
            missing_keys=tuple(sorted(map(str, info["missing_keys"]))),
            unexpected_keys=tuple(sorted(map(str, info["unexpected_keys"]))),
            parameters=model.num_parameters(),
            dtype=str(dtype).removeprefix("torch."),
            max_logit_difference=0.0 if not_finite else max(float((one - other).abs().max()) for one, other in pairs),
            largest_logit=0.0 if not_finite else max(float(row.abs().max()) for row in reference),
            argmax_equal=all(torch.equal(one.argmax(-1), other.argmax(-1)) for one, other in pairs),
            positions=sum(ids.numel() for ids in rows),
            cached_equal=_same_texts(model, rows, alone, uncached),
            padded_equal=_same_texts(model, rows, alone, _padded(model, rows, request.new_tokens)),
            generated=sum(map(len, alone)),
            refused_without_trust=_refused(request.folder) if request.custom_code else None,
            cache_bytes=memory.held_bytes(cache),
            cache_tokens=rows[0].shape[1],
            other_ids=other_ids,
            compared_texts=compared_texts,
            transformers=transformers.__version__,
            not_finite=not_finite,
        )


def _other_ids(request: CompareRequest, tokenizer: Any) -> tuple[int, int]:
    """Count the texts for which a reader of the checkpoint gets other token ids than one of the base, and all texts."""
    expected = token_ids(load_tokenizer(request.base_folder, trust_remote_code=request.base_custom_code))
    readers = [tokenizer, *([load_tokenizer(request.folder, trust_remote_code=True)] if request.custom_code else [])]
    found = [token_ids(reader) for reader in readers]
    return sum(any(ids != row for ids in pair) for row, *pair in zip(expected, *found, strict=True)), len(expected)


def load(request: LoadRequest) -> Loaded:
    """Load a published commit and write a greedy continuation."""
    import torch

    tokenizer = load_tokenizer(request.repo_id, revision=request.commit)
    model = load_causal_lm(request.repo_id, dtype="auto", own_code=request.custom_code, revision=request.commit)
    ids = tokenizer(request.prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        new = _greedy(model, ids, request.new_tokens)
    # Decoded together: alone, a first token loses the space before it in some tokenizers.
    text = tokenizer.decode([*ids[0].tolist(), *new], skip_special_tokens=True)
    return Loaded(text=text, parameters=model.num_parameters())


def _comparison_dtype(folder: str) -> Any:
    """Compare in float32 where that fits into memory; else in the checkpoint's own dtype.

    A removed sublayer adds exactly zero in either, so the tolerance is the same; for neurons see `_narrow`.
    """
    import torch

    if 4 * open_weights(Path(folder)).parameters() < 0.8 * memory.available_bytes():
        return torch.float32
    config = devices.with_dtype(read_config(Path(folder)), Path(folder))
    return getattr(torch, devices.resolve_dtype("auto", config))


def _reference_logits(request: CompareRequest, rows: Sequence[Any], dtype: Any) -> list[Any]:
    import torch

    model = load_causal_lm(request.base_folder, dtype=dtype, own_code=request.base_custom_code)
    for name in request.zeroed:
        weight = model.get_parameter(name)
        weight.zero_()
        bias = getattr(model.get_submodule(name.removesuffix(".weight")), "bias", None)
        if isinstance(bias, torch.Tensor):
            bias.zero_()
    for tensor in request.narrowed:
        _narrow(model, tensor, exact=dtype == torch.float32)
    logits = [model(ids).logits for ids in rows]
    del model
    gc.collect()
    return logits


def _narrow(model: Any, tensor: NarrowedTensor, *, exact: bool) -> None:
    """Make the neurons that go add zero; where sums are too coarse to be compared so, pick the others in memory.

    A sum over more terms is rounded elsewhere, even if these are zero: by some 1e-6 in float32, but by far more than
    any tolerance in bfloat16.  With the same neurons side by side there, the two models add in the same order.
    """
    parameter, kept = model.get_parameter(tensor.name), from_mask(tensor.kept)
    if not exact:
        picked = stacked(kept, width=tensor.width, blocks=tensor.blocks)
        parameter.data = parameter.data.index_select(tensor.axis, picked)
    elif tensor.axis == 1:
        left = parameter[:, kept].clone()
        parameter.zero_()
        parameter[:, kept] = left


def _greedy(model: Any, ids: Any, new_tokens: int) -> list[int]:
    return _generate(model, ids, new_tokens, use_cache=True)[0]


def _padded(model: Any, rows: Sequence[Any], new_tokens: int) -> list[list[int]]:
    import torch

    width = max(ids.shape[1] for ids in rows)
    batch = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(batch)
    for row, ids in enumerate(rows):
        batch[row, width - ids.shape[1] :] = ids
        mask[row, width - ids.shape[1] :] = 1
    return _generate(model, batch, new_tokens, use_cache=True, attention_mask=mask)


def _same_texts(model: Any, rows: Sequence[Any], ones: list[list[int]], others: list[list[int]]) -> bool:
    """Tell whether all texts are equal, or part only where the model has no preference.

    Two ways to compute the same logits differ in their last bits; where two tokens are that close, either is right.
    """
    import torch

    for ids, one, other in zip(rows, ones, others, strict=True):
        if one == other:
            continue
        split = next(i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
        logits = model(torch.cat([ids, torch.tensor([one[:split]], dtype=ids.dtype)], dim=1)).logits[0, -1]
        pair = logits[[one[split], other[split]]]
        share = max(TIE, 4 * torch.finfo(logits.dtype).eps)
        if not (pair[0] - pair[1]).abs() <= share * pair.abs().max():  # nor where it is no number
            return False
    return True


def _generate(model: Any, ids: Any, new_tokens: int, *, use_cache: bool, attention_mask: Any = None) -> list[list[int]]:
    """Decode exactly `new_tokens` tokens greedily: without an end token, every row says as much as it can."""
    import torch

    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    ends = model.generation_config.eos_token_id
    asked = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "use_cache": use_cache, "pad_token_id": 0}
    new = model.generate(ids, attention_mask=mask, generation_config=fresh_generation(ends, **asked))
    rows: list[list[int]] = new[:, ids.shape[1] :].tolist()
    return rows


def _refused(folder: str) -> bool:
    """Tell whether the Auto class refuses the folder when remote code is not trusted."""
    from transformers import AutoModelForCausalLM

    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # whatever it is: what counts is that nothing was loaded
        return True
    return False


MLX_TOLERANCE = 1e-3
"""Largest allowed difference of a logit in float32; mlx-lm sums in another order."""


class MlxRequest(BaseModel):
    """Compare a checkpoint in mlx-lm with itself in transformers."""

    folder: str
    prompts: tuple[str, ...]


class MlxComparison(BaseModel):
    """What the comparison saw."""

    version: str
    max_logit_difference: float
    argmax_equal: bool
    positions: int

    @property
    def check(self) -> Check:
        """The comparison as one check of the verification."""
        return Check(
            name="logits in mlx-lm equal those in transformers",
            passed=self.argmax_equal and self.max_logit_difference <= MLX_TOLERANCE,
            detail=f"mlx-lm {self.version}, largest difference {self.max_logit_difference:.2e} in float32",
        )


def mlx_is_installed() -> bool:
    """Tell whether mlx-lm can be imported."""
    return importlib.util.find_spec("mlx_lm") is not None


def compare_in_mlx(request: MlxRequest) -> MlxComparison:
    """Run both on the prompts in float32; transformers first, so that only one model is in memory."""
    from importlib.metadata import version

    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request.folder, trust_remote_code=False)
    rows = [tokenizer(prompt).input_ids for prompt in request.prompts]
    model = load_causal_lm(request.folder, dtype=torch.float32, own_code=True)
    with torch.inference_mode():
        reference = [model(torch.tensor([row])).logits[0] for row in rows]
    del model
    pairs = list(zip(reference, _mlx_logits(Path(request.folder), rows), strict=True))
    return MlxComparison(
        version=version("mlx-lm"),
        max_logit_difference=max(float((one - other).abs().max()) for one, other in pairs),
        argmax_equal=all(bool(b.isfinite().all()) and torch.equal(a.argmax(-1), b.argmax(-1)) for a, b in pairs),
        positions=sum(map(len, rows)),
    )


def _mlx_logits(folder: Path, rows: Sequence[Sequence[int]]) -> list[Any]:
    import mlx.core as mx
    import torch
    from mlx_lm.utils import load_model

    model, _ = load_model(folder, strict=True)
    model.set_dtype(mx.float32)
    return [torch.tensor(model(mx.array([row])).tolist())[0] for row in rows]


_ACTIONS: Mapping[str, tuple[type[BaseModel], Callable[[Any], BaseModel]]] = {
    "compare": (CompareRequest, compare),
    "load": (LoadRequest, load),
    "mlx": (MlxRequest, compare_in_mlx),
}


def main() -> None:
    """Read a request from stdin, write the answer as the last line of stdout."""
    devices.spare()
    kind, act = _ACTIONS[sys.argv[1]]
    print(act(kind.model_validate_json(sys.stdin.read())).model_dump_json())


if __name__ == "__main__":
    main()
