"""How the package is built: floors, light imports, the tree of errors, templates, and help for every command."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest
from typer.testing import CliRunner

import hubprune
from hubprune.cli import app
from hubprune.core import architectures, errors, templates

PACKAGE = Path(hubprune.__file__).parent
ROOMS = (
    "pruning", "quantizing", "healing", "evaluation", "cards", "hub", "exporting", "runtimes", "plots", "localhub",
    "demo",
)  # fmt: skip
FLOORS = {"core": 1, **dict.fromkeys(ROOMS, 2), "workflows": 3, "commands": 4}
"""Of the folders below the package; what lies beside them is on the highest floor."""
DOOR = ("hub", "cards")
"""The one room that knows another: what a repo consists of."""
MOST_MODULES, MOST_LINES = 232, 53_500
"""Of all there is.  It was 150 and 34,000 before models could be larger than memory, and 160 and 37,500 before there
were siblings in fewer bits, healed ones, other runtimes, and files for eight more families of llama.cpp; 206 and 47,000
before sublayers were chosen by what the model loses, towards a target, and what others pruned was taken over."""
MOST_LINES_OF_A_MODULE = 400
MOST_LINES_OF_A_FUNCTION = 60
HEAVY = (
    "torch", "transformers", "datasets", "lm_eval", "huggingface_hub", "jinja2", "matplotlib", "pydantic",
    "safetensors", "scipy",
)  # fmt: skip
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


# ---- floors, rooms and circles -----------------------------------------------------------------------------------


def floor_of(package, module):
    return FLOORS.get(module.box) if (package / module.box).is_dir() else max(FLOORS.values())


def wrong_imports(package):
    """Imports from a floor above, from another room, or from the package itself."""
    modules = house.read_package(package)
    found = []
    for name, module in modules.items():
        floor = floor_of(package, module)
        if floor is None:
            found.append(f"{module.box}/ has no floor: give it one in FLOORS")
            continue
        names = house.Imports(module, modules, "hubprune").names
        for other, value in sorted(names.values(), key=str):
            if other == house.ROOT:
                found.append(f"{name} imports {value} from the package itself")
                continue
            box, below = modules[other].box, floor_of(package, modules[other])
            if box != module.box and (module.box, box) != DOOR and below is not None:
                lower = below < floor or floor == below == max(FLOORS.values())
                found += [] if lower else [f"{name} (floor {floor}) imports {other} (floor {below})"]
    return sorted(set(found))


def circles(package):
    return house.circles(house.imports_of(house.read_package(package), "hubprune"))


def test_every_module_imports_from_lower_floors_or_its_own_room_only():
    assert wrong_imports(PACKAGE) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circles(PACKAGE) == []


@pytest.fixture
def write_package(tmp_path):
    """Write a package of modules, by their paths."""

    def write(files):
        for path, source in files.items():
            (tmp_path / "hubprune" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "hubprune" / path).write_text(source)
        return tmp_path / "hubprune"

    return write


def test_the_check_of_floors_sees_imports_inside_functions_and_not_those_for_types(write_package):
    package = write_package(
        {
            "__init__.py": "__version__ = '1'\n",
            "cli.py": "from hubprune.commands import score\n",
            "commands/score.py": "from hubprune import cli\nfrom hubprune.workflows.score import score\n",
            "workflows/score.py": "from hubprune.core import files\nfrom hubprune.pruning.weights import read\n",
            "hub/commit.py": "from hubprune.cards.card import render\n",
            "cards/card.py": "from hubprune.core import files\n",
            "core/files.py": "from hubprune import score\n\ndef f():\n    from hubprune.cards.card import render\n",
            "evaluation/results.py": "",
            "pruning/weights.py": (
                "from typing import TYPE_CHECKING\n"
                "from . import shapes\n"
                "if TYPE_CHECKING:\n    from hubprune.workflows.score import score\n"
                "def f():\n    from hubprune.evaluation.results import x\n    import hubprune.hub.commit\n"
                "    from ..workflows import score\n"
            ),
            "pruning/shapes.py": "",
            "extra/one.py": "",
        }
    )
    assert wrong_imports(package) == [
        "core.files (floor 1) imports cards.card (floor 2)",
        "core.files imports score from the package itself",
        "extra/ has no floor: give it one in FLOORS",
        "pruning.weights (floor 2) imports evaluation.results (floor 2)",
        "pruning.weights (floor 2) imports hub.commit (floor 2)",
        "pruning.weights (floor 2) imports workflows.score (floor 3)",
    ]


def test_the_check_of_circles_sees_a_way_back_through_a_function(write_package):
    package = write_package(
        {
            "core/a.py": "from hubprune.core import b\n",
            "core/b.py": "from hubprune.core.c import d\n",
            "core/c/__init__.py": "def f():\n    from hubprune.core.a import g\n",
            "core/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hubprune.core import e\n",
            "core/e.py": "from hubprune.core import d\n",
        }
    )
    assert circles(package) == [["core.a", "core.b", "core.c"]]


# ---- how much there is -------------------------------------------------------------------------------------------


def unlisted(package):
    """Modules that the docstring of the package around them does not name."""
    found = []
    for path in sorted(package.rglob("__init__.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        names = {below.stem for below in path.parent.glob("*.py")} | {
            below.parent.name for below in path.parent.glob("*/__init__.py")
        }
        # Of several with one beginning, as routes_files and routes_storage, the others may be named `_storage`.
        missing = {n for n in names - {"__init__"} if not re.search(rf"\b{n}\b|(?<!\w)_{n.partition('_')[2]}\b", text)}
        found += [f"{path.parent.name} does not name {name}" for name in sorted(missing) if path.parent != package]
    return found


def too_large(package):
    """Modules and functions that are longer than a reader can follow."""
    modules = house.read_package(package).values()
    found = [f"{m.name}: {m.lines} lines" for m in modules if m.lines > MOST_LINES_OF_A_MODULE]
    lengths = house.function_lengths(modules)
    return found + [f"{where}: {n} lines" for where, n in lengths.items() if n > MOST_LINES_OF_A_FUNCTION]


def test_every_package_names_its_modules():
    assert unlisted(PACKAGE) == []


def test_no_module_and_no_function_is_too_large():
    assert too_large(PACKAGE) == []


def test_there_is_no_more_than_one_person_can_know():
    modules = house.read_package(PACKAGE).values()
    assert len(modules) <= MOST_MODULES
    assert sum(module.lines for module in modules) <= MOST_LINES


def test_a_module_that_is_not_named_is_seen(write_package):
    package = write_package(
        {
            "__init__.py": "",
            "core/__init__.py": '"""What all use: file_names, artifacts."""\n',
            "core/file_names.py": "",
            "core/file.py": "",
            "core/artifacts/__init__.py": "",
            "core/artifacts/one.py": "",
        }
    )
    assert unlisted(package) == ["core does not name file", "artifacts does not name one"]


def test_what_is_too_large_is_seen(write_package):
    long = "class A:\n    def f(self):\n" + 60 * "        x = 1\n"
    package = write_package({"core/a.py": long, "core/b.py": 401 * "x = 1\n", "core/c.py": 400 * "x = 1\n"})
    assert too_large(package) == ["core.b: 401 lines", "core.a:2 f: 61 lines"]


# ---- the command line --------------------------------------------------------------------------------------------


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
    "core/neutral.py",  # the door
    "pruning/comparing.py",  # tries what must be refused
    "hub/repos.py",  # a line that is shown
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
