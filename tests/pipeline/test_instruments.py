"""What watches a run: verification, timing, statistics, dumps, numeric checks, reproducers."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from graphopt.calibration.sessions import session_of
from graphopt.errors import PassError, UsageError, VerifyError
from graphopt.ir.text import parse as parse_text
from graphopt.numeric import output_check
from graphopt.pipeline import Changes, Fixpoint, Pass, Pipeline, run_pipeline
from graphopt.pipeline.instruments import (
    Dump,
    NumericCheck,
    Reproducer,
    Statistics,
    Timing,
    Verify,
    measure,
    read_repro,
)
from graphopt.pipeline.spec import parse
from graphopt.runtime import evaluate
from tests.helpers import model_of

TEXT = "g (float[2,3] x) => (float[2,4] y) { a = Identity(x) b = MatMul(a, w) y = Relu(b) }"


def a_pass(body, name="tested"):
    @dataclass(frozen=True, kw_only=True)
    class Tested(Pass):
        """A pass of this test."""

        def run(self, model, ctx):
            return Changes(body(ctx) or {})

    Tested.name = name
    return Tested()


def to_sigmoid(ctx):
    node = ctx.nodes("Relu")[0]
    ctx.edit.set_operator(node, "Sigmoid")
    return {"turned": 1}


def break_order(ctx):
    """Move the first node behind its reader, past the editor."""
    (node,) = ctx.nodes("Identity")
    graph = node.graph
    graph.remove(node)
    graph.append(node)
    ctx.edit.set_attr(ctx.nodes("Relu")[0], "alpha", None)
    return {"moved": 1}


def wrong_attribute(ctx):
    ctx.edit.set_attr(ctx.nodes("Relu")[0], "axis", 1)
    return {"set": 1}


def run(*steps, instruments, **options):
    model = model_of(TEXT, weights={"w": np.ones((3, 4), np.float32)})
    return run_pipeline(model, Pipeline(steps), evaluate, instruments=instruments, **options)


@pytest.mark.parametrize(("body", "code"), [(break_order, "IR008"), (wrong_attribute, "IR005")])
def test_verify_names_the_pass_that_broke_an_invariant(body, code):
    with pytest.raises(VerifyError) as caught:
        run(
            a_pass(to_sigmoid, "fine") if body is None else a_pass(lambda ctx: None, "fine"),
            a_pass(body),
            instruments=[Verify()],
        )

    assert caught.value.where == "pass tested (step 2)"
    assert code in caught.value.message


def test_verify_looks_at_the_input_first():
    model = model_of(TEXT, weights={"w": np.ones((3, 4), np.float32)})
    nodes = list(model.graph)
    model.graph.remove(nodes[0])
    model.graph.append(nodes[0])

    with pytest.raises(VerifyError, match="IR008"):
        run_pipeline(model, Pipeline(()), evaluate, instruments=[Verify()])


def test_verify_catches_a_pass_that_hides_its_changes():
    with pytest.raises(VerifyError, match="reported no change") as caught:
        run(a_pass(lambda ctx: to_sigmoid(ctx) and {}), instruments=[Verify()])

    assert caught.value.where == "pass tested (step 1)"


def test_verify_catches_a_pass_that_claims_changes():
    with pytest.raises(VerifyError, match="wrote nothing"):
        run(a_pass(lambda ctx: {"claimed": 3}), instruments=[Verify()])


def test_verify_looks_only_at_what_was_touched_between_passes(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "graphopt.pipeline.instruments.checks.verify",
        lambda model, touched=None: seen.append(None if touched is None else [node.op_type for node in touched]),
    )
    run(a_pass(to_sigmoid), a_pass(lambda ctx: None, "idle"), instruments=[Verify()])

    assert seen == [None, ["Sigmoid"]]


def test_timing_adds_up_the_executions_of_each_pass():
    timing = Timing()
    run(a_pass(to_sigmoid), a_pass(lambda ctx: None, "idle"), instruments=[timing])

    assert timing.runs == {"tested": 1, "idle": 1}
    assert 0 <= sum(timing.seconds.values()) <= timing.total
    slowest_first = sorted(timing.seconds, key=lambda name: -timing.seconds[name])
    assert [line.split()[-1] for line in timing.table().splitlines()[1:]] == [*slowest_first, "(instruments)"]


def remove_identity(ctx):
    node = ctx.nodes("Identity")[0]
    ctx.edit.replace(node, [node.inputs[0]])
    return {"removed": 1}


def test_statistics_measure_the_ends_and_each_pass_that_changed_something():
    statistics = Statistics(each_pass=True)
    run(a_pass(remove_identity), a_pass(lambda ctx: None, "idle"), instruments=[statistics])

    assert (statistics.before.nodes, statistics.after.nodes) == (3, 2)
    assert [(step, name, size.nodes) for step, name, size in statistics.steps] == [(1, "tested", 2)]
    assert statistics.before.parameters == 12
    assert statistics.before.bytes == 48
    assert statistics.before.macs == 2 * 3 * 4
    assert len(statistics.table().splitlines()) == 4


def test_constant_nodes_are_not_counted_and_nested_nodes_are():
    model = model_of(
        """g (bool c) => (float[1] y) { y = If (c) <
            then_branch = t () => (float[1] p) { k = Constant <value = float[1] {1}> () p = Neg(k) },
            else_branch = e () => (float[1] q) { q = Constant <value = float[1] {2}> () }
        > }"""
    )

    assert measure(model).nodes == 2


def test_dumps_are_numbered_and_parse_back(tmp_path):
    folder = tmp_path / "new" / "dumps"
    dump = Dump(folder, before=["idle"], after=["all"])
    run(a_pass(to_sigmoid), a_pass(lambda ctx: None, "idle"), instruments=[dump])

    assert sorted(path.name for path in folder.iterdir()) == ["001-after-tested.txt", "002-before-idle.txt"]
    assert [n.op_type for n in parse_text((folder / "001-after-tested.txt").read_text()).graph][-1] == "Sigmoid"


def test_a_dump_after_a_pass_named_is_written_though_nothing_changed(tmp_path):
    run(a_pass(lambda ctx: None, "idle"), instruments=[Dump(tmp_path, after=["idle"])])

    assert [path.name for path in tmp_path.iterdir()] == ["001-after-idle.txt"]


def test_a_dump_around_a_pass_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError) as caught:
        run(a_pass(to_sigmoid), instruments=[Dump(tmp_path, after=["testd"])])

    assert caught.value.hint == "did you mean 'tested'?"


def test_a_dump_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make the folder"):
        run(a_pass(to_sigmoid), instruments=[Dump(tmp_path / "file", after=["all"])])


def numeric(rtol=1e-5):
    model = model_of(TEXT, weights={"w": np.ones((3, 4), np.float32)})
    feeds = [{"x": np.arange(6, dtype=np.float32).reshape(2, 3)}]
    return NumericCheck(output_check(session_of(model), feeds, rtol)), feeds


def test_the_numeric_check_names_pass_and_output():
    check, _ = numeric()
    with pytest.raises(VerifyError) as caught:
        run(a_pass(remove_identity, "harmless"), a_pass(to_sigmoid), instruments=[check])

    assert caught.value.where == "pass tested (step 2)"
    assert "output y" in caught.value.message


def test_the_numeric_check_lets_pass_what_is_within_tolerance():
    def scale(ctx):
        value = ctx.edit.model.graph.initializers["w"]
        ctx.edit.set_weight(value, np.full((3, 4), 1.001, np.float32))
        return {"scaled": 1}

    run(a_pass(scale), instruments=[numeric(rtol=1e-2)[0]])
    with pytest.raises(VerifyError):
        run(a_pass(scale), instruments=[numeric(rtol=1e-4)[0]])


CRASH = "raise ValueError('a bug')"


def test_a_reproducer_holds_the_model_before_the_pass_and_the_pipeline_from_it_on(plug_in, tmp_path):
    plug_in("Boom", CRASH)
    group = Fixpoint((parse("remove-identities").steps[0], parse("boom").steps[0]), 4)
    with pytest.raises(PassError) as caught:
        run(group, instruments=[Reproducer(tmp_path / "repro")], seed=7, fuel={"boom": 9})

    repro = read_repro(tmp_path / "repro")
    assert str(repro.pipeline) == "boom,fixpoint{max=3}(remove-identities,boom)"
    assert (repro.seed, repro.fuel, repro.inputs) == (7, {"boom": 9}, [])
    assert repro.error["message"] == "ValueError: a bug"
    assert f"graphopt replay {tmp_path / 'repro'}" in caught.value.hint
    assert "plug_in_boom.py" in (tmp_path / "repro" / "error.txt").read_text()
    model = session_of(model_of(TEXT, weights={"w": np.ones((3, 4), np.float32)}))
    assert model.outputs[0].name == "y"


def test_a_reproducer_of_a_numeric_failure_holds_the_inputs(tmp_path):
    check, feeds = numeric()
    reproducer = Reproducer(tmp_path, inputs=feeds, rtol=1e-5)
    with pytest.raises(VerifyError):
        run(a_pass(to_sigmoid, "remove-dead"), instruments=[check, reproducer])

    repro = read_repro(tmp_path)
    assert repro.rtol == 1e-5
    np.testing.assert_array_equal(repro.inputs[0]["x"], feeds[0]["x"])


def test_a_reproducer_that_cannot_be_written_leaves_the_error_as_it_was(tmp_path):
    (tmp_path / "file").write_text("")

    def fail(ctx):
        raise ValueError("a bug")

    with pytest.raises(PassError, match="a bug") as caught:
        run(a_pass(fail), instruments=[Reproducer(tmp_path / "file")])

    assert "could not be written" in caught.value.hint


@pytest.mark.parametrize("content", [None, "{}", "[", json.dumps({"pipeline": 3})])
def test_a_folder_that_is_no_reproducer_is_a_usage_error(tmp_path, content):
    if content is not None:
        (tmp_path / "repro.json").write_text(content)
    with pytest.raises(UsageError, match="no reproducer"):
        read_repro(tmp_path)
