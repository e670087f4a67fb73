"""Which files of a base, besides its weights and config.json, a result carries byte for byte."""

from __future__ import annotations

from fnmatch import fnmatchcase

LICENSE_PATTERNS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
CARRIED_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.tiktoken", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    *("generation_config.json", "chat_template*", "chat_templates/*", "additional_chat_templates/*"),
    *LICENSE_PATTERNS,
)
"""Patterns of tokenizer, generation, chat template and licence files, at the top unless a folder is named."""
CODE_SUFFIXES = (".py", ".pyc", ".pyd", ".so")
"""What Python can import."""


def is_carried(path: str) -> bool:
    """Tell whether a file travels into the result; `path` is below the repo, with forward slashes.  Code never does."""
    return not path.endswith(CODE_SUFFIXES) and any(
        fnmatchcase(path, p) and path.count("/") == p.count("/") for p in CARRIED_FILES
    )
