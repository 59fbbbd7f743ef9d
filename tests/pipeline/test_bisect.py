"""Bisection: which pass, and which of its rewrites, breaks a model."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from graphopt import io
from graphopt.bisect import bisect
from graphopt.calibration.sessions import session_of
from graphopt.errors import UsageError, VerifyError
from graphopt.numeric import output_check
from graphopt.pipeline import Changes, Fixpoint, Pass, Pipeline
from tests.helpers import model_of

LENGTH = 13


@pytest.fixture
def source():
    chain = " ".join(f"v{i + 1} = Relu(v{i})" for i in range(LENGTH))
    text = f"g (float[2] v0) => (float[2] v{LENGTH}) {{ {chain} }}"
    return io.to_proto(model_of(text)).SerializeToString()


@dataclass(frozen=True, kw_only=True)
class ToAbs(Pass):
    """Turn Relu into Abs, a few at a time: right behind another Relu, wrong for the first."""

    name: ClassVar[str] = "to-abs"

    def run(self, model, ctx):
        changes = Changes()
        for node in list(reversed(ctx.nodes("Relu")))[:5]:
            if ctx.may_rewrite(node, "turn it into Abs"):
                ctx.edit.set_operator(node, "Abs")
                changes["turned"] += 1
        return changes


@dataclass(frozen=True, kw_only=True)
class CrashAt(Pass):
    """Crash on reaching v4."""

    name: ClassVar[str] = "crash-at"
    before_asking: bool = False

    def run(self, model, ctx):
        for node in ctx.nodes("Relu"):
            at_fault = node.outputs[0].name == "v4"
            if at_fault and self.before_asking:
                raise ValueError("cannot do that")
            if ctx.may_rewrite(node, "turn it into Abs") and at_fault:
                raise ValueError("cannot do that")
        return Changes()


@dataclass(frozen=True, kw_only=True)
class Idle(Pass):
    """Do nothing, yet be run each time."""

    name: ClassVar[str] = "idle"

    def run(self, model, ctx):
        return Changes()


def outputs_differ(source):
    check = output_check(session_of(io.load(source)), [{"v0": np.array([-1.0, 2.0], np.float32)}], 1e-5)

    def problem(changed):
        try:
            check(changed)
        except VerifyError as error:
            return str(error)
        return None

    return problem


def test_the_one_wrong_rewrite_is_found(source):
    pipeline = Pipeline((Idle(), Fixpoint((ToAbs(), Idle()))))
    finding = bisect(source, pipeline, check=outputs_differ(source))

    # Five rewrites an execution, from the back: the first Relu is the third of the third execution.
    assert finding.pass_text == "to-abs"
    assert finding.fuel == LENGTH
    assert "%v1 = Relu(%v0)" in finding.rewrite.node
    assert "-   v1 = Relu (v0)" in finding.diff.splitlines()
    assert "+   v1 = Abs (v0)" in finding.diff.splitlines()
    assert f"--fuel to-abs={LENGTH - 1}" in finding.render()


def test_an_error_is_traced_to_the_rewrite_that_raises_it(source):
    finding = bisect(source, Pipeline((Idle(), CrashAt())))

    assert (finding.step, finding.pass_text, finding.fuel) == (2, "crash-at", 4)
    assert "cannot do that" in finding.problem


def test_a_pass_that_fails_whatever_it_may_rewrite_has_no_rewrite_to_blame(source):
    finding = bisect(source, Pipeline((Idle(), CrashAt(before_asking=True))))

    assert (finding.step, finding.rewrite, finding.fuel) == (2, None, None)
    assert "no single rewrite" in finding.render()


def test_the_search_takes_a_logarithm_of_the_steps(source):
    @dataclass(frozen=True, kw_only=True)
    class Numbered(Idle):
        """Idle, by number."""

        number: int = 0

    steps = tuple(Numbered(number=index) for index in range(60))
    finding = bisect(source, Pipeline((*steps, ToAbs(), ToAbs(), ToAbs())), check=outputs_differ(source))

    assert finding.fuel == LENGTH
    assert finding.probes <= 20


def test_a_good_pipeline_is_a_usage_error(source):
    with pytest.raises(UsageError, match="does not break"):
        bisect(source, Pipeline((Idle(),)), check=lambda model: None)


def test_an_input_that_is_broken_already_is_a_usage_error(source):
    with pytest.raises(UsageError, match="before the first pass: ugly"):
        bisect(source, Pipeline((Idle(),)), check=lambda model: "ugly")


def test_each_run_is_told(source):
    lines = []
    bisect(source, Pipeline((Idle(), CrashAt())), progress=lines.append)

    assert lines[:2] == ["whole pipeline: bad", "step 0: good"]
    assert all(line.endswith((": good", ": bad")) for line in lines)
