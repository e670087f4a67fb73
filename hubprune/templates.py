"""Find the template folders in a checkout and in a wheel, and make the one strict Jinja environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jinja2 import Environment

TemplateKind = Literal["modeling", "card"]


def template_folder(kind: TemplateKind) -> Path:
    """Return the folder that holds the templates of one kind.

    A wheel carries the folders inside the package, a checkout has them beside it.

    Raises:
        FileNotFoundError: neither place has the folder, so the installation is incomplete.
    """
    package = Path(__file__).parent
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
        kind: which template folder to load from.
        filters: extra filters; they replace built-in ones of the same name.
        overrides: a folder of the user whose files win over the shipped ones, which they can still reach, to extend or
            include them, under `shipped/`.
    """
    from jinja2 import ChoiceLoader, FileSystemLoader, PrefixLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    shipped = template_folder(kind)
    folders = [*([overrides] if overrides else []), shipped]
    made = SandboxedEnvironment(
        loader=ChoiceLoader(
            [FileSystemLoader([str(f) for f in folders]), PrefixLoader({"shipped": FileSystemLoader(str(shipped))})]
        ),
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(dict[str, Any](filters or {}))
    return made
