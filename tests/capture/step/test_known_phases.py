"""What a fault costs of the phases, and that it costs nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moescope.capture.step.batch import BatchRequests
from moescope.capture.step.known_phases import KnownPhases
from moescope.capture.step.phases import PhaseTracker, UInt8Array
from tests.capture.step.outputs import output

BATCH = BatchRequests(["a", "b"], np.array([6, 1]))


class Phases:
    """Those under test, what they gave, and why they were lost."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.told: list[list[int]] = []
        self.known = KnownPhases(PhaseTracker(), self.lost.append)
        self.known.begin_step(output(new={"b": (3, 0)}, tokens={"b": 3}))

    def step(self) -> tuple[int, int]:
        return self.known.begin_step(output(new={"a": (10, 0)}, cached={"b": 3}, tokens={"a": 6, "b": 1}))

    def tell(self, batch: Any = BATCH) -> None:
        self.known.tell(batch, self.take)

    def take(self, phases: UInt8Array) -> None:
        self.told.append(phases.tolist())


@pytest.fixture
def phases() -> Phases:
    return Phases()


def test_phases_are_those_of_the_tracker(phases: Phases) -> None:
    assert phases.step() == (7, 1)
    phases.tell()
    assert phases.told == [[0, 0, 0, 0, 0, 0, 1]]
    assert not phases.lost


def test_an_output_that_cannot_be_read_costs_the_phases_for_good(phases: Phases) -> None:
    unlike = output(tokens={"a": 4})
    del unlike.scheduled_new_reqs
    assert phases.known.begin_step(unlike) == (4, 0)
    assert phases.step() == (7, 0)
    phases.tell()
    assert not phases.told
    [reason] = phases.lost
    assert "the requests of a step can't be read: AttributeError" in reason


def test_a_batch_that_cannot_be_told_costs_the_phases_for_good(phases: Phases) -> None:
    phases.step()
    phases.tell(None)
    assert phases.step() == (7, 0)
    [reason] = phases.lost
    assert "the phases of a step can't be told" in reason


def test_phases_that_are_refused_are_lost(phases: Phases) -> None:
    def refuse(_: UInt8Array) -> None:
        raise ValueError("too many")

    phases.step()
    phases.known.tell(BATCH, refuse)
    assert phases.lost == ["the phases of a step can't be told: ValueError('too many')"]


def test_phases_that_are_given_up_are_not_asked_for(phases: Phases) -> None:
    phases.known.give_up("no order")
    assert phases.step() == (7, 0)
    phases.tell()
    assert (phases.lost, phases.told) == (["no order"], [])


def test_a_steady_batch_is_known_until_a_prompt_is_computed_or_phases_are_lost(phases: Phases) -> None:
    decode = output(cached={"b": 3}, tokens={"b": 1})
    assert phases.known.steady is None  # b's prompt is not known to be computed yet
    assert phases.known.begin_step(decode) == (1, 1)
    assert phases.known.steady == (1, 1)
    assert phases.known.begin_step(decode) is phases.known.steady
    phases.step()
    assert phases.known.steady is None
    phases.known.begin_step(output(finished={"a"}, cached={"b": 5}, tokens={"b": 1}))
    assert phases.known.steady == (1, 1)
    phases.known.give_up("no order")
    assert phases.known.steady is None
