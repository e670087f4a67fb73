"""Render the modeling file that a published repo ships.

Readers load it for years, with versions of transformers that do not exist yet.  So it copies no code of transformers
and overrides no forward; it replaces modules of a stock model right after that was built.
"""

from __future__ import annotations

import hashlib
import keyword
from typing import Any

from packaging.version import Version

from hubprune import __version__
from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import Layout
from hubprune.core.templates import environment, template_folder

TEMPLATE = "modeling_pruned.py.jinja"
INCLUDED = "nemotron_nas_config.py.jinja"


def render(architecture: Architecture, *, layout: Layout = "pruned", version: str = __version__) -> str:
    """Render the modeling file of a family.

    The text depends on the family, the layout and the version of hubprune only, never on a repo or a user's words.

    Raises:
        ValueError: a value of the table or the version could not stand in Python source.
    """
    template = environment("modeling", filters={"ident": ident, "py": py}).get_template(TEMPLATE)
    return template.render(
        version=str(Version(version)),
        template_sha256=_template_sha256(),
        Base=architecture.class_prefix,
        Config=architecture.config_class,
        Model=architecture.model_class,
        CausalLM=architecture.causal_lm_class,
        module=architecture.module,
        model_type=architecture.model_type,
        floor=architecture.floor,
        lists_floor=architecture.lists_floor or architecture.floor,
        scaling_keys=architecture.scaling_keys,
        local_rope_base=architecture.local_rope_base,
        attn_module=architecture.attn_module,
        mlp_module=architecture.mlp_module,
        attn_norms=architecture.attn_norms,
        mlp_norms=architecture.mlp_norms,
        nemotron_nas=layout == "nemotron-nas",
    )


def _template_sha256() -> str:
    """Hash the template with what it includes."""
    folder = template_folder("modeling")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in (TEMPLATE, INCLUDED))).hexdigest()


def ident(value: Any) -> str:
    """Return a value that is an ASCII identifier and no keyword.

    Raises:
        ValueError: it is something else, and might be code.
    """
    if not isinstance(value, str) or not value.isascii() or not value.isidentifier() or keyword.iskeyword(value):
        raise ValueError(f"{value!r} is no identifier")
    return value


def py(value: Any) -> str:
    """Write a value as a Python literal with double quotes; tuples, ASCII strings and integers only.

    Raises:
        ValueError: the value is of another type or holds characters that a module name would not.
    """
    if type(value) is int:
        return str(value)
    if isinstance(value, str):
        return f'"{ident(value)}"'
    if isinstance(value, tuple):
        inner = ", ".join(py(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    raise ValueError(f"{value!r} has no place in a modeling file")
