"""Which CPU target this machine is."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@cache
def host_target() -> str:
    """Return the name of the CPU target that fits this machine."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "cpu-arm64"
    return "cpu-x64" if _has_vnni() else "cpu-x64-avx2"


def _has_vnni() -> bool:
    """Tell whether the CPU multiplies 8-bit integers without saturating. Where that cannot be read, assume not."""
    try:
        flags = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags
