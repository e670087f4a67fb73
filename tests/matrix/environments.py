"""One environment per version of transformers; torch and all that is heavy is shared.

An environment is a venv without pip that also sees the packages of the environment that runs this module.  There pip
finds most requirements satisfied, and installs transformers and the few packages that must be older: 60 MB each.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from importlib.metadata import version as installed
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".matrix"
SHARED = ("torch", "accelerate", "peft", "safetensors", "numpy")
"""Packages that pip is told to keep as they are; an older transformers may still get its own peft or accelerate."""


def python_of(version: str, *, folder: Path = FOLDER, say: Callable[[str], None] = print) -> Path:
    """Return the interpreter that has a version of transformers, after making its environment if need be.

    Raises:
        subprocess.CalledProcessError: pip could not install it.
    """
    if version == installed("transformers"):
        return Path(sys.executable)
    folder.mkdir(exist_ok=True)
    with FileLock(folder / f"{version}.lock"):
        return _made(folder / version, requirements(version), say)


def released(package: str = "transformers") -> str:
    """Return the newest version of a package that pip finds, prereleases apart.

    Raises:
        subprocess.CalledProcessError: pip reached no index.
    """
    options = ["--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-"]
    command = [sys.executable, "-m", "pip", "install", *options, package]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return str(found["install"][0]["metadata"]["version"])


def requirements(version: str) -> list[str]:
    """Return what pip is asked to install for a version of transformers."""
    return [f"transformers=={version}", *(f"{name}=={installed(name).split('+')[0]}" for name in SHARED)]


def _made(environment: Path, wanted: list[str], say: Callable[[str], None]) -> Path:
    """Make an environment, unless its stamp says that it is whole and what is wanted."""
    python, stamp = environment / "bin" / "python", environment / "installed.txt"
    shared = sysconfig.get_path("purelib")
    content = "\n".join([sys.version, shared, *wanted]) + "\n"
    if stamp.is_file() and stamp.read_text() == content:
        return python
    say(f"Installing {wanted[0]} into {environment.relative_to(environment.parents[1])}")
    shutil.rmtree(environment, ignore_errors=True)
    venv.create(environment, with_pip=False, symlinks=True)
    site = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # A plain line in a .pth file goes to the end of sys.path, and .pth files there are not read: hubprune stays out.
    (site / "shared.pth").write_text(shared + "\n")
    _install(python, wanted)
    stamp.write_text(content)
    return python


def _install(python: Path, wanted: list[str]) -> None:
    """Install into an environment; pip leaves alone what it finds outside of it."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # Its complaints about the shared packages' own requirements are no failure; these are.
        sys.stderr.write(done.stderr)
        done.check_returncode()
