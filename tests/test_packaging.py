"""What a wheel and an sdist hold: all of the package with its templates and demo, and nothing else."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
SHIPPED = {
    "hubprune": "hubprune",
    "modeling_templates": "hubprune/modeling_templates",
    "card_templates": "hubprune/card_templates",
}


def tree(folder):
    paths = (p for p in (ROOT / folder).rglob("*") if p.is_file())
    return {p.relative_to(ROOT / folder).as_posix() for p in paths if "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_wheel_holds_the_package_with_its_templates_and_nothing_else(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = {n for n in wheel.namelist() if ".dist-info/" not in n}
    assert names == {f"{there}/{name}" for here, there in SHIPPED.items() for name in tree(here)}
    assert "hubprune/modeling_templates/modeling_pruned.py.jinja" in names
    assert "hubprune/evaluation/prompts.txt" in names


def test_the_sdist_can_be_built_and_tested_from(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {n.partition("/")[2] for n in sdist.getnames()}
    assert {"pyproject.toml", "Makefile", "constraints.txt", "LICENSE", "README.md", "PKG-INFO"} <= names
    assert {f"{folder}/{name}" for folder in ("hubprune", "card_templates") for name in tree(folder)} <= names
    assert "tests/test_packaging.py" in names
    assert not any(".venv" in name or "__pycache__" in name for name in names)


def test_the_floors_are_the_oldest_versions_that_are_allowed():
    """`make floors` runs exactly these, so that no range promises what nobody has run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [Requirement(r) for r in project["dependencies"]]
    [everything] = [Requirement(r) for r in extras["all"]]
    asked += [Requirement(r) for name in everything.extras for r in extras[name]]
    oldest = {canonicalize_name(r.name): one for r in asked for one in r.specifier}
    assert {one.operator for one in oldest.values()} == {">="}
    pinned = [Requirement(line) for line in (ROOT / "tests/floors.txt").read_text().splitlines() if line[0] != "#"]
    pins = {canonicalize_name(r.name): one.version for r in pinned for one in r.specifier}
    assert pins.keys() == oldest.keys()
    for name, pin in pins.items():
        least = Version(oldest[name].version).release
        assert Version(pin).release[: len(least)] == least, name
