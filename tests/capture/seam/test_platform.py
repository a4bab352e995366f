"""The worker class that is extended on each platform: the platform's own, never another's."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from moescope.capture.seam.platform import is_worker, why_device_unknown, why_unknown

PLATFORM = """
import os
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import PlatformEnum

class Elsewhere(CpuPlatform):
    _enum = PlatformEnum.OOT

    @classmethod
    def check_and_update_config(cls, vllm_config):
        vllm_config.parallel_config.worker_cls = "elsewhere_worker." + os.environ["ELSEWHERE_WORKER"]

def register():
    return "elsewhere.Elsewhere"
"""
WORKERS = """
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.worker_base import WorkerBase

class Own(WorkerBase): ...
class Like(Worker): ...
"""
SHOW = """
import os, sys, traceback
import elsewhere_worker  # vLLM's modules take seconds to import, so once for all

for worker in sys.argv[1:]:
    os.environ["ELSEWHERE_WORKER"] = worker
    child = os.fork()
    if not child:
        output = os.open(worker, os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1), os.dup2(output, 2)
        try:
            from moescope.capture.worker import RoutingWorker
            print("classes", *(base.__name__ for base in RoutingWorker.__mro__))
            print("why not:", RoutingWorker._moescope_why_not, flush=True)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(worker, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What importing our worker printed, and its exit status, where a plugin brings vLLM's platform.

    That is how vendors do it. By the name of the platform's worker class.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "elsewhere.py").write_text(PLATFORM)
    (folder / "elsewhere_worker.py").write_text(WORKERS)
    info = folder / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vllm.platform_plugins]\nelsewhere = elsewhere:register\n")
    command = [sys.executable, "-c", SHOW, "Own", "Like", "Missing"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    codes = dict(line.split() for line in done.stdout.splitlines()[-3:])
    return {worker: (int(code), (folder / worker).read_text()) for worker, code in codes.items()}


def test_a_worker_of_its_own_kind_reports_only(elsewhere: dict[str, tuple[int, str]]) -> None:
    code, said = elsewhere["Own"]
    assert code == 0, said[-2000:]
    assert "ReportingWorker Own WorkerBase" in said
    assert "CapturingWorker" not in said
    assert "elsewhere_worker.Own, which doesn't extend vllm.v1.worker.gpu_worker.Worker" in said


def test_one_that_extends_vllms_counts(elsewhere: dict[str, tuple[int, str]]) -> None:
    code, said = elsewhere["Like"]
    assert code == 0, said[-2000:]
    assert "CapturingWorker ReportingWorker Like Worker" in said
    assert "why not: None" in said


def test_a_platform_that_does_not_tell_its_worker_is_an_error_that_says_what_to_do(
    elsewhere: dict[str, tuple[int, str]],
) -> None:
    code, said = elsewhere["Missing"]
    assert code != 0
    assert "Elsewhere, vLLM's platform here, doesn't tell its worker class" in said
    assert "set MOESCOPE=1" in said


def test_only_classes_that_can_be_loaded_and_stepped_are_workers() -> None:
    methods = dict.fromkeys(("init_device", "load_model", "execute_model"), lambda _: None)
    assert is_worker(type("W", (), methods))
    assert not is_worker(type("Extension", (), {"says": lambda _: None}))
    assert not is_worker(SimpleNamespace(**methods))


def test_known_by_its_bases_whoever_else_is_among_them() -> None:
    vllms = type("Worker", (), {"__module__": "vllm.v1.worker.gpu_worker"})
    assert why_unknown(type("Theirs", (vllms,), {})) is None
    assert why_unknown(type("Worker", (), {"__module__": "theirs"})) is not None


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_devices_that_are_counted_on(kind: str) -> None:
    assert why_device_unknown(SimpleNamespace(device=SimpleNamespace(type=kind))) is None


@pytest.mark.parametrize("device", [SimpleNamespace(type="xpu"), "npu", None])
def test_other_devices_are_named(device: object) -> None:
    said = why_device_unknown(SimpleNamespace(device=device))
    assert said is not None
    assert said.startswith("moescope counts on cuda and cpu devices, not on ")
