"""Comparison: the numbers against numpy's on known data, and what is refused."""

from __future__ import annotations

import json
import math
import weakref

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from graphopt.errors import UsageError, VerifyError
from graphopt.runtime import Session, compare

info = h.make_tensor_value_info


def model(nodes, outputs, dtype=T.FLOAT, shape=("N", 4), initializers=()) -> bytes:
    graph = h.make_graph(nodes, "g", [info("x", dtype, shape)], outputs, list(initializers))
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8).SerializeToString()


def scaled(factor: float, name: str = "y", shape=("N", 4)) -> bytes:
    constant = h.make_tensor("k", T.FLOAT, [], [factor])
    return model(
        [h.make_node("Mul", ["x", "k"], [name])], [info(name, T.FLOAT, None)], shape=shape, initializers=[constant]
    )


def unary(op: str, out_dtype=T.FLOAT, dtype=T.FLOAT, **attrs) -> bytes:
    return model([h.make_node(op, ["x"], ["y"], **attrs)], [info("y", out_dtype, None)], dtype)


def batch(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array([values], np.float32)}


DATA = [batch(1, 2, 3, 4), batch(-1, 0, 8, -2)]


def test_equal_models():
    result = compare(scaled(2), scaled(2), DATA)
    (out,) = result.outputs
    assert result.equal and result.batches == 2
    assert (out.elements, out.differing, out.max_abs, out.sqnr_db, out.argmax_agreement) == (8, 0, 0.0, math.inf, 1.0)
    assert out.cosine == pytest.approx(1.0)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["outputs"][0]["sqnr_db"] == "inf"


def test_numbers_are_summed_over_batches():
    (out,) = compare(scaled(1), scaled(1.5), DATA).outputs
    assert out.max_abs == 4.0 and out.scale == 8.0 and out.max_rel_to_scale == 0.5
    assert out.sqnr_db == pytest.approx(20 * math.log10(2))
    assert out.differing == 7, "the zero stays equal"
    (opposite,) = compare(scaled(1), scaled(-1), DATA).outputs
    assert opposite.cosine == pytest.approx(-1.0) and opposite.argmax_agreement == 0.0


def test_a_reference_of_zeros_has_no_scale():
    (out,) = compare(scaled(0), scaled(1), DATA).outputs
    assert (out.max_rel_to_scale, out.sqnr_db, out.cosine) == (math.inf, -math.inf, 0.0)
    (both,) = compare(scaled(0), scaled(0), DATA).outputs
    assert (both.max_rel_to_scale, both.sqnr_db, both.cosine) == (0.0, math.inf, 1.0)


def test_nan_equals_nan_and_a_stray_one_is_counted():
    data = [batch(-1, 4, 9, -4)]
    (same,) = compare(unary("Sqrt"), unary("Sqrt"), data).outputs
    assert same.differing == 0 and same.nonfinite == 0 and same.within(0.0)
    (stray,) = compare(unary("Abs"), unary("Sqrt"), data).outputs
    assert stray.nonfinite == 2 and stray.max_abs == 6.0 and not stray.within(1e9)
    infinite = [batch(math.inf, -math.inf, math.nan, 1)]
    (signs,) = compare(unary("Identity"), unary("Abs"), infinite).outputs
    assert signs.nonfinite == 1, "-inf against inf"


def test_other_than_floats_are_counted():
    (out,) = compare(unary("ArgMax", T.INT64, axis=1), unary("ArgMin", T.INT64, axis=1), DATA).outputs
    assert (out.dtype, out.elements, out.differing, out.max_abs) == ("int64", 2, 2, None)
    assert not out.within(1.0)


def test_sequences_are_compared_element_by_element():
    def split(size: int) -> bytes:
        node = h.make_node("SplitToSequence", ["x", "n"], ["y"], axis=1)
        output = h.make_tensor_sequence_value_info("y", T.FLOAT, None)
        return model([node], [output], initializers=[h.make_tensor("n", T.INT64, [], [size])])

    result = compare(split(2), split(2), DATA)
    assert [o.name for o in result.outputs] == ["y[0]", "y[1]"] and result.equal
    with pytest.raises(VerifyError, match=r"output y: a sequence of 2 against one of 4"):
        compare(split(2), split(1), DATA)


def test_optional_outputs():
    kind = h.make_tensor_type_proto(T.FLOAT, [None, 4])
    output = h.make_value_info("y", h.make_optional_type_proto(kind))
    full = model([h.make_node("Optional", ["x"], ["y"])], [output])
    empty = model([h.make_node("Optional", [], ["y"], type=kind)], [output])
    assert compare(full, full, DATA).outputs[0].elements == 8
    assert compare(empty, empty, DATA).equal
    with pytest.raises(VerifyError, match="empty optional"):
        compare(full, empty, DATA)


@pytest.mark.parametrize(
    "b, message",
    [
        (scaled(1, "z"), "output y: model lacks it"),
        (unary("Transpose", perm=[1, 0]), r"output y: shape \[1, 4\] against \[4, 1\] in batch 1"),
        (unary("Cast", T.INT64, to=T.INT64), "output y: float32 against int64"),
    ],
)
def test_outputs_that_cannot_be_paired(b, message):
    with pytest.raises(VerifyError, match=message):
        compare(scaled(1), b, DATA)


def test_an_extra_output_is_refused():
    nodes = [h.make_node("Neg", ["x"], ["y"]), h.make_node("Abs", ["x"], ["more"])]
    both = model(nodes, [info("y", T.FLOAT, None), info("more", T.FLOAT, None)])
    with pytest.raises(VerifyError, match="output more"):
        compare(unary("Neg"), both, DATA)


def test_half_precision_is_compared_by_value():
    half = model(
        [h.make_node("Cast", ["x"], ["y"], to=T.FLOAT16)],
        [info("y", T.FLOAT16, None)],
    )
    (out,) = compare(unary("Identity"), half, [batch(1, 2, 3, 0.1)]).outputs
    assert 0 < out.max_abs < 1e-4 and out.differing == 1


def test_tolerance_names_the_output():
    result = compare(scaled(1), scaled(1.001), DATA, rtol=1e-2)
    assert result.failures == []
    result.check()
    result = compare(scaled(1), scaled(1.1), DATA, rtol=1e-2)
    assert result.failures == ["y"]
    with pytest.raises(VerifyError, match=r"output y: differs by more than 0.01") as caught:
        result.check()
    assert "SQNR" in (caught.value.context or "")
    compare(scaled(1), scaled(1.1), DATA).check()  # no tolerance asked for, nothing to fail


def test_metric_sees_every_batch_of_each_model():
    def total(outputs: list[dict[str, np.ndarray]]) -> float:
        assert len(outputs) == 2
        return sum(float(o["y"].sum()) for o in outputs)

    result = compare(scaled(1), scaled(2), iter(DATA), metric=total)
    assert (result.metric.a, result.metric.b) == (15.0, 30.0)
    assert "metric: 15 -> 30 (+15)" in result.render()
    assert result.to_json()["metric"] == {"a": 15.0, "b": 30.0, "change": 15.0}


@pytest.mark.parametrize(
    "metric, message",
    [
        (lambda o: 1 / 0, "ZeroDivisionError"),
        (lambda o: "good", "returned 'good', not a number"),
        (lambda o: None, "None"),
    ],
)
def test_a_metric_that_fails_is_a_usage_error(metric, message):
    with pytest.raises(UsageError, match=message):
        compare(scaled(1), scaled(1), DATA, metric=metric)


def test_no_batches_is_a_usage_error():
    with pytest.raises(UsageError, match="no batch"):
        compare(scaled(1), scaled(1), [])


def test_an_input_that_b_no_longer_has_is_noted():
    inputs = [info("x", T.FLOAT, ["N", 4]), info("unused", T.FLOAT, [1])]
    graph = h.make_graph([h.make_node("Neg", ["x"], ["y"])], "g", inputs, [info("y", T.FLOAT, None)])
    a = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8).SerializeToString()
    result = compare(a, unary("Neg"), [{**DATA[0], "unused": np.ones(1, np.float32)}])
    assert result.equal and result.notes == ("model has no input unused",)


def test_outputs_are_not_kept_without_a_metric():
    alive = []

    class Watched(Session):
        def run(self, feeds, outputs=None):
            result = super().run(feeds, outputs)
            alive.append(weakref.ref(result["y"]))
            return result

    compare(Watched(scaled(1)), Watched(scaled(1)), DATA * 5)
    assert len(alive) == 20 and sum(ref() is not None for ref in alive) == 0


def test_table_lists_every_output():
    text = compare(scaled(1), scaled(1.5), DATA).render()
    assert [line.split()[0] for line in text.splitlines()] == ["output", "y", "2"]
    assert "6.0" in text and "float32" in text
