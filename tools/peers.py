"""Python environments that hold other projects' tools at pinned versions, made on first use, kept in a cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import click

ENVIRONMENTS = {
    "simplifiers": (
        "onnx==1.23.2",
        "onnxruntime==1.31.1",
        "onnxsim==0.8.1",
        "onnxslim==0.1.98",
        "onnxoptimizer==0.4.2",
        "onnxscript==0.7.2",
    ),
    "ort": ("onnx==1.23.2", "onnxruntime==1.31.1", "sympy==1.14.0"),
    "nncf": ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.31.1", "sympy==1.14.0"),
}


def python_of(name: str) -> Path:
    """Return the interpreter of the environment ``name``, made now when it does not exist yet.

    Raises:
        click.ClickException: pip cannot install the packages.
    """
    requirements = ENVIRONMENTS[name]
    digest = hashlib.sha256(f"{sys.version}{requirements}".encode()).hexdigest()[:12]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphopt" / "peers"
    folder = base / f"{name}-{digest}"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "complete"
    if complete.is_file():
        return python
    click.echo(f"making the environment {name}: {' '.join(requirements)}", err=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *requirements], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"pip cannot install {' '.join(requirements)}:\n{done.stderr.strip()[-800:]}")
    complete.touch()
    return python
