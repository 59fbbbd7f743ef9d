"""A toolchain that is missing, crashes, hangs or prints: each becomes a message, and nothing of it stays behind."""

import os
import textwrap
import time
from pathlib import Path

import pytest

from graphopt.backend.toolchain import Toolchain, ask
from graphopt.errors import TargetError

TOOL = Toolchain(title="the toolchain", worker="none", package="vendor", install="pip install vendor")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the scripts of these tests use POSIX calls")


def worker(tmp_path, body):
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys, time, subprocess\nasked, answered = sys.argv[1:]\n" + textwrap.dedent(body)
    )
    return script


def test_a_worker_gets_the_request_and_answers(tmp_path):
    script = worker(tmp_path, "json.dump({'twice': 2 * json.load(open(asked))['n']}, open(answered, 'w'))")

    assert ask(TOOL, {"n": 21}, tmp_path, script=script).values == {"twice": 42}


def test_what_it_prints_lands_in_the_log_and_nowhere_else(tmp_path, capfd):
    body = """
        os.write(1, b'native \\x1b[0;93mnoise\\n'); os.write(2, b'\\xff\\xfe not text\\n'); print('{"twice": 0}')
        json.dump({}, open(answered, 'w'))
    """

    answer = ask(TOOL, {}, tmp_path, script=worker(tmp_path, body))

    assert "native noise" in answer.log
    assert "not text" in answer.log
    assert answer.values == {}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("sys.exit(3)", "exit code 3"),
        ("pass", "without an answer"),
        ("open(answered, 'w').write('{\"half')", "without an answer"),
    ],
)
def test_a_crash_is_a_target_error_with_what_was_printed_last(tmp_path, body, said):
    script = worker(tmp_path, f"print('the last words', flush=True)\n{body}")

    with pytest.raises(TargetError, match="crashed") as caught:
        ask(TOOL, {}, tmp_path, script=script)

    assert said in caught.value.message
    assert "the last words" in caught.value.context


def test_an_answer_of_an_earlier_run_is_not_taken_for_this_ones(tmp_path):
    (tmp_path / "answer.json").write_text("{}")

    with pytest.raises(TargetError, match="crashed"):
        ask(TOOL, {}, tmp_path, script=worker(tmp_path, "pass"))


def test_a_hang_ends_with_the_time_limit_and_takes_its_children_along(tmp_path):
    body = """
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
        print(child.pid, flush=True)
        time.sleep(600)
    """
    started = time.monotonic()

    with pytest.raises(TargetError, match="did not finish within 1 s") as caught:
        ask(TOOL, {}, tmp_path, script=worker(tmp_path, body), time_limit=1)

    assert time.monotonic() - started < 20
    assert "--time-limit" in caught.value.hint
    assert is_gone(int((tmp_path / "log.txt").read_text()))


def test_children_that_a_worker_leaves_behind_are_ended_too(tmp_path):
    body = """
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
        json.dump({'child': child.pid}, open(answered, 'w'))
    """

    answer = ask(TOOL, {}, tmp_path, script=worker(tmp_path, body))

    assert is_gone(answer.values["child"])


def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(tmp_path):
    script = worker(tmp_path, "json.dump({'missing': 'vendor'}, open(answered, 'w'))")

    with pytest.raises(TargetError, match="no package vendor") as caught:
        ask(TOOL, {}, tmp_path, script=script)

    assert caught.value.hint == "pip install vendor"


def test_a_worker_runs_in_the_folder_it_was_given(tmp_path):
    script = worker(tmp_path, "open('left_behind', 'w'); json.dump({}, open(answered, 'w'))")
    folder = tmp_path / "inner"
    folder.mkdir()

    ask(TOOL, {}, folder, script=script)

    assert (folder / "left_behind").exists()


def is_gone(pid):
    """Wait a little for a process to end: it may be gone, or dead and not yet collected by its parent."""
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        try:
            os.kill(pid, 0)
            if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False
