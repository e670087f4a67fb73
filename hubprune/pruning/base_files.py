"""What a base's own files say, and where they contradict each other: asked before the large ones are downloaded.

examine    config.json with the names and shapes of all tensors, the tokenizer, generation settings, links
settle     once the weights are here: what transformers makes of them where config.json is silent or wrong
fit        what both ask: what transformers makes of a config.json and of the tensors in some files

Nobody knows better than transformers what it makes of a config.json and of tensors with certain names and shapes.  So
its own loader is asked, in about a second, with a model on the meta device and tensors that have a shape and no data.
What it does not use is left out of a result; what it would fill with random numbers, or fail on, is one error here, not
a late one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import BaseCheckpoint
from hubprune.core.config import NEEDED_NUMBERS, Structure, layout_keys, read_structure, stock_config, write_json
from hubprune.core.console import Reporter
from hubprune.core.devices import with_dtype
from hubprune.core.errors import CheckpointError
from hubprune.core.files import scratch_folder
from hubprune.core.neutral import ATTENTION, neutral_config
from hubprune.core.strict import parse_json
from hubprune.core.templates import published_code
from hubprune.core.weights import open_weights
from hubprune.pruning.checkpoint import carried_files

ADAPTER = "adapter_config.json"
GENERATION = "generation_config.json"
SAMPLE = "The first of 3 rivers (1,024 km) was high; Élise said: 'na und?'\n\tif x == 0:\n"
"""A text with words, numbers, signs and white space, as any calibration text has them."""
READ_ROWS = 4096
"""Rows of an embedding that are in memory at once."""
TOLD = 3
"""Names that a message lists."""

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""


def examine(base: BaseCheckpoint, *, folder: Path, shapes: Shapes, reporter: Reporter) -> None:
    """Check that the files of a base fit each other, and say what of them is not used, or odd.

    The folder holds all of its files but, perhaps, the weights, whose tensors `shapes` describes.

    Raises:
        CheckpointError: the first contradiction, with its cause and what to do.
    """
    if any(file.path == ADAPTER for file in base.files):
        raise CheckpointError(
            f"{base.name} holds {ADAPTER} beside its weights: with peft, transformers would load that adapter on top "
            "of them, and without peft it would not.",
            hint=f"Where the adapter is merged into the weights already, prune a copy of the base without {ADAPTER}; "
            "else merge it first, with merge_and_unload() of peft.",
        )
    carried_files(folder)
    found = fit(base.config, shapes, name=base.name)
    _check_generation(folder, name=base.name)
    _check_tokenizer(folder, found, name=base.name, reporter=reporter)
    if unused := found.unused:
        which = "1 tensor, which" if len(unused) == 1 else f"{len(unused)} tensors, which"
        reporter.note(f"leaving out {which} transformers does not use: {listed(unused)}")


def settle(base: BaseCheckpoint, *, reporter: Reporter) -> BaseCheckpoint:
    """Return a downloaded base whose config.json says what transformers makes of the weights.

    Where config.json names no dtype, it is that of the weights.  Where it says that the head is the embedding, and a
    head with other values is stored, transformers 5 uses both, and transformers 4 the embedding alone: the first is
    what counts here, and `tie_word_embeddings` becomes false, so that every version computes it, as is told.

    Raises:
        CheckpointError: as `examine`.
    """
    folder = Path(base.folder or "")
    found = fit(base.config, shapes_in(folder), name=base.name)
    config = with_dtype(base.config, folder)
    if found.config.tie_word_embeddings and _has_own_head(folder, found, base):
        config["tie_word_embeddings"] = False
        reporter.warn(
            f"config.json of {base.name} ties the head to the embedding, and its lm_head.weight has other values: "
            "transformers 5 uses both, transformers 4 the embedding alone. The result keeps both, for all versions."
        )
    return base.model_copy(update={"config": config, "tensor_names": found.tensor_names})


def shapes_in(folder: Path) -> Shapes:
    """Read the names and shapes of all tensors in a folder.

    Raises:
        CheckpointError: a file is missing, truncated, inconsistent or hostile.
    """
    return {tensor.name: tensor.shape for _, tensor in open_weights(folder)}


def _check_generation(folder: Path, *, name: str) -> None:
    """Refuse settings of generation that keep transformers from loading the base, or its result."""
    path, where = folder / GENERATION, f"{GENERATION} of {name}"
    if not path.is_file():
        return
    ends = parse_json(path.read_bytes(), where=where).get("eos_token_id")
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends or 0])):
        raise CheckpointError(
            f"{where} has eos_token_id={ends!r:.60}, which is no token id.", hint="It is an id, a list of ids, or null."
        )
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(folder)
    except Exception as error:  # what the library raises at values that it does not expect is anything
        raise CheckpointError(
            f"transformers cannot read {where}: {first_words(error)}",
            hint=f"Correct {GENERATION}; it is carried into the result as it is.",
        ) from error


def _check_tokenizer(folder: Path, found: Fit, *, name: str, reporter: Reporter) -> None:
    """Refuse a tokenizer that does not load, or whose tokens the embedding does not have."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=found.config, trust_remote_code=False)
        ids, vocabulary = tokenizer(SAMPLE)["input_ids"], tokenizer.get_vocab()
    except Exception as error:  # as above
        raise CheckpointError(
            f"transformers cannot load the tokenizer of {name}: {first_words(error)}",
            hint="Its tokenizer.json and tokenizer_config.json have to load in AutoTokenizer.",
        ) from error
    if (highest := max(ids, default=0)) >= found.vocabulary:
        raise CheckpointError(
            f"The tokenizer of {name} gives token {highest}, and the embedding has {found.vocabulary} rows.",
            hint="The tokenizer is that of another model, or vocab_size in config.json is too small.",
        )
    if beyond := sorted(token for token, number in vocabulary.items() if number >= found.vocabulary):
        reporter.warn(f"the embedding of {name} has no row for {listed(beyond)}: texts with them cannot be run")
    for key in ("bos_token_id", "eos_token_id"):
        token = getattr(found.config, key, None)
        if isinstance(token, int) and token >= found.vocabulary:
            reporter.warn(f"config.json of {name} has {key}={token}, and the embedding {found.vocabulary} rows")


def _has_own_head(folder: Path, found: Fit, base: BaseCheckpoint) -> bool:
    """Tell whether a head is stored beside the embedding, and has other values; both are read some rows at a time."""
    import torch

    from hubprune.core.streaming import WeightReader

    family = read_structure(base.config, name=base.name).architecture
    reader = WeightReader(folder, found.tensor_names)
    if not {family.head, family.embedding} <= reader.names:
        return False
    for start in range(0, found.vocabulary, READ_ROWS):
        part = range(start, min(start + READ_ROWS, found.vocabulary))
        if not torch.equal(*(reader.rows(name, part).double() for name in (family.head, family.embedding))):
            return True
    return False


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What transformers makes of the tensors in some files."""

    tensor_names: Mapping[str, str | None]
    """Name in the files -> in the model, None where it is not used; all others keep theirs."""
    vocabulary: int
    """Rows of the embedding."""
    config: Any
    """The config object that the model is built of."""

    @property
    def unused(self) -> tuple[str, ...]:
        """Tensors that are in the files and not in the model."""
        return tuple(name for name, used in self.tensor_names.items() if used is None)


def fit(config: Mapping[str, Any], shapes: Shapes, *, name: str) -> Fit:
    """Ask transformers what it makes of the config.json and the tensors of a base, pruned before or not.

    Raises:
        CheckpointError: no model can be built of the config, or the tensors are not those of that model.
    """
    structure = read_structure(config, name=name)
    _require_layers(structure, shapes, name)
    keys = dict(config)
    if structure.layout != "stock":  # then it has to be one that our code reads
        keys = stock_config(config, structure)
        keys |= layout_keys("pruned", keys, structure)
    try:
        loaded = _load(json.dumps(keys), tuple(sorted(shapes.items())))
    except Exception as error:  # what the libraries raise at values that they do not expect is anything
        raise _no_model(error, keys, name=name) from error
    _require_whole(loaded, config, shapes, name)
    return Fit(tensor_names=_names(loaded, shapes, structure, name), vocabulary=loaded.vocabulary, config=loaded.config)


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    config: Any
    prefix: str  # what the names of a decoder begin with in the model with a head
    vocabulary: int
    model: Shapes
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # name, shape in the files, in the model


@lru_cache(maxsize=4)
def _load(keys: str, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> _Loaded:
    import torch
    import transformers

    given, family = json.loads(keys), architecture_of(json.loads(keys))
    with _silence():
        if given["model_type"] != family.model_type:
            code = published_code(family)
            kind, config = code[family.pruned_class], code[f"Pruned{family.config_class}"](**given)
        else:
            with scratch_folder(name="hubprune-config") as folder:
                write_json(given, folder)
                kind, config = getattr(transformers, family.causal_lm_class), neutral_config(folder, own_code=False)
        model, told = kind.from_pretrained(
            None,
            config=config,
            attn_implementation=ATTENTION,
            dtype="auto",
            state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes},
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return _Loaded(
        config=config,
        prefix=f"{model.base_model_prefix}.",
        vocabulary=model.get_input_embeddings().num_embeddings,
        model={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        missing=tuple(sorted(told["missing_keys"])),
        unexpected=tuple(sorted(told["unexpected_keys"])),
        mismatched=tuple((key, tuple(one), tuple(other)) for key, one, other in sorted(told["mismatched_keys"])),
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the bars and reports of loading away: what they say is said in our words."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _no_model(error: Exception, keys: Mapping[str, Any], *, name: str) -> CheckpointError:
    """Name the key without which a model can be built, if there is one; those that the error speaks of come first.

    Where sizes contradict each other, it could be either of them.
    """

    def builds_without(key: str) -> bool:
        """Tell whether transformers makes a config of all other keys."""
        try:
            _load(json.dumps({other: value for other, value in keys.items() if other != key}), ())
        except Exception:  # as in `fit`
            return False
        return True

    others = sorted((key for key in keys if key not in NEEDED_NUMBERS), key=lambda key: key not in str(error))
    found = next(filter(builds_without, others), None)
    culprits = [found] if found else list(filter(builds_without, NEEDED_NUMBERS))
    named = f" with {', '.join(f'{key}={keys[key]!r:.60}' for key in culprits)}" if culprits else ""
    return CheckpointError(
        f"transformers can make no model of config.json of {name}{named}: {first_words(error)}",
        hint="Correct config.json so that AutoModelForCausalLM loads the base.",
    )


def _require_layers(structure: Structure, shapes: Shapes, name: str) -> None:
    """Compare the number of layers first: to build thousands that are not there would take minutes."""
    layer = re.compile(rf"(?:{re.escape(structure.architecture.layers_prefix)}|layers\.)(\d+)\.")
    stored = {int(found[1]) for key in shapes if (found := layer.match(key))}
    expected = set(range(structure.num_hidden_layers)) - (set(structure.no_attn) & set(structure.no_mlp))
    if stored and (absent := expected - stored):
        raise CheckpointError(
            f"config.json of {name} has num_hidden_layers={structure.num_hidden_layers}, and its weights hold no "
            f"layer {min(absent)}.",
            hint="config.json and the weights are not of the same model; layers are counted from 0.",
        )


def _require_whole(loaded: _Loaded, config: Mapping[str, Any], shapes: Shapes, name: str) -> None:
    if loaded.missing == ("lm_head.weight",):
        given = "tie_word_embeddings" in config
        said = "says tie_word_embeddings: false" if given else "has no tie_word_embeddings, which means false"
        raise CheckpointError(
            f"config.json of {name} {said}, and its weights hold no lm_head.weight: the head would be random numbers.",
            hint='If the embedding is the head, set "tie_word_embeddings": true in config.json; else the weights are '
            "not complete.",
        )
    if loaded.missing:
        others = f" What they hold instead is {listed(loaded.unexpected)}." if loaded.unexpected else ""
        raise CheckpointError(
            f"The weights of {name} do not hold what config.json describes: {listed(loaded.missing)}.{others}",
            hint="transformers would fill the holes with random numbers. Take complete weights of that model"
            + (", and merge the adapter into them." if any("lora_" in key for key in shapes) else "."),
        )
    if loaded.mismatched:
        key, stored, wanted = loaded.mismatched[0]
        more = f", and so for {len(loaded.mismatched) - 1} more" if len(loaded.mismatched) > 1 else ""
        raise CheckpointError(
            f"{key} of {name} has shape {list(stored)}, where config.json describes {list(wanted)}{more}.",
            hint="config.json and the weights are not of the same model.",
        )


def _names(loaded: _Loaded, shapes: Shapes, structure: Structure, name: str) -> dict[str, str | None]:
    """Map the tensors that the model calls otherwise, or does not use."""
    family, prefix = structure.architecture, loaded.prefix
    names: dict[str, str | None] = dict.fromkeys(loaded.unexpected)
    for key in shapes:
        if key in names or key in loaded.model or not family.is_parameter(key):
            continue
        called = next((other for other in (prefix + key, key.removeprefix(prefix)) if other in loaded.model), None)
        if called is not None and (called in shapes or called in names.values()):
            raise CheckpointError(
                f"{name} has {key} and {called} in its files, which are one tensor for transformers.",
                hint="Take one of the two out.",
            )
        names[key] = called
    if family.head in shapes and family.embedding not in {names.get(key, key) for key in shapes}:
        names[family.head] = family.embedding  # tied the other way round: what is there serves as both
    return names


def listed(names: Sequence[str]) -> str:
    """Write the first of some names, and how many more there are."""
    shown = ", ".join(names[:TOLD])
    return f"{shown} and {len(names) - TOLD} more" if len(names) > TOLD else shown


def first_words(error: Exception) -> str:
    """Write the error of a library on one line."""
    said = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {said:.300}"
