"""Servers that are forks of a process which has imported vLLM: nothing else differs from their own start."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from devkit.processes import ProcessGroup
from tests.e2e.cluster import Cluster
from tests.e2e.preloaded import READ_BY_IMPORTS, Preloaded, preloaded
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

TELLS = """
import os, sys
print(__name__, sys.argv[1:], os.environ["MOESCOPE_SERVER"], os.getcwd(), sys.path[0], "vllm" in sys.modules)
print(os.getsid(0) == os.getpgid(0) == os.getpid(), sys.stdin.read() == "", file=sys.stderr)
sys.exit(3)
"""
WAITS = "import time; print('waits', flush=True); time.sleep(600)"


def group(folder: Path, code: str, env: Mapping[str, str] = READ_BY_IMPORTS) -> ProcessGroup:
    script = folder / "script.py"
    script.write_text(code)
    added = {**env, "MOESCOPE_SERVER": "one", "PYTHONPATH": str(folder)}
    command = [str(script), "serve", "--port", "1"]
    return ProcessGroup(command, folder / "log", {**os.environ, **added}, preloaded().launch)


def test_a_server_is_a_fork(cluster: Cluster) -> None:
    first, *others = cluster.vllm.processes()
    assert first.ppid() == preloaded().pid
    assert {process.ppid() for process in others} >= {first.pid}
    assert {"serve", "--port"} <= set(" ".join(first.cmdline()).split())


def test_it_has_its_arguments_environment_folder_and_output(tmp_path: Path) -> None:
    started = group(tmp_path, TELLS)
    wait_until(lambda: started.exit_code() is not None, "it runs on")
    assert started.exit_code() == 3
    said = f"__main__ ['serve', '--port', '1'] one {Path.cwd()} {tmp_path} True"
    assert {said, "True True"} <= set(started.log.read_text().splitlines())


def test_it_is_ended_by_a_signal(tmp_path: Path) -> None:
    started = group(tmp_path, WAITS)
    wait_until(lambda: started.last_line() == "waits", "it does not run")
    started.stop(((signal.SIGTERM, 60.0),))
    assert started.exit_code() == -signal.SIGTERM
    assert started.alive() == []


def test_a_variable_that_imports_may_read_makes_a_process_of_its_own(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as output:
        env = {**os.environ, **READ_BY_IMPORTS, "VLLM_CPU_CI_ENV": "1"}
        started = preloaded().launch([sys.executable, "-c", "raise SystemExit(4)"], output, env)
    assert psutil.Process(started.pid).ppid() == os.getpid()
    assert started.wait() == 4


@pytest.fixture
def another() -> Iterator[Preloaded]:
    made = Preloaded(modules=())
    yield made
    made.close()


def test_what_it_started_ends_with_it(tmp_path: Path, another: Preloaded) -> None:
    script = tmp_path / "script.py"
    script.write_text(WAITS)
    with (tmp_path / "log").open("wb") as output:
        started = another.launch([str(script)], output, {**os.environ, **READ_BY_IMPORTS})
    process = psutil.Process(started.pid)
    another.close()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "it lives on")
