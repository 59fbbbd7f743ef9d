"""Passes from outside graphopt, installed as a package would install them: an entry point in a dist-info folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from graphopt.pipeline import registry


def install_plug_in(folder: Path, module: str, kind: str, text: str) -> Path:
    """Write ``text`` as ``module`` into ``folder``, which is on the path, and an entry point for its ``kind``."""
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(text)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.PACKAGE}]\n{kind} = {module}:{kind}\n")
    # Another test may have had a module of that name.
    sys.modules.pop(module, None)
    importlib.invalidate_caches()
    registry.passes.cache_clear()
    return folder / f"{module}.py"
