"""vLLM's plugin: nothing unless asked for, once however often it is loaded, and never an error."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest

from moescope.capture.attach import plugin
from moescope.capture.seam import resolver
from moescope.capture.seam.deployment import Place
from moescope.capture.seam.launch import Launch
from moescope.capture.settings.surroundings import LAUNCHED_AS

PREFIXES = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"


def test_vllm_finds_it() -> None:
    (found,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="moescope")
    assert found.load() is plugin.attach


OFF = """
import sys
before = list(sys.meta_path)
from moescope.capture.attach.plugin import attach
attach()
assert sys.meta_path == before
ours = ("moescope.", "torch", "numpy", "msgspec", "vllm")
print(*(name for name in sys.modules if name.startswith(ours)))
"""


@pytest.mark.parametrize("value", [None, "", "0", "false"])
def test_without_moescope_it_does_and_imports_nothing(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOESCOPE", raising=False)
    if value is not None:
        monkeypatch.setenv("MOESCOPE", value)
    done = subprocess.run(
        [sys.executable, "-c", OFF], capture_output=True, text=True, check=True, timeout=120
    )
    assert set(done.stdout.split()) == {
        "moescope.capture",
        "moescope.capture.attach",
        "moescope.capture.attach.plugin",
        "moescope.capture.settings",
        "moescope.capture.settings.attachment",
    }


@pytest.fixture
def worker_base(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with the name of vLLM's, which resolves class names by a table."""
    module = ModuleType("vllm.v1.worker.worker_base")
    module.resolve_obj_by_qualname = {"w": Worker, "x": Extension}.__getitem__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv(PREFIXES, raising=False)
    monkeypatch.setenv("MOESCOPE", "1")
    return module


class Worker:
    def init_device(self) -> None: ...
    def load_model(self) -> None: ...
    def execute_model(self) -> None: ...


class Extension:
    def says(self) -> None: ...


def test_loaded_twice_it_acts_once(worker_base: ModuleType) -> None:
    plugin.attach()
    once = worker_base.resolve_obj_by_qualname
    plugin.attach()
    assert worker_base.resolve_obj_by_qualname is once
    found = once("w")
    assert issubclass(found, Worker)
    assert found.__mro__.count(Worker) == 1
    assert once("x") is Extension


def test_a_class_that_cannot_be_extended_is_used_as_it_is(
    worker_base: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(worker_class: type) -> type:
        raise TypeError("final")

    resolver.extend_workers(raises)
    assert worker_base.resolve_obj_by_qualname("w") is Worker
    assert "capture is off: w can't be extended: TypeError('final')" in caplog.text


def test_a_name_that_cannot_be_resolved_fails_as_before(worker_base: ModuleType) -> None:
    plugin.attach()
    with pytest.raises(KeyError):
        worker_base.resolve_obj_by_qualname("nowhere")


def test_a_vllm_that_resolves_elsewhere_is_told(
    worker_base: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    del worker_base.resolve_obj_by_qualname
    plugin.attach()
    assert "this vLLM resolves its worker class elsewhere" in caplog.text


def test_it_never_raises(worker_base: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with mock.patch.object(resolver, "extend_workers", side_effect=RuntimeError("broken")):
        plugin.attach()
    assert "capture is off, the server serves on: RuntimeError('broken')" in caplog.text


def test_processes_are_told_which_server_started_them_and_ray_carries_it(
    worker_base: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each server says it anew: one may have been started by a program that another server started."""
    from vllm.ray.ray_env import get_env_vars_to_copy

    monkeypatch.setenv(LAUNCHED_AS, "another:8000")
    for arguments, expected in (
        (("vllm", "serve", "m", "--port", "8001"), "gpu-17:8001"),
        (("ray::RayWorkerProc",), "gpu-17:8001"),  # this isn't one: what came from the server stays
    ):
        place = Place("gpu-17", Launch(1, arguments, tmp_path))
        monkeypatch.setattr("moescope.capture.seam.deployment.this_place", lambda place=place: place)
        plugin.attach()
        assert os.environ[LAUNCHED_AS] == expected
    assert LAUNCHED_AS in get_env_vars_to_copy()
    with mock.patch("moescope.capture.seam.deployment.this_place", side_effect=OSError("no /proc")):
        plugin.attach()
    assert "what started this process can't be told: OSError('no /proc')" in caplog.text
    assert issubclass(worker_base.resolve_obj_by_qualname("w"), Worker)


LATER = """
import os, sys, types
os.environ["MOESCOPE"] = "1"
from moescope.capture.attach.plugin import attach
before = list(sys.meta_path)
attach(); attach()
assert len(sys.meta_path) == len(before) + 1
assert "torch" not in sys.modules and "moescope.capture.attach.mixin" not in sys.modules
import vllm.v1.worker.worker_base as base
assert sys.meta_path == before
from moescope.capture.attach.mixin import CapturingWorker
found = base.resolve_obj_by_qualname("vllm.v1.worker.gpu_worker.Worker")
assert issubclass(found, CapturingWorker), found.__mro__
assert base.resolve_obj_by_qualname("vllm.sampling_params.SamplingParams").__name__ == "SamplingParams"
print("extended", base.__spec__.name, base.__loader__.get_source(base.__name__)[:1])
"""


def test_loaded_before_vllms_workers_it_acts_when_they_are_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATER], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "extended vllm.v1.worker.worker_base #" in done.stdout
