"""``lossless`` on ONNX's backend tests: every case that onnxruntime runs keeps its outputs. 0 wrong, 0 crashes.

The stored cases always run; the generated ones behind the marker ``slow``, one in twenty of them without it. So do the
variants: inputs made constants, sizes made unknown, and conversion to other operator sets, which may decline a case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


VARIANTS = ("float-constants", "constants", "symbolic", *(f"opset-{version}" for version in (13, 17, 18, 21, 23)))


def verdicts(kind: str, part: int, parts: int, variant: str = "as-is") -> dict[str, str]:
    """Return the verdict on each case of a part, a crash of the process included."""
    command = [sys.executable, "-m", "tests.conformance.check_lossless", kind, str(part), str(parts), variant]
    # Cases of opsets that are not released yet run too, as far as the runtime knows their operators.
    environment = os.environ | {"ALLOW_RELEASED_ONNX_OPSET_ONLY": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        fact = json.loads(line)
        if "start" in fact:
            found[fact["start"]] = f"crash: the process ended with {done.returncode}: {done.stderr[-300:]}"
        else:
            found[fact["case"]] = fact["verdict"]
    assert done.returncode == 0, done.stderr[-2000:]
    return found


def check(found: dict[str, str]) -> None:
    counts = Counter(verdict.split(":")[0] for verdict in found.values())
    print(f"\n{dict(counts)} of {len(found)}")
    bad = {name: verdict for name, verdict in found.items() if not verdict.startswith(("ok", "skipped", "declined"))}
    assert not bad, json.dumps(bad, indent=1)
    assert counts["ok"] > counts["skipped"], counts


def test_every_stored_case_keeps_its_outputs():
    check(verdicts("stored", 0, 1))


@pytest.mark.parametrize("variant", ["constants", "symbolic"])
def test_every_stored_case_keeps_its_outputs_as_a_variant(variant):
    check(verdicts("stored", 0, 1, variant))


def test_one_generated_case_in_twenty_keeps_its_outputs():
    check(verdicts("generated", 7, 20))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_every_generated_case_keeps_its_outputs(part):
    check(verdicts("generated", part, 2))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_generated_case_keeps_its_outputs_as_a_variant(variant):
    check(verdicts("generated", 0, 1, variant))
