"""How the package is built: layers, light imports, the tree of errors, templates, and help for every command."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hubprune
from hubprune.cli import app
from hubprune.core import architectures, errors, templates

PACKAGE = Path(hubprune.__file__).parent
LAYERS = {
    0: {"errors"},
    1: {
        "architectures", "artifacts", "carried", "console", "decoder", "devices", "endpoint", "environment", "files",
        "kv_cache", "memory", "neutral", "processes", "recipe", "requests", "stages", "strict_json", "strict_yaml",
        "suites", "templates",
    },
    2: {"pruning", "evaluation", "publishing", "localhub", "demo", "plots"},
    3: {
        "assembly", "cards", "run", "pipeline", "checkpoints", "checkup", "comparison", "demonstration", "pictures",
        "pushing", "refreshing", "studies", "summary", "ci", "jobs", "exporting", "kept", "measuring", "reproducing",
        "republishing", "sweep", "timing",
    },
    4: {"cli", "commands", "__main__", "__init__"},
}  # fmt: skip
ROOMS = LAYERS[2]
LAYER_OF = {part: layer for layer, parts in LAYERS.items() for part in parts}
HEAVY = (
    "torch", "transformers", "datasets", "lm_eval", "huggingface_hub", "jinja2", "matplotlib", "pydantic",
    "safetensors", "scipy",
)  # fmt: skip
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def part_of(name: str) -> str:
    """The room or top-level module that a dotted name below the package belongs to."""
    return name.split(".")[0]


class Imports(ast.NodeVisitor):
    """Everything of hubprune that a module imports when it runs, inside functions too."""

    def __init__(self, path: Path) -> None:
        self.package = ["hubprune", *path.parent.parts]
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        start = self.package[: len(self.package) - node.level + 1] if node.level else []
        module = ".".join([*start, *([node.module] if node.module else [])])
        for alias in node.names:
            # `from hubprune.core import files` names a module, `from hubprune import __version__` a value.
            below = alias.name in LAYER_OF or (PACKAGE / alias.name).exists()
            self.found.add(f"{module}.{alias.name}" if module == "hubprune" and below else module)
            if module == "hubprune" and not below:
                assert alias.name == "__version__", f"{alias.name} of hubprune/__init__.py is not for its own modules"


def imported_parts(path: Path) -> set[str]:
    """Rooms and top-level modules that a module imports."""
    visitor = Imports(path)
    visitor.visit(ast.parse((PACKAGE / path).read_text(encoding="utf-8")))
    return {part_of(name.removeprefix("hubprune.")) for name in visitor.found if name.startswith("hubprune.")}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_imports_from_lower_layers_or_its_own_room_only(path):
    part = path.parts[0] if len(path.parts) > 1 else path.stem
    assert part in LAYER_OF, f"{path} has no layer: give it one in LAYERS"
    for other in imported_parts(path) - {part}:
        assert other in LAYER_OF, f"{path} imports {other}, which has no layer"
        same_room = LAYER_OF[other] == LAYER_OF[part] and part not in ROOMS
        assert LAYER_OF[other] < LAYER_OF[part] or same_room, f"{path} (layer {LAYER_OF[part]}) imports {other}"


def test_the_layer_check_sees_imports_inside_functions_and_not_those_for_types(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "pruning").mkdir()
    path = Path("pruning/x.py")
    (tmp_path / path).write_text(
        "from typing import TYPE_CHECKING\n"
        "from hubprune import __version__\n"
        "from . import weights\n"
        "if TYPE_CHECKING:\n    from hubprune.workflows.publish.pipeline import Run\n"
        "def f():\n    from hubprune.evaluation.results import x\n    import hubprune.hub.repos\n"
        "    from ..cli import app\n    from hubprune import commands\n"
    )
    assert imported_parts(path) == {"pruning", "evaluation", "publishing", "cli", "commands"}


def test_the_command_line_starts_without_heavy_libraries():
    source = (
        "import sys\n"
        "import hubprune.cli\n"
        "sys.argv = ['hubprune', '--help']\n"
        "try:\n    hubprune.cli.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('LOADED', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert "Usage: hubprune" in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("command", sorted(str(c.name or c.callback.__name__) for c in app.registered_commands))
def test_every_command_explains_itself(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    assert f"Usage: hubprune {command}" in result.output


OWN_LOADS = {
    "neutral.py",  # the door
    "pruning/loading.py",  # tries what must be refused
    "publishing/hub.py",  # a line that is shown
    "demo/measure.py",  # models of the package's own
}


def test_models_are_loaded_through_one_door_only():
    loads = re.compile(r"AutoModel\w*\.from_pretrained\(")
    found = {path.as_posix() for path in MODULES if loads.search((PACKAGE / path).read_text(encoding="utf-8"))}
    assert found == OWN_LOADS


# ---- what is temporary -------------------------------------------------------------------------------------------

TEMPORARY = re.compile(
    r"tempfile\.(TemporaryDirectory|NamedTemporaryFile|mkdtemp|mkstemp)\((?!prefix=scratch_prefix\()"
)


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] != "localhub"], ids=str)
def test_whatever_is_temporary_has_a_name_by_which_the_next_run_sweeps_it_up(path):
    """A process that is killed removes nothing itself; the local Hub sweeps up its own folder."""
    if path.name != "files.py":
        assert not TEMPORARY.search((PACKAGE / path).read_text(encoding="utf-8")), "use files.scratch_folder"


# ---- errors ------------------------------------------------------------------------------------------------------

CLASSES = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == errors.__name__
}


def drawn_tree() -> dict[str, str]:
    """Class -> base, as the docstring of the module draws them."""
    found, above = {}, {}
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ([│├└─ ]*)(Hubprune\w*|\w+Error)\b", line):
            depth = len(match[1]) // 4
            found[match[2]] = above.get(depth - 1, "Exception")
            above[depth] = match[2]
    return found


def test_the_tree_of_errors_in_the_docstring_is_the_real_one():
    assert drawn_tree() == {name: kind.__bases__[0].__name__ for name, kind in CLASSES.items()}
    assert len(CLASSES) > 15


def test_every_error_is_exported_and_says_when_it_comes():
    assert errors.__all__ == sorted(CLASSES)
    for kind in CLASSES.values():
        assert kind.__doc__.strip().endswith(".") or "Attributes" in kind.__doc__


def test_an_error_has_a_message_a_hint_and_an_exit_code():
    error = errors.PlanError("Cannot drop it.", hint="Drop less.")
    assert (error.message, error.hint, str(error)) == ("Cannot drop it.", "Drop less.", "Cannot drop it. Drop less.")
    assert (error.exit_code, errors.HubpruneError("x").exit_code) == (2, 1)
    assert str(errors.HubpruneError("x")) == "x"


# ---- templates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["modeling", "card"])
def test_templates_are_found(kind):
    folder = templates.template_folder(kind)
    assert folder.name == f"{kind}_templates"
    assert list(folder.glob("*.jinja"))


def test_templates_inside_the_package_win_as_a_wheel_has_them(tmp_path, monkeypatch):
    package = tmp_path / "hubprune"
    for folder in (package / "card_templates", tmp_path / "card_templates"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(templates, "__file__", str(package / "core" / "templates.py"))
    assert templates.template_folder("card") == package / "card_templates"
    with pytest.raises(FileNotFoundError, match=r"modeling_templates is neither in .* reinstall hubprune"):
        templates.template_folder("modeling")


def test_a_template_with_a_value_that_is_missing_is_an_error(tmp_path):
    import jinja2

    (tmp_path / "x.jinja").write_text("{{ absent }}")
    made = templates.environment("card", overrides=tmp_path)
    with pytest.raises(jinja2.UndefinedError, match="absent"):
        made.get_template("x.jinja").render()


def test_a_template_of_the_user_cannot_reach_into_python(tmp_path):
    import jinja2

    (tmp_path / "x.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(jinja2.exceptions.SecurityError):
        templates.environment("card", overrides=tmp_path).get_template("x.jinja").render()


# ---- families ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", None, 3, ["llama"], "pruned_bert", "nemotron-nas"])
def test_an_unsupported_family_is_refused_with_the_supported_ones(model_type):
    with pytest.raises(errors.UnsupportedArchitectureError, match="which hubprune does not support") as caught:
        architectures.architecture_of({"model_type": model_type}, name="acme/base")
    assert caught.value.hint == f"Supported: {', '.join(sorted(architectures.ARCHITECTURES))}."
    assert caught.value.message.startswith("acme/base has model_type ")
