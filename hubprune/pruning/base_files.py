"""What a base's own files say, and where they contradict each other: asked before the large ones are downloaded.

examine    config.json with the names and shapes of all tensors, the tokenizer, generation settings, links
settle     once the weights are here: what transformers makes of them where config.json is silent or wrong
"""

from __future__ import annotations

from pathlib import Path

from hubprune.core.artifacts import BaseCheckpoint
from hubprune.core.console import Reporter
from hubprune.core.devices import with_dtype
from hubprune.core.errors import CheckpointError
from hubprune.core.strict import parse_json
from hubprune.core.structure import read_structure
from hubprune.core.weights import open_weights
from hubprune.pruning.checkpoint import carried_files
from hubprune.pruning.fitness import Fit, Shapes, first_words, fit, listed

ADAPTER = "adapter_config.json"
GENERATION = "generation_config.json"
SAMPLE = "The first of 3 rivers (1,024 km) was high; Élise said: 'na und?'\n\tif x == 0:\n"
"""A text with words, numbers, signs and white space, as any calibration text has them."""
READ_ROWS = 4096
"""Rows of an embedding that are in memory at once."""


def examine(base: BaseCheckpoint, *, folder: Path, shapes: Shapes, reporter: Reporter) -> None:
    """Check that the files of a base fit each other, and say what of them is not used.

    Args:
        base: the base, resolved.
        folder: with all of its files but, perhaps, the weights.
        shapes: of all tensors in its weights, by name.
        reporter: told what is left out, and what is odd.

    Raises:
        CheckpointError: the first contradiction, with its cause and what to do.
    """
    _refuse_adapter(base)
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
    what counts here, and `tie_word_embeddings` becomes false, so that every version computes it.

    Args:
        base: the base, downloaded.
        reporter: told of a head of its own.

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


def _refuse_adapter(base: BaseCheckpoint) -> None:
    """Refuse an adapter beside weights: what such a base computes depends on whether its reader has peft."""
    if any(file.path == ADAPTER for file in base.files):
        raise CheckpointError(
            f"{base.name} holds {ADAPTER} beside its weights: with peft, transformers would load that adapter on top "
            "of them, and without peft it would not.",
            hint=f"Where the adapter is merged into the weights already, prune a copy of the base without {ADAPTER}; "
            "else merge it first, with merge_and_unload() of peft.",
        )


# ---- what lies beside the weights --------------------------------------------------------------------------------


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


# ---- the head ----------------------------------------------------------------------------------------------------


def _has_own_head(folder: Path, found: Fit, base: BaseCheckpoint) -> bool:
    """Tell whether a head is stored beside the embedding, and has other values; both are read some rows at a time."""
    import torch

    from hubprune.pruning.streaming import WeightReader

    family = read_structure(base.config, name=base.name).architecture
    reader = WeightReader(folder, found.tensor_names)
    if not {family.head, family.embedding} <= reader.names:
        return False
    parts = (range(start, min(start + READ_ROWS, found.vocabulary)) for start in range(0, found.vocabulary, READ_ROWS))
    return not all(
        torch.equal(*(reader.rows(name, part).double() for name in (family.head, family.embedding))) for part in parts
    )
