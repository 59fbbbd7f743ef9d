"""The report of a check: when it counts as passed, what it prints, and what machines get."""

import json

import numpy as np
import pytest

from graphopt.backend.explain import before_and_after, breaks
from graphopt.backend.job import MARGIN_DB, agreement, partitions
from graphopt.backend.report import CheckReport, Gate, NodeVerdict, Partition, Place, broken, parts, summary
from graphopt.diagnostics import Diagnostic, Severity
from graphopt.errors import CheckError
from tests.helpers import model_of


def report(*gates, **given):
    return CheckReport(model="m.onnx", target="qnn-htp:soc=60", verified=True, toolchain="QNN", gates=gates, **given)


OK, BAD, SKIPPED = Gate("opens", True, "yes"), Gate("placement", False, "Erf on the CPU"), Gate("numbers", None, "-")
ERF = NodeVerdict("e", "Erf", Place.HOST, "", "not supported")


def test_it_passes_when_every_gate_that_was_asked_holds():
    assert report(OK, SKIPPED).passed
    assert not report(OK, BAD).passed


def test_nothing_asked_is_not_passed():
    assert not report(SKIPPED).passed


def test_a_finding_that_is_an_error_fails_it():
    wrong = Diagnostic(Severity.ERROR, "CHK004", "is computed wrongly", "r")
    warned = Diagnostic(Severity.WARNING, "CHK006", "no pair", "r")

    assert not report(OK, findings=(wrong,)).passed
    assert report(OK, findings=(warned,)).passed


def test_requiring_it_raises_with_what_failed():
    report(OK).require()
    with pytest.raises(CheckError, match="Erf on the CPU") as caught:
        report(OK, BAD).require()

    assert caught.value.exit_code == 7


def test_the_text_names_gates_nodes_and_that_nothing_was_verified():
    text = report(OK, BAD, SKIPPED, nodes=(ERF,), partitions=(Partition(Place.HOST, ("e",)),)).render()

    assert "FAILED  placement: Erf on the CPU" in text
    assert "Erf 'e': host: not supported" in text
    assert "documents" not in text
    unverified = CheckReport(model="m", target="coreml", verified=False, toolchain="")
    assert "nothing here was checked on the real thing" in unverified.render()


def test_json_holds_numbers_that_json_lacks_as_text():
    near = agreement([{"y": np.ones(3)}], [{"y": np.ones(3)}], [{"y": np.zeros(3)}])

    values = json.loads(json.dumps(report(OK, agreement=near, nodes=(ERF,)).to_json()))

    assert values["agreement"][0]["target_db"] == "inf"
    assert values["nodes"][0]["place"] == "host"
    assert values["passed"] is True


def test_agreement_tells_the_targets_distance_and_the_cpus():
    expected = [{"y": np.float32([1, 2, 3]), "i": np.int64([1, 2])}]
    target = [{"y": np.float32([1, 2, 3.1]), "i": np.int64([1, 3])}]
    cpu = [{"y": np.float32([1, 2, 4]), "i": np.int64([1, 2])}]

    y, i = agreement(expected, target, cpu)

    assert y.target_db == pytest.approx(10 * np.log10(14 / 0.01), abs=0.01)
    assert y.cpu_db == pytest.approx(10 * np.log10(14), abs=0.01)
    assert i.equal == 0.5
    assert MARGIN_DB == 1.0


def test_partitions_break_where_the_place_changes():
    model = model_of("g (float[2] x) => (float[2] y) { a = Relu(x) b = Erf(a) c = Neg(b) d = Abs(a) y = Add(c, d) }")
    nodes = list(model.graph)
    for node in nodes:
        node.name = node.op_type
    places = {"Erf": Place.HOST, "Abs": Place.MERGED}
    verdicts = [NodeVerdict(node.name, node.op_type, places.get(node.op_type, Place.TARGET)) for node in nodes]

    found = partitions(model, verdicts)

    assert [(part.place, part.nodes) for part in found] == [
        (Place.TARGET, ("Relu",)),
        (Place.HOST, ("Erf",)),
        (Place.TARGET, ("Neg", "Add")),
    ]
    assert parts(found) == "3 (2 target, 1 host)"


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
def test_breaks_name_the_operator_and_not_the_pairs_that_follow_it(domain):
    pair = NodeVerdict("q", f"{domain}QuantizeLinear", Place.HOST, "", "not supported")
    lonely = NodeVerdict("w", "DequantizeLinear", Place.HOST, "", "a standalone DQ")

    assert [node.name for node in breaks(report(OK, nodes=(pair, ERF, lonely)))] == ["e", "w"]


def test_before_and_after_counts_what_changed():
    before = report(BAD, nodes=(ERF,), partitions=(Partition(Place.TARGET, ("e",)), Partition(Place.HOST, ("e",))))
    after = report(
        OK, nodes=(NodeVerdict("g", "Gelu", Place.TARGET, "uint8"),), partitions=(Partition(Place.TARGET, ("g",)),)
    )

    text = before_and_after([before, after])

    assert "partitions: 2 -> 1" in text
    assert "nodes on the CPU: 1 -> 0" in text


def test_counts_and_long_lists_are_short():
    many = [NodeVerdict(str(i), "Erf", Place.HOST, "", f"no {i}") for i in range(30)]

    assert summary([*many, NodeVerdict("c", "Conv", Place.TARGET, "uint8")]) == "target uint8 1, host 30"
    assert len(broken(many, limit=20)) == 21
    assert broken(many, limit=20)[-1] == "... and 10 more reasons"


def test_nodes_that_share_a_reason_share_a_line():
    odd = [NodeVerdict(name, "Conv", Place.HOST, "", "Cannot get shape") for name in "abcdef"]

    assert broken([ERF, *odd]) == [
        "Erf 'e': host: not supported",
        "Conv 'a': host: Cannot get shape (and 5 more: Conv 'b', Conv 'c', Conv 'd', ...)",
    ]
    assert "Conv 'a' runs on the CPU: Cannot get shape (and 5 more" in before_and_after([report(BAD, nodes=tuple(odd))])


def test_an_explanation_names_what_is_wrong_with_an_input_and_its_cure():
    open_axis = Diagnostic(Severity.ERROR, "CHK001", "its shape is not fixed", "images", "--dim batch=1")

    text = before_and_after([report(BAD, nodes=(ERF,), findings=(open_axis,))])

    assert "images: its shape is not fixed\n        cure: --dim batch=1" in text
