"""The commands, run inside this process: what they print, and the exit codes."""

import json

import numpy as np
import pytest

from graphopt import io
from graphopt.cli import COMMANDS, cli
from graphopt.cli.common import Progress
from tests.helpers import model_of

BODY = "g (float[N,3] x) => (float[N,4] y) { a = Identity(x) b = MatMul(a, w) c = Relu(b) y = Identity(c) }"


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "in.onnx"
    io.save(model_of(BODY, weights={"w": np.arange(12, dtype=np.float32).reshape(3, 4)}), path)
    return path


def test_the_help_of_each_command_is_the_one_that_the_list_shows():
    for name, (_, text) in COMMANDS.items():
        command = cli.get_command(None, name)
        assert command.help.splitlines()[0] == text, name
        assert command.name == name


@pytest.mark.parametrize("name", [*COMMANDS, None])
def test_every_command_has_help(graphopt, name):
    code, out, _ = graphopt(*([name] if name else []), "--help")

    assert code == 0
    assert "Usage: graphopt" in out


def test_optimize_writes_the_model_and_a_summary(graphopt, model, tmp_path):
    code, out, err = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--pipeline", "remove-identities")

    assert (code, err) == (0, "")
    assert f"{model} -> {tmp_path / 'out.onnx'}" in out
    assert "nodes                   4 ->              2  (-50.0%)" in out
    assert [node.op_type for node in io.load(tmp_path / "out.onnx").graph] == ["MatMul", "Relu"]


@pytest.mark.parametrize("pipeline", ["remove-identities", "boom"])
def test_a_terminal_gets_a_progress_bar_that_is_gone_at_the_end(
    graphopt, model, tmp_path, monkeypatch, plug_in, pipeline
):
    plug_in("Boom", "raise RuntimeError('a bug')")
    monkeypatch.setattr("graphopt.cli.optimize.progress", lambda: [Progress()])
    _, out, err = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--pipeline", pipeline)

    assert f"1: {pipeline}" in err
    assert f"1: {pipeline}" not in out
    assert err.rsplit("\r", 1)[-1].strip() == "" or err.rsplit("\r", 1)[-1].startswith("graphopt: ")


def test_optimize_notes_where_the_output_comes_from(graphopt, model, tmp_path):
    graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--pipeline", "remove-identities,remove-dead")

    notes = io.load(tmp_path / "out.onnx").metadata_props
    assert notes["graphopt.pipeline"] == "remove-identities,remove-dead"
    assert set(notes) == {"graphopt.version", "graphopt.pipeline", "graphopt.input_sha256"}


def test_optimize_in_json_is_one_object(graphopt, model, tmp_path):
    code, out, _ = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--pipeline", "remove-identities", "--json")

    facts = json.loads(out)
    assert code == 0
    assert facts["pipeline"] == "remove-identities"
    assert facts["rewrites_by_pass"] == {"remove-identities": 2}
    assert facts["statistics"]["before"]["nodes"] == 4
    assert facts["statistics"]["after"]["nodes"] == 2
    assert facts["statistics"]["after"]["macs"] == 12
    assert [(p["step"], p["pass"], p["rewrites"]) for p in facts["passes"]] == [(1, "remove-identities", 2)]
    assert "rewrites" not in facts


def test_the_report_lists_every_rewrite(graphopt, model, tmp_path):
    report = tmp_path / "report.json"
    graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--pipeline", "remove-identities", "--report", report)

    facts = json.loads(report.read_text())
    assert len(facts["rewrites"]) == facts["rewrite_count"] == 2
    assert facts["rewrites"][0]["pass_name"] == "remove-identities"
    assert facts["input"]["path"] == str(model)
    assert len(facts["input"]["sha256"]) == 64


def test_optimize_takes_a_config_file_settings_and_limits(graphopt, model, tmp_path):
    config = tmp_path / "pipeline.toml"
    config.write_text('steps = ["fold-constants", "remove-identities"]')
    code, out, _ = graphopt(
        "optimize", model, "-o", tmp_path / "out.onnx", "--config", config, "--set", "fold-constants.max_growth=5",
        "--fuel", "remove-identities=1", "--stop-after", 2, "--json",
    )  # fmt: skip

    facts = json.loads(out)
    assert code == 0
    assert facts["pipeline"] == "fold-constants{max_growth=5},remove-identities"
    assert facts["rewrite_count"] == 1


def test_optimize_prints_tables_when_asked(graphopt, model, tmp_path):
    _, out, _ = graphopt(
        "optimize", model, "-o", tmp_path / "o.onnx", "--pipeline", "remove-identities", "--timing", "--statistics"
    )

    assert "(instruments)" in out
    assert "(result)" in out


def test_dumps_go_beside_the_output(graphopt, model, tmp_path):
    graphopt("optimize", model, "-o", tmp_path / "o.onnx", "--pipeline", "remove-identities", "--dump-after", "all")

    assert [path.name for path in (tmp_path / "o.onnx.dump").iterdir()] == ["001-after-remove-identities.txt"]


def test_the_numeric_check_says_that_its_inputs_are_random(graphopt, model, tmp_path):
    code, _, err = graphopt("optimize", model, "-o", tmp_path / "o.onnx", "--pipeline", "remove-identities", "--check")

    assert code == 0
    assert "DATA001" in err


def test_the_numeric_check_stops_a_pass_that_changes_outputs(graphopt, model, tmp_path, plug_in):
    plug_in("Spoil", "ctx.edit.set_operator(ctx.nodes('Relu')[0], 'Sigmoid')")
    data = tmp_path / "data.npz"
    np.savez(data, x=np.ones((2, 3), np.float32))
    code, _, err = graphopt(
        "optimize", model, "-o", tmp_path / "o.onnx", "--pipeline", "remove-dead,spoil", "--check", "--data", data
    )

    assert code == 5
    assert "pass spoil (step 2): output y: " in err
    assert not (tmp_path / "o.onnx").exists()


def test_data_that_nothing_reads_is_mentioned(graphopt, model, tmp_path):
    code, _, err = graphopt("optimize", model, "-o", tmp_path / "o.onnx", "--pipeline", "", "--data", "random")

    assert code == 0
    assert "DATA007" in err


def test_a_failure_leaves_a_reproducer_that_replays(graphopt, model, tmp_path, plug_in):
    file = plug_in("Boom", "raise RuntimeError('a bug')")
    repro = tmp_path / "repro"
    code, _, err = graphopt(
        "optimize", model, "-o", tmp_path / "o.onnx", "--pipeline", "remove-identities,boom", "--repro", repro
    )
    assert code == 4
    assert f"graphopt replay {repro}" in err
    assert [node.op_type for node in io.load(repro / "model.onnx").graph] == ["MatMul", "Relu"]

    code, out, _ = graphopt("replay", repro)
    assert code == 4
    assert "it fails again" in out
    assert "RuntimeError: a bug" in out

    code, out, _ = graphopt("replay", repro, "--json")
    assert json.loads(out)["error"] == json.loads(out)["recorded"] | {"hint": None}

    assert file.exists()


def test_a_failure_that_does_not_happen_again_is_told(graphopt, model, tmp_path, plug_in, monkeypatch):
    monkeypatch.setenv("GRAPHOPT_TEST_BOOM", "1")
    statement = "import os; assert 'GRAPHOPT_TEST_BOOM' not in os.environ"
    plug_in("Boom", statement, changes="")
    graphopt("optimize", model, "-o", tmp_path / "o.onnx", "--pipeline", "boom", "--repro", tmp_path / "repro")
    monkeypatch.delenv("GRAPHOPT_TEST_BOOM")

    code, out, _ = graphopt("replay", tmp_path / "repro")
    assert code == 0
    assert "did not happen again" in out


def test_a_numeric_failure_replays_on_the_same_inputs(graphopt, model, tmp_path, plug_in):
    plug_in("Spoil", "ctx.edit.set_operator(ctx.nodes('Relu')[0], 'Sigmoid')")
    repro = tmp_path / "repro"
    graphopt("optimize", model, "-o", tmp_path / "o.onnx", "--pipeline", "spoil", "--check", "--repro", repro)

    code, out, _ = graphopt("replay", repro)
    assert code == 5
    assert "output y" in out


def test_show_tells_what_a_model_holds(graphopt, model):
    code, out, _ = graphopt("show", model)

    assert code == 0
    assert "inputs      x: float[N, 3]" in out
    assert "outputs     y: float[N, 4]" in out
    assert "MACs        12 (N=1)" in out
    assert "operators   Identity 2, MatMul 1, Relu 1" in out


def test_show_binds_symbolic_axes_and_counts_by_operator(graphopt, model):
    _, out, _ = graphopt("show", model, "--stats", "--dim", "N=10")

    assert "MACs        120\n" in out
    assert [line.split() for line in out.splitlines() if line.startswith("MatMul")] == [["MatMul", "1", "120"]]


def test_show_in_json(graphopt, model):
    _, out, _ = graphopt("show", model, "--json")

    facts = json.loads(out)
    assert facts["inputs"] == [{"name": "x", "type": "float", "shape": ["N", 3]}]
    assert facts["statistics"]["parameters"] == 12


def test_show_as_text_parses_back(graphopt, model):
    from graphopt.ir import fingerprint
    from graphopt.ir.text import parse

    _, out, _ = graphopt("show", model, "--text")

    assert fingerprint(parse(out)) == fingerprint(io.load(model))


def test_diff_tells_what_changed_and_whether(graphopt, model, tmp_path):
    graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--pipeline", "remove-identities")

    assert graphopt("diff", model, model) == (0, "", "")
    code, out, _ = graphopt("diff", model, tmp_path / "out.onnx")
    assert code == 1
    assert any(line.startswith("-") and "Identity" in line for line in out.splitlines())


def test_compare_finds_two_equal_models_equal(graphopt, model, tmp_path):
    graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--pipeline", "remove-identities")
    code, out, err = graphopt("compare", model, tmp_path / "out.onnx", "--rtol", 0, "--dim", "N=5")

    assert code == 0
    assert "DATA001" in err
    assert out.splitlines()[1].split()[:4] == ["y", "float32", "20", "0"]


@pytest.mark.parametrize("bound", [("--rtol", "1e-3"), ("--max-abs", "0.01")])
def test_compare_leaves_with_5_when_out_of_tolerance(graphopt, model, tmp_path, plug_in, bound):
    plug_in("Spoil", "ctx.edit.set_operator(ctx.nodes('Relu')[0], 'Sigmoid')")
    graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--pipeline", "spoil")
    code, out, err = graphopt("compare", model, tmp_path / "out.onnx", *bound)
    assert code == 5
    assert "out of tolerance: y" in err

    code, out, _ = graphopt("compare", model, tmp_path / "out.onnx", *bound, "--json")
    assert code == 5
    assert json.loads(out)["failures"] == ["y"]

    assert graphopt("compare", model, tmp_path / "out.onnx")[0] == 0


def test_compare_takes_data_and_a_metric(graphopt, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "metric_of_test.py").write_text("def rows(outputs):\n    return sum(len(o['y']) for o in outputs)\n")
    np.savez(tmp_path / "data.npz", x=np.ones((7, 3), np.float32))
    code, out, _ = graphopt(
        "compare", model, model, "--data", "data.npz", "--batch", 2, "--metric", "metric_of_test:rows", "--json"
    )

    facts = json.loads(out)
    assert code == 0
    assert facts["batches"] == 4
    assert facts["metric"] == {"a": 7, "b": 7, "change": 0}


def test_bench_times_one_model_or_two(graphopt, model):
    code, out, _ = graphopt("bench", model, "--runs", 2, "--min-seconds", 0)
    assert code == 0
    assert "2 runs each" in out

    _, out, _ = graphopt("bench", model, model, "--runs", 2, "--min-seconds", 0, "--json")
    assert json.loads(out)["ratio"]["median"] > 0


def test_passes_lists_and_explains(graphopt):
    code, out, _ = graphopt("passes")
    assert code == 0
    assert any(line.startswith("remove-dead ") for line in out.splitlines())

    _, out, _ = graphopt("passes", "fold-constants")
    assert "max_growth=" in out
    assert ">= 0" in out
    assert "Before::" in out

    _, out, _ = graphopt("passes", "--json")
    assert {item["name"] for item in json.loads(out)["passes"]} >= {"remove-dead", "fold-constants"}

    _, out, _ = graphopt("passes", "--markdown")
    assert "### fold-constants" in out
    assert "| `max_growth` | int |" in out


def test_an_unknown_pass_is_a_usage_error(graphopt):
    code, _, err = graphopt("passes", "remove-deat")

    assert code == 2
    assert "did you mean 'remove-dead'?" in err


def test_presets_and_targets_are_listed(graphopt):
    assert "lossless: " in graphopt("presets")[1]
    assert "lossless" in json.loads(graphopt("presets", "--json")[1])["presets"]
    assert "ort-cpu: " in graphopt("targets")[1]
    assert "cpu-arm64" in {item["name"] for item in json.loads(graphopt("targets", "--json")[1])["targets"]}


def test_zoo_lists_real_models_and_fetches_them(graphopt, monkeypatch, tmp_path):
    assert "silero_vad" in graphopt("zoo")[1]
    assert json.loads(graphopt("zoo", "--json")[1])["models"]
    monkeypatch.setattr("graphopt.zoo.fetch", lambda name, folder: folder / f"{name}.onnx")
    assert graphopt("zoo", "silero_vad", "--to", tmp_path)[1].strip() == str(tmp_path / "silero_vad.onnx")
    fetched = json.loads(graphopt("zoo", "silero_vad", "--to", tmp_path, "--json")[1])["fetched"]
    assert fetched == {"silero_vad": str(tmp_path / "silero_vad.onnx")}


def test_bisect_names_pass_and_rewrite(graphopt, model, tmp_path, plug_in):
    plug_in(
        "Spoil",
        "node = ctx.nodes('Relu')[0]; before = ctx.edit.revision; "
        "ctx.may_rewrite(node, 'spoil it') and ctx.edit.set_operator(node, 'Exp')",
        changes="changed=ctx.edit.revision - before",
    )
    code, out, err = graphopt("bisect", model, "--pipeline", "remove-dead,remove-identities,spoil")

    assert code == 0
    assert "step 3: spoil" in out
    assert "rewrite 1 of spoil: spoil it" in out
    assert "+   y = Exp (b)" in out
    assert "whole pipeline: bad" in err


@pytest.mark.parametrize("check", ["grep -q Relu {}", "grep -q Relu", "check_of_test:has_relu"])
def test_bisect_takes_a_check_of_the_users_own(graphopt, model, tmp_path, plug_in, check, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "check_of_test.py").write_text("def has_relu(path):\n    return b'Relu' in path.read_bytes()\n")
    plug_in("Spoil", "ctx.edit.set_operator(ctx.nodes('Relu')[0], 'Exp')")
    code, out, _ = graphopt("bisect", model, "--pipeline", "remove-identities,spoil", "--check", check, "--json")

    finding = json.loads(out)
    assert code == 0
    assert (finding["step"], finding["pass_text"], finding["rewrite"]) == (2, "spoil", None)


def test_bisect_of_a_pipeline_that_breaks_nothing_is_a_usage_error(graphopt, model):
    code, _, err = graphopt("bisect", model, "--pipeline", "remove-identities")

    assert code == 2
    assert "does not break" in err
