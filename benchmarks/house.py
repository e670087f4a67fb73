"""Print how a package is built: boxes, floors, arrows, circles, and how long its functions are.

    python benchmarks/house.py [PACKAGE_FOLDER] [--walk MODULE:FUNCTION:NAME,...] [--way]

It reads the source only, so it works on any checkout, and two of them can be compared.

- A *box* is a module in the package's root or a folder there with all that is below it.
- An *arrow* goes from one box to another that it imports; imports inside functions count, those for types do not.
- *Floors* are the longest path of arrows down from a box, where the boxes of a circle share one floor.
- A *circle* is a set of modules, or of boxes, each of which reaches every other one by imports.

The walk is that of a reader who follows what a user asked for, from the names that hold it in some function to all
calls that it is handed to, by position or by keyword, if the function or class is found by its name.  What counts as
the request is the object itself, its recipe (`x.recipe`), what a class is made of it, and what a followed call returns
whose annotation names one of `CARRIERS`.  The reader goes into a called function in the order of the source, reads none
twice, and goes back to where the call was if there is another one to follow.  Calls through values, and methods of
objects but `self`, are not seen.

- *entered*: modules in which the reader was.
- *climbs*: steps to a module whose box is on a higher floor than the one before.
- *returns*: steps to a module that the reader had left.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

Graph = Mapping[str, set[str]]
ROOT = "__init__"
"""Name of the module that the package itself is."""
WALK = "commands.publish:publish:request,given"
"""Where the options of a publish are, in all states of the package."""
CARRIERS = {"PublishOptions", "PublishRequest", "JobRequest", "Recipe", "Run"}
"""Classes that carry what a user asked for."""
PARTS = {"recipe", "request"}
"""Attributes that are what a user asked for."""
AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


# ---- modules and what they import --------------------------------------------------------------------------------


@dataclass
class Module:
    """A module, by its dotted name below the package."""

    name: str
    path: Path
    tree: ast.Module
    lines: int
    package: str
    """Name of the package that holds it, itself if it is one; empty for the root."""

    @property
    def box(self) -> str:
        """The first part of its name."""
        return self.name.partition(".")[0]


def read_package(folder: Path) -> dict[str, Module]:
    """Parse every module below a folder, by name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        *above, last = path.relative_to(folder).with_suffix("").parts
        name = ".".join(above if last == ROOT and above else [*above, last])
        source = path.read_text(encoding="utf-8")
        found[name] = Module(name, path, ast.parse(source), source.count("\n"), ".".join(above))
    return found


class Imports(ast.NodeVisitor):
    """Names that an import binds, with the module that each comes from and the name it has there, None for a module."""

    def __init__(self, module: Module, modules: Mapping[str, Module], package: str) -> None:
        self.names: dict[str, tuple[str, str | None]] = {}
        self._module, self._modules, self._package = module, modules, package
        self.visit(module.tree)

    def visit_If(self, node: ast.If) -> None:
        """Leave out what is imported for types only."""
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        """See `import package.a.b`."""
        for alias in node.names:
            below = self._below(alias.name)
            if below is not None:
                self.names[alias.asname or alias.name] = (below or ROOT, None)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """See `from package.a import b`, where b is a module or something in one, and relative forms of it."""
        if node.level:
            above = self._module.package.split(".") if self._module.package else []
            kept = above[: len(above) - node.level + 1]
            below = ".".join([*kept, *([node.module] if node.module else [])])
        elif (found := self._below(node.module or "")) is None:
            return
        else:
            below = found
        for alias in node.names:
            dotted = f"{below}.{alias.name}" if below else alias.name
            is_module = dotted in self._modules
            self.names[alias.asname or alias.name] = (dotted, None) if is_module else (below or ROOT, alias.name)

    def _below(self, dotted: str) -> str | None:
        """Return the part of a name below the package; None for another package's."""
        first, _, rest = dotted.partition(".")
        return rest if first == self._package else None


def imports_of(modules: Mapping[str, Module], package: str) -> dict[str, set[str]]:
    """Return the modules that each one imports, inside functions too, without those for types.

    That a module lies in the packages above it, and that the root holds the version, is no import.
    """
    found = {}
    for name, module in modules.items():
        names = Imports(module, modules, package).names
        found[name] = {other for other, _ in names.values() if other in modules} - {name, ROOT}
    return found


def boxes_of(imports: Graph) -> dict[str, set[str]]:
    """Return the boxes that each box imports."""
    found: dict[str, set[str]] = {}
    for name, others in imports.items():
        box = name.partition(".")[0]
        found.setdefault(box, set()).update({other.partition(".")[0] for other in others} - {box})
    return found


# ---- circles and floors ------------------------------------------------------------------------------------------


def components(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components, each after all that it leads to (Tarjan 1972)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        numbers[node] = lowest[node] = len(numbers)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in numbers:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], numbers[other])
        if lowest[node] == numbers[node]:
            at = stack.index(node)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in numbers:
            visit(node)
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Return the components of more than one node."""
    return [part for part in components(graph) if len(part) > 1]


def floors_of(graph: Graph) -> dict[str, int]:
    """Return the floor of each node, from 1: one more than the highest floor that it leads to."""
    found: dict[str, int] = {}
    for part in components(graph):
        below = {other for node in part for other in graph[node]} - set(part)
        found |= dict.fromkeys(part, 1 + max((found[other] for other in below), default=0))
    return found


def function_lengths(modules: Iterable[Module]) -> dict[str, int]:
    """Return the lines of every function and method, nested ones too, by module, line and name."""
    return {
        f"{module.name}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, AnyFunction)
    }


# ---- the walk ----------------------------------------------------------------------------------------------------


@dataclass
class Walk:
    """A reader's way through a package, following a request from call to call."""

    modules: Mapping[str, Module]
    package: str
    way: list[str] = field(default_factory=list)
    """Modules in the order in which the reader is in them, a step apart."""
    read: set[tuple[str, str]] = field(default_factory=set)

    def start(self, where: str) -> Walk:
        """Walk from `module:function:name,...`."""
        name, function, tracked = where.split(":")
        self._go(name, function, set(tracked.split(",")))
        return self

    def _step(self, module: str) -> None:
        if self.way[-1:] != [module]:
            self.way.append(module)

    def _go(self, module: str, function: str, tracked: set[str]) -> None:
        """Read a function, given the names that hold the request."""
        if (module, function) in self.read:
            return
        self.read.add((module, function))
        self._step(module)
        node = self._definition(module, function)
        if not isinstance(node, AnyFunction):
            return
        local = Imports(self.modules[module], self.modules, self.package)
        for call, targets in calls_in_order(node):
            if not (handed := self._handed(call, tracked, local, function)):
                continue
            target, name, names = handed
            self._step(module)
            self._go(target, name, names)
            if self._carries(target, name):
                tracked |= targets | {marker(call)}

    def _carries(self, module: str, name: str) -> bool:
        """Return whether what a function returns, or a class is, counts as the request."""
        node = self._definition(module, name)
        if not isinstance(node, AnyFunction):
            return True
        return node.returns is not None and bool(CARRIERS & set(re.findall(r"\w+", ast.unparse(node.returns))))

    def _handed(
        self, call: ast.Call, tracked: set[str], local: Imports, function: str
    ) -> tuple[str, str, set[str]] | None:
        """Return module and name of what a call hands the request to, and its parameters that get it."""

        def holds(value: ast.expr) -> bool:
            while isinstance(value, ast.Starred) or (isinstance(value, ast.Attribute) and value.attr in PARTS):
                value = value.value
            return (isinstance(value, ast.Name) and value.id in tracked) or marker(value) in tracked

        places = [number for number, value in enumerate(call.args) if holds(value)]
        keywords = {keyword.arg for keyword in call.keywords if keyword.arg and holds(keyword.value)}
        if not places and not keywords:
            return None
        found = self._resolve(call.func, local, function)
        node = self._definition(*found) if found else None
        if found is None or node is None:
            return None
        if isinstance(node, ast.ClassDef):
            return (*found, set())
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        names = names[1:] if names[:1] in (["self"], ["cls"]) else names
        return (*found, keywords | {names[place] for place in places if place < len(names)})

    def _resolve(self, called: ast.expr, local: Imports, function: str) -> tuple[str, str] | None:
        """Return the module and the name that an expression stands for, as far as names tell."""
        first, *rest = dotted_name(called)
        if not first:
            return None
        if first == "self":
            return (local._module.name, ".".join([function.rpartition(".")[0], *rest]))
        module, name = local.names.get(first, (local._module.name, first))
        if name is None:
            name, *rest = rest or [""]
        module, name = self._home(module, name)
        return module, ".".join([name, *rest])

    def _home(self, module: str, name: str) -> tuple[str, str]:
        """Return where a name that a module hands on is defined."""
        while module in self.modules and self._definition(module, name) is None:
            imported = Imports(self.modules[module], self.modules, self.package).names
            other, there = imported.get(name, (module, None))
            if there is None or (other, there) == (module, name):
                break
            module, name = other, there
        return module, name

    def _definition(self, module: str, name: str) -> AnyFunction | ast.ClassDef | None:
        """Return the function, the method or the class of a dotted name in a module."""
        body: list[ast.stmt] = self.modules[module].tree.body if module in self.modules else []
        found: AnyFunction | ast.ClassDef | None = None
        for part in name.split("."):
            found = next(
                (node for node in body if isinstance(node, AnyFunction | ast.ClassDef) and node.name == part), None
            )
            if found is None:
                return None
            body = found.body
        return found

    def figures(self, floors: Mapping[str, int]) -> str:
        """Return what the way was like in a line."""
        floor = [floors[self.modules[name].box] for name in self.way]
        climbs = sum(after > before for before, after in pairwise(floor))
        entered = len(set(self.way))
        return (
            f"{entered} modules entered, {climbs} climbs, {len(self.way) - entered} returns, {len(self.read)} functions"
        )


def marker(value: ast.expr) -> str:
    """Return a name for the value of a call that is an argument itself."""
    return f"call at {value.lineno}:{value.col_offset}" if isinstance(value, ast.Call) else ""


def dotted_name(node: ast.expr) -> list[str]:
    """Return the parts of `a.b.c`; one empty part for any other expression."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else [""]


def calls_in_order(function: AnyFunction) -> Iterator[tuple[ast.Call, set[str]]]:
    """Yield the calls of a function as they are made, inner ones first, with the names that get what each returns."""

    def within(node: ast.AST) -> Iterator[ast.Call]:
        for child in ast.iter_child_nodes(node):
            yield from within(child)
        if isinstance(node, ast.Call):
            yield node

    given: dict[ast.expr | None, set[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            given[node.value] = {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and isinstance(node.target, ast.Name):
            given[node.value] = {node.target.id}
        elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            given[node.context_expr] = {node.optional_vars.id}
    for statement in function.body:
        for call in within(statement):
            yield call, given.get(call, set())


def show(folder: Path, walk: str, *, way: bool) -> None:
    """Print the figures of the package in a folder."""
    modules = read_package(folder)
    imports = imports_of(modules, folder.name)
    boxes = boxes_of(imports)
    floors = floors_of(boxes)
    lines = [module.lines for module in modules.values()]
    lengths = function_lengths(modules.values())
    tall = sorted(lengths.values())
    print(f"{folder}: {len(modules)} modules, {sum(lines):,} lines")
    print(f"modules: median {statistics.median(lines):.0f} lines, {sum(n > 400 for n in lines)} over 400")
    print(
        f"functions: {len(tall)}, median {statistics.median(tall):.0f} lines, 90th percentile "
        f"{tall[int(0.9 * len(tall))]}, {sum(n > 60 for n in tall)} over 60"
    )
    arrows = sum(map(len, boxes.values()))
    print(f"boxes: {len(boxes)} on {max(floors.values())} floors, {arrows} arrows")
    for floor in range(max(floors.values()), 0, -1):
        print(f"  floor {floor}: {' '.join(sorted(box for box in boxes if floors[box] == floor))}")
    for what, graph in (("boxes", boxes), ("modules", imports)):
        found = circles(graph)
        print(f"circles of {what}: {len(found)}")
        for part in found:
            print(f"  {' '.join(part)}")
    rooms = Counter(module.box for module in modules.values())
    wide = {box: sum(m.lines for m in modules.values() if m.box == box) for box in rooms}
    print("modules of each folder:")
    for box, number in rooms.most_common():
        if (folder / box).is_dir():
            print(f"  {box:12} {number:3} modules {wide[box]:6,} lines")
    walked = Walk(modules, folder.name).start(walk)
    print(f"walk from {walk}: {walked.figures(floors)}")
    if way:
        print("\n".join(walked.way))


def main() -> int:
    """Read the options and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parent.parent / "hubprune"
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="the package, by default this one")
    parser.add_argument("--walk", metavar="MODULE:FUNCTION:NAME,...", default=WALK)
    parser.add_argument("--way", action="store_true", help="print the modules of the walk too, in their order")
    options = parser.parse_args()
    show(options.folder.resolve(), options.walk, way=options.way)
    return 0


if __name__ == "__main__":
    sys.exit(main())
