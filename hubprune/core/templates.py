"""The one strict Jinja environment, and the modeling file that is made by it.

Readers load that file for years, with versions of transformers that do not exist yet.  So it copies no code of
transformers and overrides no forward; it replaces modules of a stock model right after that was built.  What runs here
is always this version's own text, never what a repo ships.
"""

from __future__ import annotations

import hashlib
import keyword
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.version import Version

from hubprune.core import __version__
from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import Layout
from hubprune.core.config import Structure, layout_keys, stock_config, write_json
from hubprune.core.weights import INDEX_NAME, open_weights

if TYPE_CHECKING:
    from jinja2 import Environment

TemplateKind = Literal["modeling", "card"]
MOST_COPIES = 10_000
"""How often a template may repeat a text or list, and the largest power of a number; a card is some 1,000 lines."""


def template_folder(kind: TemplateKind) -> Path:
    """Return the folder that holds the templates of one kind.

    A wheel carries the folders inside the package, a checkout has them beside it.

    Raises:
        FileNotFoundError: neither place has the folder, so the installation is incomplete.
    """
    package = Path(__file__).parent.parent
    for parent in (package, package.parent):
        if (folder := parent / f"{kind}_templates").is_dir():
            return folder
    raise FileNotFoundError(f"{kind}_templates is neither in {package} nor beside it: reinstall hubprune")


def environment(
    kind: TemplateKind, *, filters: Mapping[str, Callable[..., str]] | None = None, overrides: Path | None = None
) -> Environment:
    """Make a sandboxed environment in which a missing value is an error and nothing is escaped implicitly.

    Escaping is the job of named filters, since HTML autoescape is wrong for Python, YAML and Markdown alike.

    Args:
        filters: extra filters; they replace built-in ones of the same name.
        overrides: a folder of the user whose files win over the shipped ones, which they can still reach, to extend or
            include them, under `shipped/`.
    """
    from jinja2 import ChoiceLoader, FileSystemLoader, PrefixLoader, StrictUndefined

    shipped = FileSystemLoader(str(template_folder(kind)))
    loaders = [*([FileSystemLoader(str(overrides))] if overrides else []), shipped, PrefixLoader({"shipped": shipped})]
    made = _bounded_sandbox()(
        loader=ChoiceLoader(loaders), undefined=StrictUndefined, autoescape=False,
        keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(dict[str, Any](filters or {}))
    return made


@cache
def _bounded_sandbox() -> type[Environment]:
    """Make the sandbox in which no product or power takes all memory or time."""
    from jinja2.sandbox import SandboxedEnvironment

    class BoundedSandbox(SandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            """Compute a product or power unless it repeats something, a number with itself too, without end."""
            is_plain = operator == "*" and all(isinstance(value, (int, float)) for value in (left, right))
            if not is_plain and any(isinstance(n, int) and n > MOST_COPIES for n in (left, right)):
                raise OverflowError(f"{operator} with a number over {MOST_COPIES:,}")
            return super().call_binop(context, operator, left, right)

    return BoundedSandbox


# ---- the modeling file -----------------------------------------------------------------------------------------------

TEMPLATE = "modeling_pruned.py.jinja"
INCLUDED = "nemotron_nas_config.py.jinja"


def modeling_code(architecture: Architecture, *, layout: Layout = "pruned", version: str = __version__) -> str:
    """Render the modeling file of a family.

    The text depends on the family, the layout and the version of hubprune only, never on a repo or a user's words.

    Raises:
        ValueError: a value of the table or the version could not stand in Python source.
    """
    folder = template_folder("modeling")
    text = b"".join((folder / name).read_bytes() for name in (TEMPLATE, INCLUDED))
    return _modeling_environment().get_template(TEMPLATE).render(
        version=str(Version(version)), template_sha256=hashlib.sha256(text).hexdigest(),
        Base=architecture.class_prefix, Config=architecture.config_class, Model=architecture.model_class,
        CausalLM=architecture.causal_lm_class, tasks=architecture.tasks,
        module=architecture.module, model_type=architecture.model_type,
        floor=architecture.floor, lists_floor=architecture.lists_floor or architecture.floor,
        scaling_keys=architecture.scaling_keys, local_rope_base=architecture.local_rope_base,
        logits_divisor=architecture.logits_divisor,
        attn_module=architecture.attn_module, mlp_module=architecture.mlp_module,
        attn_norms=architecture.attn_norms, mlp_norms=architecture.mlp_norms, nemotron_nas=layout == "nemotron-nas",
    )  # fmt: skip


@cache
def _modeling_environment() -> Environment:
    """Make it once: compiling the template takes longer than a small model's layer, and scores need it per layer."""
    return environment("modeling", filters={"ident": ident, "py": py})


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


def published_code(architecture: Architecture) -> Mapping[str, Any]:
    """Return what the modeling file of a family defines, as this version of hubprune writes it."""
    return _defined_by(modeling_code(architecture), architecture.modeling_file("pruned"))


@cache
def _defined_by(source: str, name: str) -> Mapping[str, Any]:
    found: dict[str, Any] = {"__name__": name.removesuffix(".py")}
    exec(compile(source, name, "exec"), found)
    return found


def link_model(config: Mapping[str, Any], structure: Structure, source: Path, folder: Path) -> None:
    """Link a checkpoint's weights into a folder, beside a config.json and, where it needs one, a modeling file of ours.

    Raises:
        CheckpointError: its weights cannot be read.
    """
    for shard in open_weights(source).shards:
        (folder / shard.path.name).symlink_to(shard.path.resolve())
    if (source / INDEX_NAME).is_file():
        shutil.copyfile(source / INDEX_NAME, folder / INDEX_NAME)
    keys, family = stock_config(config, structure), structure.architecture
    if structure.layout != "stock":
        keys |= layout_keys("pruned", keys, structure)
        (folder / family.modeling_file("pruned")).write_text(modeling_code(family), encoding="utf-8")
    write_json(keys, folder)
