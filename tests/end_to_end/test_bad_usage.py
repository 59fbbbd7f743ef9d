"""What a user gets for input that makes no sense: an exit code, a message, no traceback, no output file."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from graphopt import cli, io
from graphopt.__main__ import run
from tests.helpers import model_of

SOUND = "g (float[2,3] x) => (float[2,4] y) { a = Identity(x) y = MatMul(a, w) }"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    io.save(model_of(SOUND, weights={"w": np.ones((3, 4), np.float32)}), tmp_path / "sound.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def graphopt(capsys):
    """Run a command inside this process, which is much faster than starting one."""

    def call(*arguments):
        capsys.readouterr()
        code = run([*arguments])
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, captured.out, captured.err)

    return call


@pytest.fixture
def optimize(graphopt):
    return lambda *arguments: graphopt("optimize", *arguments, "-o", "out.onnx")


def process(folder, *arguments, **options):
    command = [sys.executable, "-m", "graphopt", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, **options)


def assert_refused(folder, done, code, *words):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("graphopt: ")
    for word in words:
        assert word in done.stderr
    assert [path.name for path in folder.iterdir() if path.name.startswith((".", "out"))] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["bad.onnx: there is no such file"]),
        (b"", ["bad.onnx", "the file is empty"]),
        (b"this is a letter, and no model\n" * 9, ["bad.onnx", "this is a text file"]),
        (bytes(range(256)) * 4, ["bad.onnx", "damaged"]),
    ],
)
def test_a_file_that_is_no_model(folder, optimize, content, words):
    if content is not None:
        (folder / "bad.onnx").write_bytes(content)

    assert_refused(folder, optimize("bad.onnx"), 3, *words)


def test_a_model_that_is_cut_off(folder, optimize):
    data = (folder / "sound.onnx").read_bytes()
    (folder / "bad.onnx").write_bytes(data[: len(data) // 2])

    assert_refused(folder, optimize("bad.onnx"), 3, "bad.onnx")


def test_a_model_whose_shapes_contradict_each_other(folder, optimize):
    io.save(model_of(SOUND, weights={"w": np.ones((5, 4), np.float32)}), folder / "bad.onnx")

    assert_refused(folder, optimize("bad.onnx"), 3, "contradicts itself")
    assert_refused(folder, optimize("bad.onnx", "--preset", "none"), 3, "contradicts itself")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pipeline", "remove-deat"], ["remove-deat", "^", "did you mean 'remove-dead'?"]),
        (["--pipeline", "fold-constants{max_grow=1}"], ["no option 'max_grow'", "did you mean 'max_growth'?"]),
        (["--preset", "losless"], ["no preset", "did you mean 'lossless'?"]),
        (["--target", "ort-gpu"], ["no target", "did you mean 'ort-cpu'?"]),
        (["--config", "absent.toml"], ["cannot read the pipeline file"]),
        (["--preset", "none", "--pipeline", ""], ["--preset and --pipeline each name a pipeline"]),
        (["--set", "remove-dead"], ["expected PASS.OPTION=VALUE"]),
        (["--pipeline", "remove-dead", "--set", "remove-deed.x=1"], ["no pass 'remove-deed'", "did you mean"]),
        (["--fuel", "remove-dead"], ["expected NAME=NUMBER"]),
        (["--pipeline", "remove-dead", "--fuel", "fold=1"], ["no pass 'fold'"]),
        (["--pipeline", "remove-dead", "--dump-after", "fold-constants"], ["no pass 'fold-constants'"]),
        (["--check", "--data", "absent.npz"], ["absent.npz"]),
        (["--stop-after", "-1"], ["--stop-after"]),
        (["--frobnicate"], ["--frobnicate"]),
    ],
)
def test_an_option_that_makes_no_sense(folder, optimize, arguments, words):
    assert_refused(folder, optimize("sound.onnx", *arguments), 2, *words)


def test_a_command_that_does_not_exist(folder, graphopt):
    assert_refused(folder, graphopt("optimise", "sound.onnx"), 2, "did you mean 'optimize'?")


@pytest.mark.parametrize(
    ("path", "word"),
    [("absent/out.onnx", "does not exist"), (".", "this is a folder"), ("sound.onnx/out.onnx", "exist")],
)
def test_an_output_path_that_cannot_be_written(folder, graphopt, path, word):
    done = graphopt("optimize", "sound.onnx", "-o", path, "--preset", "none")

    assert_refused(folder, done, 2, word)


def test_a_report_path_that_cannot_be_written(folder, optimize):
    assert_refused(folder, optimize("sound.onnx", "--report", "absent/report.json"), 2, "does not exist")


def test_an_output_that_was_there_is_left_alone_by_a_failure(folder, graphopt):
    (folder / "kept.onnx").write_text("precious")
    done = graphopt("optimize", "sound.onnx", "-o", "kept.onnx", "--pipeline", "nonsense")

    assert_refused(folder, done, 2)
    assert (folder / "kept.onnx").read_text() == "precious"


def test_errors_in_json_are_one_object_on_stdout(folder, optimize):
    done = optimize("absent.onnx", "--json")
    assert_refused(folder, done, 3)
    assert json.loads(done.stdout)["error"]["exit_code"] == 3


def test_a_process_leaves_with_the_exit_code(folder):
    assert_refused(folder, process(folder, "optimize", "absent.onnx", "-o", "out.onnx"), 3, "there is no such file")
    assert process(folder, "optimize", "sound.onnx", "-o", "out.onnx").returncode == 0


def test_debug_shows_where_an_error_was_raised(folder, graphopt):
    done = graphopt("--debug", "optimize", "absent.onnx", "-o", "out.onnx")

    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_a_full_disk_leaves_nothing_half_written(folder):
    weights = np.random.default_rng(0).standard_normal((3, 40_000)).astype(np.float32)
    io.save(model_of(SOUND.replace("2,4", "2,40000"), weights={"w": weights}), folder / "large.onnx")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = process(folder, "optimize", "large.onnx", "-o", "out.onnx", "--preset", "none", preexec_fn=limit)
    assert_refused(folder, done, 2, "cannot be written")


def test_ctrl_c_leaves_nothing(folder):
    (folder / "slow_script.py").write_text(
        "import pathlib, time\n\ndef wait(graph):\n    pathlib.Path('started').touch()\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "graphopt", "optimize", "sound.onnx", "-o", "out.onnx"]
    process = subprocess.Popen(
        [*command, "--pipeline", "surgeon{function=slow_script:wait}"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 90
    while not (folder / "started").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "interrupted" in stderr
    assert not (folder / "out.onnx").exists()


def test_a_reader_that_leaves_early_is_no_error(folder):
    command = f"{sys.executable} -m graphopt passes --markdown | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=120, check=False)

    assert done.stderr == ""
    assert done.stdout.startswith("### ")


def test_a_bug_is_told_without_a_traceback(folder, graphopt, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "show", ("graphopt.errors", "GraphOptError"))
    done = graphopt("show", "sound.onnx")

    assert done.returncode == 70
    assert "Traceback" not in done.stderr
    assert "internal error: AttributeError" in done.stderr
