"""Which files of a base, besides its weights and config.json, a result carries byte for byte.

A result is published under its user's name, so a file travels only where both its name and its kind are known: nothing
that a program would run or unpickle.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

LICENSE_PATTERNS = ("license*", "notice*", "use_policy*")
"""Patterns of lower-case names at the top of a repo."""
CARRIED_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.tiktoken", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    *("generation_config.json", "chat_template*", "chat_templates/*", "additional_chat_templates/*"),
)
"""Patterns of tokenizer, generation and chat template files, at the top unless a folder is named."""
CARRIED_SUFFIXES = (".bpe", ".jinja", ".json", ".model", ".tiktoken", ".txt")
LICENSE_SUFFIXES = ("", ".html", ".md", ".pdf", ".rst", ".rtf", ".txt")
VERSION_SUFFIX = re.compile(r"\.v?\d+")
"""The end of `LICENSE-2.0` and of `tokenizer.model.v3`."""


def is_carried(path: str) -> bool:
    """Tell whether a file travels into the result; `path` is below the repo, with forward slashes."""
    return is_license(path) or (_matches(path, CARRIED_FILES) and _suffix(path) in CARRIED_SUFFIXES)


def is_license(path: str) -> bool:
    """Tell whether a file holds terms of use, to go by its name."""
    return _matches(path, LICENSE_PATTERNS) and _suffix(path) in LICENSE_SUFFIXES


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Compare without regard to case: a name that only some systems tell from another one is no other name."""
    name = path.lower()
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _suffix(path: str) -> str:
    """Return the suffix that says what kind of file it is, in lower case; that of a version says nothing."""
    name = PurePosixPath(path.lower())
    return name.with_suffix("").suffix if VERSION_SUFFIX.fullmatch(name.suffix) else name.suffix
