"""Capture in whatever worker class vLLM has: exact, once, or off with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from devkit.tiny_moe import ensure_checkpoint
from tests.e2e.attachment.child import CASES
from tests.e2e.host.lab import Lab

pytestmark = pytest.mark.e2e

OFF = {
    "runner called directly": "vLLM runs steps without asking its worker",
    "no relation": "Borrowed, which doesn't extend vllm.v1.worker.gpu_worker.Worker",
}
UNKNOWN = "fits no known row layout"
CHANGE = "weights that change"
EXACT = sorted(name for name in CASES.keys() - OFF - {CHANGE} if "odd" not in name and "bad" not in name)


class Once(Lab):
    """Each case is run once, however many tests look at it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._seen: dict[str, dict[str, Any]] = {}

    def run(self, name: str) -> dict[str, Any]:
        """What was seen of the case, now or before."""
        if name not in self._seen:
            self._seen[name] = super().run(name)
        return self._seen[name]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One process for all cases, each of which is an engine of its own."""
    folder = tmp_path_factory.mktemp("attachment")
    made = Once(ensure_checkpoint(folder / "model"), folder / "log", "tests.e2e.attachment.child")
    made.start()
    yield made
    made.close()


def test_nothing_is_attached_unless_asked_for(lab: Lab) -> None:
    assert not lab.capture_at_start
    assert "moescope" not in lab.output.replace("moescope_devkit", "").replace("moescope ->", "")


@pytest.mark.parametrize("name", EXACT)
def test_counts_are_exact(lab: Lab, name: str) -> None:
    seen = lab.run(name)
    assert seen["tokens"] == lab.plain
    assert (seen["state"], seen["reason"]) == ("counting", "")
    assert seen["counted"] == seen["computed"]
    assert seen["rows"] == [seen["computed"]] * 4
    assert (seen["producers"], seen["epochs"]) == (1, 1)
    assert seen["classes"].count("CapturingWorker") == 1


@pytest.mark.parametrize("name", ["somebody else's", "both"])
def test_somebody_elses_worker_is_asked_as_before(lab: Lab, name: str) -> None:
    seen = lab.run(name)
    assert "Foreign" in seen["classes"]
    assert seen["foreign_steps"] > 0


@pytest.mark.parametrize("name", ["an extension", "both", "both in one"])
def test_an_extension_is_reached(lab: Lab, name: str) -> None:
    (said,) = lab.run(name)["says"]
    assert said.startswith("an extension of Routing")


@pytest.mark.parametrize("name", OFF)
def test_what_cannot_be_counted_is_off_with_the_reason(lab: Lab, name: str) -> None:
    seen = lab.run(name)
    assert seen["tokens"] == lab.plain
    assert seen["state"] == "disabled"
    assert OFF[name] in seen["reason"]
    assert seen["counted"] == 0


def test_weights_that_change_are_told_and_counts_and_tokens_stay_exact(lab: Lab) -> None:
    seen = lab.run(CHANGE)
    # vLLM 0.32 on CPUs computes other tokens after a reload of the same weights, without capture too.
    assert seen["served"] == [lab.plain, lab.reloaded, lab.reloaded]
    assert seen["state"] == ("counting", "")
    assert seen["rows"] == [sum(seen["computed"])] * 4
    # The first frame of a new version has all that was computed before it, and nothing of its own.
    ends = [sum(seen["computed"][: version + 1]) for version in range(4)]
    assert seen["first_of_version"][1:] == ends[:3]
    assert seen["ends"][3] == ends[3]
    assert seen["label"] == ""  # the path is the one that it was loaded from
    assert seen["spanning"] == [(seen["computed"][2] - seen["computed"][1], 2), (seen["computed"][3] - 1, 3)]
    assert seen["versions"] == [0, 1, 2, 3]


def test_an_unknown_layout_at_the_start_stops_the_server_and_its_last_word_is_why(lab: Lab) -> None:
    seen = lab.run("odd at the start")
    assert UNKNOWN in seen["ended"]
    assert seen["state"] == "disabled"
    assert UNKNOWN in seen["reason"]


@pytest.mark.parametrize("name", ["odd in traffic", "odd at the start, disable"])
def test_an_unknown_layout_in_traffic_ends_capture_and_not_the_server(lab: Lab, name: str) -> None:
    seen = lab.run(name)
    assert seen["ended"] is None
    assert seen["tokens"] == lab.plain
    assert (seen["state"], seen["counted"], seen["rows"]) == ("disabled", 0, [0] * 4)
    assert UNKNOWN in seen["reason"]


def test_an_unknown_layout_in_traffic_stops_a_server_that_would_have_it_so(lab: Lab) -> None:
    seen = lab.run("odd in traffic, raise")
    assert UNKNOWN in seen["ended"]
    assert (seen["state"], UNKNOWN in seen["reason"]) == ("disabled", True)


def test_all_settings_that_cannot_be_used_are_told(lab: Lab) -> None:
    seen = lab.run("bad settings")
    assert seen["tokens"] == lab.plain
    assert (seen["state"], seen["counted"]) == ("disabled", 0)
    assert "MOESCOPE_INTERVAL: 'soon'" in seen["reason"]
    assert "MOESCOPE_TRACE_RATE: 'lots'" in seen["reason"]
