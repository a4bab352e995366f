"""A fault that hangs, or ends the engine's process, costs its own test only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.host.lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path, tmp_path / "log", child="tests.e2e.host.stand_in", fault_s=5.0)
    made.start()
    yield made
    made.close()


def test_faults_share_a_process(lab: Lab) -> None:
    assert lab.run("one")["pid"] == lab.run("another")["pid"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("hangs", r"(?s)hangs: no answer in 5 s.*threading.py.* in wait.*stand_in.py.* in main"),
        ("dies", r"(?s)dies: the child has ended.*dying"),
    ],
)
def test_a_fault_that_is_not_survived_fails_alone(lab: Lab, fault: str, words: str) -> None:
    before = lab.run("fine")["pid"]
    with pytest.raises(AssertionError, match=words):
        lab.run(fault)
    assert not psutil.pid_exists(before)
    assert lab.run("fine")["pid"] != before


def test_a_failure_does_not_show_what_an_earlier_fault_has_logged(lab: Lab) -> None:
    lab.run("survives")
    with pytest.raises(AssertionError, match="dying") as failure:
        lab.run("dies")
    assert "survived" not in str(failure.value)
