"""Toolchains whose pins conflict with everything else: each gets a virtual environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphopt.errors import TargetError, UsageError

_MARKER = "graphopt-toolchain.txt"
"""Written last: without it an environment is not finished."""
_INSTALL_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make an environment: what pip installs, the versions of Python that it is for, and a check of it."""

    requirements: Sequence[str]
    pythons: Sequence[tuple[int, int]]
    proof: str


RECIPES: Mapping[str, Recipe] = {
    "rknn": Recipe(
        # The toolkit imports pkg_resources, which newer versions of setuptools no longer have.
        requirements=("rknn-toolkit2>=2.3,<3", "setuptools<81"),
        pythons=((3, 11), (3, 12), (3, 10)),
        proof="from rknn.api import RKNN",
    ),
}


def folder_of(name: str) -> Path:
    """Return where the environment of a toolchain is: what GRAPHOPT_RKNN names, or a cache folder of the user's."""
    if given := os.environ.get(f"GRAPHOPT_{name.upper()}"):
        return Path(given)
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "graphopt" / "toolchains" / name


def python_of(name: str) -> str:
    """Return the interpreter of a finished environment, "" where there is none."""
    folder = folder_of(name)
    python = _python_in(folder)
    return str(python) if python.exists() and (folder / _MARKER).is_file() else ""


def install(name: str, folder: Path | None = None, python: str | None = None) -> Path:
    """Make the environment of the toolchain ``name`` in ``folder`` and return the folder.

    ``python`` is an interpreter of a version that the toolchain is for; without one, this one or one on the PATH is
    taken. Raises UsageError for a name or folder that will not do, TargetError when the installation fails.
    """
    if name not in RECIPES:
        raise UsageError(f"there is no environment to make for {name!r}", hint=f"there are: {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    place = (folder or folder_of(name)).absolute()
    if place.exists() and not (place / "pyvenv.cfg").is_file() and any(place.iterdir()):
        raise UsageError("the folder is not empty", where=str(place), hint="name another one with --to")
    chosen = python or _interpreter(recipe)
    (place / _MARKER).unlink(missing_ok=True)
    _run([chosen, "-m", "venv", "--clear", str(place)], name)
    inside = str(_python_in(place))
    _run([inside, "-m", "pip", "install", "--quiet", "--no-cache-dir", *recipe.requirements], name)
    _run([inside, "-c", recipe.proof], name)
    (place / _MARKER).write_text("\n".join(recipe.requirements) + "\n", encoding="utf-8")
    return place


def _python_in(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _interpreter(recipe: Recipe) -> str:
    if sys.version_info[:2] in recipe.pythons:
        return sys.executable
    for major, minor in recipe.pythons:
        if found := shutil.which(f"python{major}.{minor}"):
            return found
    wanted = ", ".join(f"{major}.{minor}" for major, minor in recipe.pythons)
    raise TargetError(f"the toolchain needs Python {wanted}, and none of them is here", hint="name one with --python")


def _run(command: Sequence[str], name: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"the environment of {name} cannot be made: {error}") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise TargetError(
            f"the environment of {name} cannot be made: {' '.join(command[1:4])} failed",
            context="\n".join(lines[-8:]),
            hint="is it a platform that the vendor has packages for?",
        )
