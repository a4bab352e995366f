"""Which classes are extended, and how."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.v1.worker.gpu_worker import Worker

from moescope.capture.attach.mixin import CapturingWorker, ReportingWorker, extended


class Meta(type):
    """A metaclass, as a worker class may have."""


def gpu_worker(**parts: Any) -> type[Any]:
    """A class by the name of vLLM's."""
    return Meta("Worker", (), {"__module__": "vllm.v1.worker.gpu_worker", **parts})


class Extension:
    def says(self) -> str:
        return "said"


def test_a_worker_of_vllms_is_extended_and_left_as_it_is() -> None:
    worker = gpu_worker()
    bases = worker.__bases__
    found = extended(worker)
    assert found.__mro__[:4] == (found, CapturingWorker, ReportingWorker, worker)
    assert type(found) is Meta
    assert worker.__bases__ == bases


def test_what_is_extended_already_stays() -> None:
    found = extended(gpu_worker())
    assert extended(found) is found
    derived = type("Derived", (found,), {})
    assert extended(derived) is derived


def test_somebody_elses_bases_are_direct_bases_too() -> None:
    """vLLM looks there for the class that --worker-extension-cls names, and adds it if it isn't there."""
    worker = gpu_worker()
    theirs = type("Theirs", (worker, Extension), {})
    assert Extension in extended(theirs).__bases__
    found = extended(type("Plain", (worker,), {}))
    found.__bases__ = (*found.__bases__, Extension)
    assert found().says() == "said"


def test_no_name_of_ours_can_clash_with_an_extensions() -> None:
    vllms = {"load_model", "compile_or_warm_up_model", "execute_model", "execute_dummy_batch", "shutdown"}
    vllms |= {"elastic_ep_execute", "handle_ft_command", "sample_tokens"}
    assert vllms <= set(dir(Worker))
    ours = {name for name in dir(CapturingWorker) if not name.startswith("__")}
    assert {name for name in ours - vllms if not name.startswith("_moescope")} == set()


def test_a_class_of_another_kind_reports_only() -> None:
    other = type("Other", (), {"__module__": "somewhere"})
    found = extended(other)
    assert issubclass(found, ReportingWorker)
    assert not issubclass(found, CapturingWorker)
    assert "somewhere.Other, which doesn't extend vllm.v1.worker.gpu_worker.Worker" in found._moescope_why_not
    assert extended(gpu_worker())._moescope_why_not is None


@pytest.mark.parametrize("front", [CapturingWorker, ReportingWorker])
def test_a_shutdown_before_the_load_is_harmless(front: type[Any]) -> None:
    worker = type("W", (front, type("Inner", (), {"shutdown": lambda _: "down"})), {})()
    assert worker.shutdown() == "down"
