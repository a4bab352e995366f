"""Whatever breaks in capture, vLLM serves on with the same tokens, and the fault shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from devkit.root_cause import root_cause
from devkit.tiny_moe import ensure_checkpoint
from tests.e2e.host.faults import CASES

pytestmark = pytest.mark.e2e

CLOSE_SECONDS = 3.5


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one engine did with every fault, and without capture."""
    folder: Path = tmp_path_factory.mktemp("host")
    model, result = ensure_checkpoint(folder / "model"), folder / "result.json"
    command = [sys.executable, "-m", "tests.e2e.host.child", str(model), str(result)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    output = done.stdout + done.stderr
    assert done.returncode == 0, "\n".join(root_cause(output)) or output[-3000:]
    return {**json.loads(result.read_text()), "output": output}


def test_a_bad_setting_at_the_start_turns_capture_off_and_says_so(lab: dict[str, Any]) -> None:
    assert not lab["capture_at_start"]
    assert len(lab["plain"]) == 8
    assert "MOESCOPE_INTERVAL: 'soon' is no number of seconds" in lab["output"]


@pytest.mark.parametrize("name", CASES)
def test_vllm_serves_on_and_the_fault_shows(lab: dict[str, Any], name: str) -> None:
    case, seen = CASES[name], lab["cases"][name]
    assert seen["tokens"] == lab["plain"]
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


def test_the_requests_are_no_degenerate_text(lab: dict[str, Any]) -> None:
    assert len({tuple(tokens) for tokens in lab["plain"]}) >= 4


def test_there_are_at_least_25_faults() -> None:
    assert len(CASES) >= 25
