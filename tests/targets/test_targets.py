"""The targets' facts: what is read, what is refused, and what is said of those that nobody could verify."""

import json

import pytest
from click.testing import CliRunner

import graphopt
from graphopt.cli import cli
from graphopt.errors import UsageError
from graphopt.pipeline import parse
from graphopt.pipeline import passes as all_passes
from graphopt.quantization.grid import LIMITS
from graphopt.targets import HOST, find, names

NPUS = {"qnn-htp", "openvino-npu", "rknn", "vitisai", "vitisai-xint8", "coreml", "tensorrt"}
NAMES = [name for name in names() if name != HOST]


def test_the_npus_are_there():
    assert set(NAMES) >= NPUS


@pytest.mark.parametrize("name", NAMES)
def test_each_target_says_where_its_facts_come_from(name):
    target = find(name)

    assert target.name == name and target.source
    assert set(target.options) == set(target.choices)
    assert all(value in target.choices[key] for key, value in target.options.items())


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_checked_is_not_called_verified(name):
    target = find(name)

    assert target.verified <= bool(target.toolchain)


@pytest.mark.parametrize("name", NAMES)
def test_types_are_types_of_grids_and_cures_are_pipelines_of_passes(name):
    target = find(name)

    for rule in target.rules:
        assert rule.why
        assert rule.types <= {*LIMITS, "float"}
        for step in parse(rule.cure).passes() if rule.cure else ():
            assert step.name in all_passes()
    if target.quantization is not None:
        facts = target.quantization
        wide = {facts.wide_activations, facts.wide_products} - {""}
        assert {facts.activations, facts.weights, *wide} <= set(LIMITS)
        assert not facts.moves & set(facts.kernels)
        assert facts.needs_output <= set(facts.kernels) and facts.on_integers <= facts.moves


def test_an_option_of_the_hardware_is_part_of_the_name():
    target = find("qnn-htp:soc=43")

    assert target.options == {"soc": "43"}
    assert target.label == "qnn-htp:soc=43"
    assert find("qnn-htp").options == {"soc": "60"}
    assert find("cpu-x64").label == "cpu-x64"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qnn-http", "qnn-htp"),
        ("qnn-htp:soc=44", "43"),
        ("qnn-htp:sock=43", "soc"),
        ("qnn-htp:", "OPTION=VALUE"),
        ("qnn-htp:43", "OPTION=VALUE"),
        ("rknn:platform=rk3589", "rk3588"),
        ("cpu-x64:soc=43", "it has none"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(name, said):
    with pytest.raises(UsageError) as caught:
        find(name)

    assert said in f"{caught.value.message} {caught.value.hint}"


def test_the_list_tells_which_targets_are_verified():
    lines = CliRunner().invoke(cli, ["targets"]).output.splitlines()

    for name in NAMES:
        line = next(line for line in lines if line.startswith(f"{name}: "))
        assert line.endswith("(verified)" if find(name).verified else "(not verified)")
    assert any("soc=60" in line for line in lines)


def test_the_list_is_there_for_machines_too():
    listed = json.loads(CliRunner().invoke(cli, ["targets", "--json"]).output)["targets"]

    facts = next(target for target in listed if target["name"] == "qnn-htp")
    assert facts["choices"]["soc"].keys() >= {"43", "60"}
    assert any(rule["op"] == "Erf" for rule in facts["rules"])


def test_every_report_on_an_unverified_target_says_so():
    model = "models/fashion_cnn.onnx"
    runs = {name: graphopt.optimize(model, preset="none", target=find(name)) for name in ("vitisai", "qnn-htp")}

    said = {name: {d.code for d in run.diagnostics} for name, run in runs.items()}
    assert "TARGET001" in said["vitisai"]
    assert runs["vitisai"].report()["target_verified"] is False
    assert "TARGET001" not in said["qnn-htp"]
    assert runs["qnn-htp"].report()["target"] == "qnn-htp:soc=60"
