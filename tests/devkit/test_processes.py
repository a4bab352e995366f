import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devkit.processes import ProcessGroup, free_port, port_is_free, tail
from tests.waiting import wait_until

Start = Callable[[str], ProcessGroup]

QUICK = ((signal.SIGINT, 0.3), (signal.SIGTERM, 0.3), (signal.SIGKILL, 5.0))

# A parent that ends at once when asked to, and a child, in a group of its own, that ignores every request.
STUBBORN_CHILD = """
import signal, subprocess, sys, time
child = "import signal, time\\n"
child += "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\\n"
child += "print('ready', flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child], process_group=0)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def run(code: str) -> ProcessGroup:
        return ProcessGroup([sys.executable, "-c", code], tmp_path / "logs" / "log", os.environ)

    return run


def test_stop_ends_a_child_that_ignores_requests_and_left_the_group(
    start: Callable[[str], ProcessGroup],
) -> None:
    group = start(STUBBORN_CHILD)
    wait_until(lambda: group.last_line() == "ready", "it did not say ready")
    running = group.alive()
    assert len(running) == 2
    group.stop(QUICK)
    assert group.alive() == []
    assert not any(process.is_running() for process in running if process.pid == group.pid)
    assert group.exit_code() == -signal.SIGINT


def test_a_polite_process_is_asked_once_and_ends_by_itself(start: Start) -> None:
    group = start(
        "import time\nprint('up', flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('bye')"
    )
    wait_until(lambda: group.last_line() == "up", "it did not say up")
    group.stop()
    assert group.exit_code() == 0
    assert tail(group.log.read_text()) == "up\nbye"


def test_stop_after_the_end_does_nothing(start: Start) -> None:
    group = start("raise SystemExit(3)")
    wait_until(lambda: group.exit_code() is not None, "it did not end")
    group.stop()
    group.stop()
    assert group.exit_code() == 3


def test_last_line_skips_empty_ones(start: Start) -> None:
    group = start("print('one\\ntwo\\n\\n')")
    wait_until(lambda: group.exit_code() is not None, "it did not end")
    group.stop()
    assert group.last_line() == "two"
    assert tail(group.log.read_text(), lines=3) == "two\n\n"


def test_port_is_free_until_somebody_listens() -> None:
    port = free_port()
    assert port_is_free(port)
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert port < first_given, "a connection could get it before somebody listens"
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        server.listen()
        assert not port_is_free(port)
