"""Find the template folders in a checkout and in a wheel, and make the one strict Jinja environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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

    shipped = template_folder(kind)
    folders = [*([overrides] if overrides else []), shipped]
    made = _bounded_sandbox()(
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
