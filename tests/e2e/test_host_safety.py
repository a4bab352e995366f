"""Whatever breaks in capture, vLLM serves on with the same tokens, and the fault shows."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from devkit.tiny_moe import ensure_checkpoint
from tests.e2e.host.faults import CASES
from tests.e2e.host.lab import Lab

pytestmark = pytest.mark.e2e

CLOSE_PATIENCE = 3.0
"""Closing waits for its threads no longer than this by its own clocks, in seconds."""
CLOSE_SECONDS = 12.0
"""What closing may take on a machine with much else to do."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One engine for all faults."""
    folder = tmp_path_factory.mktemp("host")
    made = Lab(ensure_checkpoint(folder / "model"), folder / "log")
    made.start()
    yield made
    made.close()


def test_a_bad_setting_at_the_start_turns_capture_off_and_says_so(lab: Lab) -> None:
    assert not lab.capture_at_start
    assert len(lab.plain) == 8
    assert "MOESCOPE_INTERVAL: 'soon' is no number of seconds" in lab.output


@pytest.mark.parametrize("name", CASES)
def test_vllm_serves_on_and_the_fault_shows(lab: Lab, name: str) -> None:
    case, seen = CASES[name], lab.run(name)
    assert seen["tokens"] == lab.plain
    assert seen["close_patience"] <= CLOSE_PATIENCE
    assert seen["close_seconds"] < CLOSE_SECONDS
    assert seen["left_bound"] == 0
    if case.shows is not None:
        said = [line for line in seen["log"] if re.search(case.shows, line)]
        assert len(said) == 1, seen["log"]
    unexpected = [line for line in seen["log"] if "a snapshot was not sent" in line]
    assert not unexpected or "snapshot was not sent" in (case.shows or "")
    if case.state is not None:
        assert seen["frame"]["state"] == case.state
    if case.exact or case.unseen:
        assert seen["frame"]["tokens"] == seen["computed"]
        assert (set(seen["frame"]["rows"]) == {seen["computed"]}) is not case.unseen
    for reason in case.drops:
        assert seen["frame"]["drops"][reason] > 0


def test_the_requests_are_no_degenerate_text(lab: Lab) -> None:
    assert len({tuple(tokens) for tokens in lab.plain}) >= 4


def test_there_are_at_least_25_faults() -> None:
    assert len(CASES) >= 25
