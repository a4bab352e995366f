"""The line that says why a process ended, from logs of processes that did: kept in `logs/`, or made here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from devkit.processes import ProcessGroup
from devkit.root_cause import LONGEST, explain, root_cause
from tests.waiting import wait_until

LOGS = Path(__file__).with_name("logs")
"""Of `vllm serve` 0.32 with two data-parallel ranks, folders' names replaced."""


def log_of(program: str, folder: Path) -> Path:
    """What a Python that runs this writes until it ends."""
    group = ProcessGroup([sys.executable, "-c", program], folder / "log", os.environ)
    try:
        wait_until(lambda: group.exit_code() is not None, "it did not end")
    finally:
        group.stop()
    return group.log


def test_vllm_without_libnuma() -> None:
    """vLLM only warns of the library; its engines' tracebacks alternate, and the server's refers to them."""
    assert root_cause((LOGS / "library_missing.log").read_text()) == [
        "ImportError: libnuma.so.1: cannot open shared object file: No such file or directory",
        "AttributeError: '_OpNamespace' '_C' object has no attribute 'init_cpu_memory_env'",
    ]


def test_an_engine_of_vllm_that_failed() -> None:
    """The innermost exception of the first engine that failed, although the server's own comes last."""
    assert root_cause((LOGS / "engine_failed.log").read_text()) == [
        "KeyError: 'no such key'",
        "ValueError: this worker can't load: layer 3 has 5 rows, of 4",
    ]


def test_a_message_has_the_root_cause_first_and_no_traceback() -> None:
    log = LOGS / "engine_failed.log"
    assert explain(log, "vLLM ended with status 1").splitlines() == [
        "KeyError: 'no such key'",
        "then ValueError: this worker can't load: layer 3 has 5 rows, of 4",
        f"vLLM ended with status 1; its log: {log}",
    ]


def test_a_library_that_can_t_be_loaded(tmp_path: Path) -> None:
    log = log_of("import ctypes; ctypes.CDLL('libmoescope-gone.so.1')", tmp_path)
    said = "OSError: libmoescope-gone.so.1: cannot open shared object file: No such file or directory"
    assert root_cause(log.read_text()) == [said]


def test_code_that_can_t_be_compiled(tmp_path: Path) -> None:
    source = tmp_path / "code.cpp"
    source.write_text("#include <moescope_gone.h>\n")
    log = log_of(f"import subprocess; subprocess.run(['g++', '-c', {str(source)!r}], check=True)", tmp_path)
    said, then = root_cause(log.read_text())
    assert said == f"{source}:1:10: fatal error: moescope_gone.h: No such file or directory"
    assert then.startswith("subprocess.CalledProcessError: Command ")


CHAIN = """
try:
    try:
        {}["first"]
    except KeyError as error:
        raise ValueError("second\\n  with more") from error
except ValueError:
    raise RuntimeError("third")
"""


def test_a_chain_of_exceptions_from_the_innermost_on(tmp_path: Path) -> None:
    """Causes and contexts, messages of several lines, and whatever else was written after it."""
    log = log_of(f"import atexit; atexit.register(print, 'bye')\n{CHAIN}", tmp_path)
    assert log.read_text().endswith("bye\n")
    assert root_cause(log.read_text()) == [
        "KeyError: 'first'",
        "ValueError: second with more",
        "RuntimeError: third",
    ]


def test_the_last_traceback_and_not_an_earlier_one_that_was_survived(tmp_path: Path) -> None:
    survived = "import traceback\ntry: {}['survived']\nexcept KeyError: traceback.print_exc()\n"
    log = log_of(f"{survived}print('going on', flush=True)\n[][1]", tmp_path)
    assert root_cause(log.read_text()) == ["IndexError: list index out of range"]


def test_an_error_of_the_command_line(tmp_path: Path) -> None:
    program = "import argparse; argparse.ArgumentParser(prog='serve').parse_args(['--what'])"
    log = log_of(program, tmp_path)
    assert root_cause(log.read_text()) == ["serve: error: unrecognized arguments: --what"]


def test_a_message_without_end_is_cut(tmp_path: Path) -> None:
    (cause,) = root_cause(log_of("raise ValueError('x' * 10000)", tmp_path).read_text())
    assert cause.startswith("ValueError: xxx")
    assert len(cause) < LONGEST + 10


def test_what_was_survived_can_be_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    survived = "Traceback (most recent call last):\n  at the start\nKeyError: 'survived'\n"
    log.write_text(f"{survived}it hangs\n")
    assert explain(log, "no answer").startswith("KeyError: 'survived'\n")
    assert explain(log, "no answer", since=len(survived)).endswith("ends with:\nit hangs")


@pytest.mark.parametrize("program", ["print('one'); print('two')", "import os; os.abort()"])
def test_a_log_that_doesn_t_say_it_is_shown_from_its_end(program: str, tmp_path: Path) -> None:
    log = log_of(program, tmp_path)
    assert explain(log, "it ended") == f"it ended; its log, {log}, ends with:\n{log.read_text().rstrip()}"
