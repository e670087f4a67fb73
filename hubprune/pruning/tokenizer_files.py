"""The tokenizer files of a result: whoever reads it gets the base's token ids, whatever transformers reads it.

transformers 5 decides by `model_type` in config.json whether it keeps the pipeline of tokenizer.json or builds one anew
by the class that tokenizer_config.json names; transformers 4 keeps the pipeline whatever the class.  A `model_type` of
ours is in no list.  So base and result are read side by side, and where they could differ, the result names the class
that transformers 5 takes for the base, or the one that keeps tokenizer.json in all versions.  What the base's own class
did by itself in transformers 4 is written down then: on which side it pads, which inputs it makes.

Bases that transformers 5 saved name classes and keys that transformers 4 cannot read; the result has those that both
can.  All other tokenizer files are copied byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune.core.architectures import Architecture
from hubprune.core.errors import CheckpointError
from hubprune.core.strict import parse_json

CONFIG, PIPELINE = "tokenizer_config.json", "tokenizer.json"
VOCABULARIES = (PIPELINE, "tokenizer.model", "vocab.json", "tekken.json")
"""Files of which one at least makes a tokenizer."""
KEEPS_PIPELINE = "PreTrainedTokenizerFast"
"""Name of the class that keeps tokenizer.json as it is; transformers 5 calls it TokenizersBackend, which 4 has not."""
FOLLOWS_NAME = ("llama", "smollm3")
"""Families for which transformers 5 registers no class: it goes by the one that is named, as it does for ours."""
OF_NEWER = ("TokenizersBackend", "PythonBackend", "SentencePieceBackend")
"""Classes that transformers 5 writes and transformers 4 does not know."""
TEXTS = (
    "Once upon a time there was a river.",
    " leading, and  two spaces   inside ",
    "In 2024 it's 12345, 3.14159 and 1,000,000.",
    "def add(a, b):\n    return a + b  # the sum\n\n\n\tpass\r\n",
    "Le café d'Émile, Übergröße, İstanbul, Москва, 東京, नमस्ते, مرحبا",
    "HTTPServer2.parse_URL(x!=y)&&[{}];",
    "{bos}hi{eos} yo {eos}",
    "",
)
"""What base and result are compared on; `{bos}` and `{eos}` stand for the special tokens."""
CHAT = (
    {"role": "user", "content": " How old is 2024? "},
    {"role": "assistant", "content": "Old."},
    {"role": "user", "content": "So?"},
)


@dataclass(frozen=True)
class _Fast:
    """What a class of transformers 4 does beyond what tokenizer.json says."""

    adds_bos: bool | None = None
    """Whether it begins a text with `bos_token` where tokenizer_config.json does not say; None where it leaves what
    tokenizer.json puts around a text."""
    pads_left: bool = False


_LEFT = _Fast(adds_bos=True, pads_left=True)
IN_VERSION_4 = {
    "LlamaTokenizer": _LEFT, "CodeLlamaTokenizer": _LEFT, "GemmaTokenizer": _LEFT, "CohereTokenizer": _LEFT,
    "GPTNeoXTokenizer": _Fast(adds_bos=False),
}  # fmt: skip
"""The classes with a behaviour of their own, without `Fast` at the end; read in 4.48 and 4.57."""
UNNAMED_IN_VERSION_4 = {
    "llama": "LlamaTokenizer", "mistral": "LlamaTokenizer", "phi3": "LlamaTokenizer", "gemma2": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer", "olmo2": "GPTNeoXTokenizer",
}  # fmt: skip
"""The class that transformers 4 takes for a family where the base names none; elsewhere it does not matter which."""


def settle_tokenizer(base_folder: Path, folder: Path, *, architecture: Architecture) -> str | None:
    """Change a result's tokenizer files, so far copies, where a reader would get other ids than from the base.

    Of the base, config.json and tokenizer files are enough; the result has to have its config.json.

    Returns:
        The class that the result's tokenizer_config.json names now, or None where no byte was changed.

    Raises:
        CheckpointError: transformers cannot load the base's tokenizer.
    """
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return None
    config, own = _json(folder / CONFIG), _json(base_folder / "config.json")
    own_name, extra = config.get("tokenizer_class"), config.get("extra_special_tokens")
    named = own_name or own.get("tokenizer_class")
    # Whether transformers 4 finds a class that it knows; for that of config.json it would have to trust code.
    readable = isinstance(own_name, str) and own_name not in OF_NEWER and not isinstance(extra, list)
    if readable and architecture.model_type in FOLLOWS_NAME and not _is_misnamed(named, folder):
        return None
    base = _loaded(base_folder)
    by_class = type(base).__name__
    if readable and _generic(str(named)) == _generic(by_class) and _decisive(_loaded(folder)) == _decisive(base):
        return None
    if not (folder / PIPELINE).is_file():  # transformers 5 makes it of a tokenizer.model, as transformers 4 would
        base.backend_tokenizer.save(str(folder / PIPELINE))
        special = {name: str(token) for name, token in base.special_tokens_map.items() if "_tokens" not in name}
        config = {**special, **config}
    written = KEEPS_PIPELINE if by_class in OF_NEWER else by_class
    # What the class that was named does by itself in transformers 4 is written down.
    left = {"padding_side": "left"} if _in_version_4(named, architecture).pads_left else {}
    config = {"model_input_names": ["input_ids", "attention_mask"], **left, **config}
    if isinstance(extra, list):  # transformers 4 takes a mapping there, and this for a list
        config = {key: value for key, value in config.items() if key != "extra_special_tokens"}
        config["additional_special_tokens"] = [*config.get("additional_special_tokens", ()), *extra]
    text = json.dumps({**config, "tokenizer_class": written}, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    return written


def _is_misnamed(named: Any, folder: Path) -> bool:
    """Tell whether a tokenizer of bytes is called one of pieces, as by DeepSeek.

    Versions of transformers 5 make up for that by repo ids, by the pipeline, or not at all.
    """
    is_of_pieces = str(named).removesuffix("Fast") == "LlamaTokenizer"
    return is_of_pieces and "ByteLevel" in json.dumps(_json(folder / PIPELINE).get("pre_tokenizer"))


def _generic(name: str) -> str:
    """Return the name of a class as 4 and 5 have it in common."""
    return KEEPS_PIPELINE if name in (KEEPS_PIPELINE, *OF_NEWER) else name.removesuffix("Fast")


def _in_version_4(named: Any, architecture: Architecture) -> _Fast:
    name = named or UNNAMED_IN_VERSION_4.get(architecture.model_type)
    return IN_VERSION_4.get(str(name).removesuffix("Fast"), _Fast())


def _loaded(folder: Path) -> Any:
    try:
        return load_tokenizer(folder)
    except Exception as error:  # whatever a broken file makes of transformers and tokenizers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"The tokenizer of {folder} cannot be loaded: {reason:.200}") from error


def _decisive(tokenizer: Any) -> object:
    """Return all of a tokenizer that decides about ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id]
    return special, json.loads(backend.to_str()) if backend is not None else token_ids(tokenizer)


def _json(path: Path) -> dict[str, Any]:
    return parse_json(path.read_bytes(), where=str(path)) if path.is_file() else {}


def ids_depend_on_version(base_folder: Path, folder: Path, *, architecture: Architecture) -> str | None:
    """Say where transformers 4 puts other tokens around a text of the base than around one of the result, else None.

    Some classes of transformers 4 go by `add_bos_token` and `add_eos_token`, or by a habit of theirs, and forget what
    tokenizer.json says; transformers 5 goes by tokenizer.json.  No result can follow both.
    """
    config, own = _json(base_folder / CONFIG), _json(base_folder / "config.json")
    fast = _in_version_4(config.get("tokenizer_class") or own.get("tokenizer_class"), architecture)
    is_changed = _json(folder / CONFIG).get("tokenizer_class") != config.get("tokenizer_class")
    if not is_changed or fast.adds_bos is None or not (base_folder / PIPELINE).is_file():
        return None
    adds_bos = config.get("add_bos_token")
    told = (fast.adds_bos if adds_bos is None else bool(adds_bos), bool(config.get("add_eos_token")))
    found = _around(_json(base_folder / PIPELINE).get("post_processor"))
    if found is None or found == told:
        return None
    bos, eos = ("adds" if adds else "adds no" for adds in told)
    said = f"transformers 4 {bos} bos_token and {eos} eos_token"
    return f"{said}, and tokenizer.json, by which transformers 5 goes, says otherwise"


def _around(processor: Any) -> tuple[bool, bool] | None:
    """Tell whether a post-processor puts something before and behind a text; None where it does something else."""
    steps = processor.get("processors", [processor]) if isinstance(processor, Mapping) else []
    templates = [step for step in steps if step.get("type") == "TemplateProcessing"]
    if any(step.get("type") not in ("TemplateProcessing", "ByteLevel") for step in steps) or len(templates) > 1:
        return None
    special = [["SpecialToken" in piece for piece in template.get("single", ())] for template in templates]
    return (special[0][0], special[0][-1]) if special and special[0] else (False, False)


def load_tokenizer(folder: Path | str, **options: Any) -> Any:
    """Load a tokenizer as somebody does who trusts no code: it never needs any."""
    from transformers import AutoTokenizer

    with _quiet():
        return AutoTokenizer.from_pretrained(folder, **{"trust_remote_code": False, **options})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from warning of a config whose code it may not run, which is what is wanted."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def token_ids(tokenizer: Any) -> list[list[int]]:
    """Return the ids of all TEXTS, with and without special tokens, and of a chat where a template makes one of it."""
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    texts = [text.replace("{bos}", bos).replace("{eos}", eos) for text in TEXTS]
    found = [list(tokenizer(text, add_special_tokens=added).input_ids) for added in (True, False) for text in texts]
    if tokenizer.chat_template:
        with suppress(Exception):  # a template that fails by itself does so for base and result
            chat = tokenizer.apply_chat_template(list(CHAT), add_generation_prompt=True, tokenize=False)
            found.append(list(tokenizer(chat, add_special_tokens=False).input_ids))
    return found
