"""Shrinking failing models: planted failures of every kind end up as the few nodes that cause them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from graphopt import io
from graphopt.errors import UsageError
from graphopt.failures import OUT_OF_TIME, CommandCheck, PipelineCheck
from graphopt.ir import fingerprint
from graphopt.reduce import reduce
from tests.helpers import model_of, operators

ROOT = Path(__file__).resolve().parents[2]

WRONG = """
        for node in ctx.nodes("Add"):
            before = node.inputs[0].producer()
            if before is not None and before.op_type == "Tanh":
                ctx.edit.set_operator(node, "Sub")"""
RAISES = """
        for node in ctx.nodes("Add"):
            before = node.inputs[0].producer()
            if before is not None and before.op_type == "Tanh":
                raise KeyError(node.name)"""


def long_model(middle: str = "t = Tanh(a19) m = Add(t, w)", extra: str = ""):
    """Return 60 nodes and more: a chain with a branch at every node, and the culprits in the middle of it."""
    lines = ["a0 = Relu(x)", "b0 = Exp(x)"]
    for index in range(1, 20):
        lines += [f"a{index} = Sigmoid(a{index - 1})", f"b{index} = Mul(b{index - 1}, a{index})"]
    lines += [middle, "c0 = Neg(m)"]
    lines += [f"c{index} = Softplus(c{index - 1})" for index in range(1, 21)]
    lines += ["y = Mul(c20, b19)", "z = Abs(b19)"]
    body = f"g (float[N,8] x{extra}) => (float[N,8] y, float[N,8] z) {{ {' '.join(lines)} }}"
    return model_of(body, weights={"w": np.arange(8, dtype=np.float32)})


def saved(model, folder: Path) -> Path:
    path = folder / "model.onnx"
    io.save(model, path)
    return path


def reduced(path: Path, pipeline: str, seconds: float = 60.0):
    with closing(PipelineCheck(pipeline, seconds=seconds)) as check:
        return reduce(path, check)


def test_other_outputs_come_down_to_the_two_nodes_behind_them(tmp_path, plug_in):
    plug_in("Wrong", WRONG)
    path = saved(long_model(), tmp_path)
    result = reduced(path, "remove-dead,wrong")
    assert result.before >= 60
    assert operators(result.model) == {"Tanh": 1, "Add": 1}
    assert result.failure == "other outputs"
    again = reduced(path, "remove-dead,wrong")
    assert fingerprint(again.model) == fingerprint(result.model)


def test_an_error_is_told_from_other_errors(tmp_path, plug_in):
    plug_in("Raises", RAISES)
    result = reduced(saved(long_model(), tmp_path), "raises")
    assert operators(result.model) == {"Tanh": 1, "Add": 1}
    assert result.failure == "pass error: pass raises: KeyError: _"


def test_a_crash_is_survived(tmp_path, plug_in):
    plug_in("Crash", 'import os; os.abort() if ctx.nodes("Softplus") and ctx.nodes("Neg") else None')
    model = model_of("g (float[4] x) => (float[4] y) { a = Neg(x) b = Exp(a) c = Softplus(b) y = Neg(c) }")
    result = reduced(saved(model, tmp_path), "crash")
    assert operators(result.model) == {"Neg": 1, "Softplus": 1}
    assert result.failure == "crash: signal 6"


def test_a_hang_is_ended(tmp_path, plug_in):
    plug_in("Hang", 'while ctx.nodes("Softplus"): pass')
    model = model_of("g (float[4] x) => (float[4] y) { a = Neg(x) y = Softplus(a) }")
    result = reduced(saved(model, tmp_path), "hang", seconds=3.0)
    assert operators(result.model) == {"Softplus": 1}
    assert result.failure == OUT_OF_TIME


def test_what_runs_between_the_culprits_is_bypassed(tmp_path, plug_in):
    plug_in("Apart", 'assert not ctx.nodes("Tanh") or not ctx.nodes("Tanh")[0].outputs[0].uses()')
    middle = "t = Tanh(a19) u = Exp(t) v = Neg(u) m = Add(v, t)"
    result = reduced(saved(long_model(middle), tmp_path), "apart")
    assert sum(operators(result.model).values()) == 2
    assert operators(result.model)["Tanh"] == 1


def test_a_failure_inside_a_branch(tmp_path, plug_in):
    plug_in("Wrong", WRONG)
    branch = "then_branch = th () => (float[N,8] p) { q = Exp(a19) t = Tanh(q) s = Add(t, w) p = Neg(s) }"
    other = "else_branch = el () => (float[N,8] r) { r = Neg(a19) }"
    model = long_model(f"m = If (c) <{branch}, {other}>", extra=", bool c")
    result = reduced(saved(model, tmp_path), "wrong")
    assert operators(result.model) == {"Tanh": 1, "Add": 1}


def test_sizes_that_the_model_computes_become_constants(tmp_path, plug_in):
    plug_in("Wrong", WRONG)
    middle = "s = Shape(a19) v = Neg(s) u = Neg(v) r = Reshape(a19, u) t = Tanh(r) m = Add(t, r)"
    result = reduced(saved(long_model(middle), tmp_path), "wrong")
    assert operators(result.model) == {"Tanh": 1, "Add": 1}


def test_weights_and_notes_lose_their_content(tmp_path, plug_in):
    plug_in("Wrong", WRONG.replace('"Tanh"', '"MatMul"'))
    rng = np.random.default_rng(1)
    arrays = {"large": rng.random((64, 64), np.float32), "medium": rng.random((8, 64), np.float32)}
    body = "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, large) b = Relu(a) y = Add(a, bias) }"
    model = model_of(body, weights={"large": arrays["large"], "bias": rng.random(64, np.float32)})
    model.metadata_props["secret"] = "of the company"
    result = reduced(saved(model, tmp_path), "wrong")
    assert operators(result.model) == {"MatMul": 1, "Add": 1}
    assert not result.model.metadata_props
    assert "large" not in result.model.graph.initializers
    assert np.all(result.model.graph.initializers["bias"].const_value.numpy() == 1)


def test_the_end_of_a_command_counts(tmp_path):
    model = model_of("g (float[4] x) => (float[4] y) { a = Exp(x) b = Tanh(a) c = Neg(b) d = Add(c, x) y = Abs(d) }")
    result = reduce(saved(model, tmp_path), CommandCheck("grep -q Tanh {} && grep -q Add {} && exit 3; exit 4"))
    assert operators(result.model) == {"Tanh": 1, "Add": 1}
    assert result.failure == "exit status 3"


def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path):
    assert CommandCheck("sleep 30 | cat {}", seconds=0.2)(tmp_path) == OUT_OF_TIME


@pytest.mark.parametrize("command", ["true", "no-such-program-at-all {}"])
def test_a_command_that_checks_nothing_is_refused(tmp_path, command):
    with pytest.raises(UsageError):
        CommandCheck(command)(tmp_path)


def test_a_model_that_does_not_fail_is_refused(tmp_path):
    path = saved(model_of("g (float[4] x) => (float[4] y) { y = Exp(x) }"), tmp_path)
    with pytest.raises(UsageError, match="does not fail"):
        reduced(path, "remove-dead")


def test_the_tool_writes_the_model_and_shows_it(tmp_path):
    model = model_of("g (float[4] x) => (float[4] y) { a = Exp(x) y = Neg(a) }")
    out = tmp_path / "small.onnx"
    command = [sys.executable, ROOT / "tools" / "reduce.py", saved(model, tmp_path), "-o", out]
    done = subprocess.run(
        [*command, "--check", "grep -q Neg {}"], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 -> 1 nodes" in done.stdout
    assert operators(io.load(out)) == {"Neg": 1}
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert refused.returncode == UsageError.exit_code
    assert "give one of --check, --pipeline and --preset" in refused.stderr
