"""The service against an independent implementation of docs/measures.md, over fleets that were never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from tests.oracle.checking import Check
from tests.oracle.coactivation import coactivation, make_traces, part_of
from tests.oracle.compare import mismatches
from tests.oracle.delivery import make_story
from tests.oracle.driving import Box, running_box
from tests.oracle.layout import Layer
from tests.oracle.report import repro
from tests.oracle.rules import case_of, check
from tests.oracle.traffic import BEGIN_S
from tests.service.frames import frame, producer

FLEETS: Final = 40
AT_ONCE: Final = 5
"""Fleets of one test; each has a service of its own."""
LAYERS: Final = [Layer(0, 8, 2, 0), Layer(5, 12, 3, 0)]


@pytest.mark.parametrize("first", range(0, FLEETS, AT_ONCE))
def test_every_answer_is_that_of_the_documents(first: int, tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = []
    for seed in range(first, first + AT_ONCE):
        story = make_story(seed)
        with running_box(BEGIN_S) as box:
            played = Check(story, box)
            played.run()
        assert not played.found, repro(story, played.found)
        case = case_of(story.fleet.server, *played.scrapes)
        cases += [case] if case else []
    assert check(tmp_path, cases) == ""


def answer_of(box: Box, layer: Layer, newest: int, pairs: int, least: int) -> dict[str, Any]:
    """The service's answer, with the pairs' lifts by themselves."""
    asked = {"layer": layer.index, "max_traces": newest, "pairs": pairs, "min_tokens": least}
    got = box.get("/v1/coactivation", server="traced", **asked)
    return {**got, "lifts": [pair["lift"] for pair in got["pairs"]]}


@pytest.mark.parametrize("seed", range(4))
def test_experts_taken_together_are_those_of_the_traces(seed: int, tmp_path: Path) -> None:
    traces = make_traces(seed, LAYERS, count=12)
    with running_box(BEGIN_S + 60, tmp_path / "store") as box:
        box.push(frame({0: [1, 1]}, who=producer(server="traced", model="model")))
        for trace in traces:
            box.clock.now += 1
            box.push_trace(part_of(trace, LAYERS))
        for layer in LAYERS:
            for newest, pairs, least in ((100, 500, 1), (5, 10, 3)):
                expected = coactivation(layer, traces, newest, pairs, least)
                by_pair = expected.pop("by_pair")
                got = answer_of(box, layer, newest, pairs, least)
                assert list(mismatches(expected, got)) == []
                for pair in got["pairs"]:
                    assert pair["lift"] == pytest.approx(float(by_pair[pair["first"], pair["second"]]))
                    assert pair["tokens"] == expected["counts"][pair["first"]][pair["second"]]
