"""Traces leave the worker, whole or in parts, when the service takes them. Others are dropped and counted."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moescope.capture.delivery.backoff import Backoff
from moescope.capture.delivery.transport import DeliveryError
from moescope.capture.seam.ends import RequestEnd
from moescope.capture.seam.outcomes import StepOutcome
from moescope.capture.tracing.sender import TraceSender, encode_trace
from moescope.capture.wire import TRACE_DROPS, Producer
from moescope.capture.wire.traces import TakenOver, TracePart, decode_part
from tests.capture.seam.sampling import of_v1, scheduled
from tests.capture.traces import LAYERS, Driver

WHO = Producer(server="s", model="m", dp_rank=0, dp_size=1)


class Wire:
    """A transport that fails on demand."""

    def __init__(self) -> None:
        self.parts: list[TracePart] = []
        self.failures: list[DeliveryError] = []
        self.closed = False

    def post(self, body: bytes) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.parts.append(decode_part(body))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def driver() -> Driver:
    made = Driver()
    for number in range(3):
        made.step({f"cmpl-x{number}-0-0123abcd": (0, 5 + number)})
    made.step({}, finished=[f"cmpl-x{number}-0-0123abcd" for number in range(3)])
    return made


@pytest.fixture
def wire() -> Wire:
    return Wire()


def refused(status: str) -> DeliveryError:
    return DeliveryError("no", status, permanent=status.startswith("4"))


def sender_of(driver: Driver, wire: Wire, backoff: Backoff | None = None) -> TraceSender:
    return TraceSender(driver.assembly, driver.layers, WHO, 7, wire, backoff)


def assert_conserved(sender: TraceSender, driver: Driver, in_flight: int) -> dict[str, int]:
    accounts = sender.accounts()
    settled = sum(number for name, number in accounts.items() if name != "captured")
    assert accounts["captured"] - settled == in_flight == len(driver.assembly.closed)
    reasons = {name.removeprefix("dropped_").partition(":")[0] for name in accounts}
    assert reasons - {"captured", "delivered"} <= TRACE_DROPS
    return accounts


def test_a_trace_arrives_as_it_was(driver: Driver, wire: Wire) -> None:
    expected = {trace.request_id: np.concatenate(trace.chunks) for trace in driver.assembly.closed}
    sender = sender_of(driver, wire)
    assert_conserved(sender, driver, in_flight=3)
    sender.tick()
    assert assert_conserved(sender, driver, in_flight=0) == {"captured": 3, "delivered": 3}
    assert [part.trace for part in wire.parts] == [1, 2, 3]
    for part in wire.parts:
        rows = np.concatenate([part.ids_of(0), part.ids_of(1)], axis=1)
        np.testing.assert_array_equal(rows, expected[part.request_id])
        assert part.client_ids[-1] in ("x0", "x1", "x2")
        assert (part.epoch, part.outcome, part.layers) == (7, "ended", LAYERS)
        assert part.started_at_ns <= part.ended_at_ns <= time.time_ns()


def test_a_large_trace_goes_in_parts(driver: Driver) -> None:
    trace = driver.assembly.closed[2]
    parts = [decode_part(body) for body in encode_trace(trace, LAYERS, WHO, 7, part_bytes=15)]
    assert [(part.part, part.parts, part.tokens) for part in parts] == [(0, 3, 3), (1, 3, 3), (2, 3, 1)]
    assert [run.first for part in parts for run in part.runs] == [0, 3, 6]
    rows = np.concatenate([np.concatenate([part.ids_of(0), part.ids_of(1)], axis=1) for part in parts])
    np.testing.assert_array_equal(rows, np.concatenate(trace.chunks))


def test_a_request_that_spans_two_versions_of_weights_has_a_part_of_each(driver: Driver) -> None:
    for first in (0, 5, 6):
        driver.step({"cmpl-y-0-0123abcd": (first, 5 if first == 0 else 1)})
    driver.step({}, finished=["cmpl-y-0-0123abcd"])
    trace = driver.assembly.closed[3]
    changed = [step for step, _ in trace.steps][1]
    bodies = encode_trace(trace, LAYERS, WHO, 7, part_bytes=15, versions=lambda steps: (steps >= changed) * 4)
    parts = [decode_part(body) for body in bodies]
    assert [(part.tokens, part.weights_version) for part in parts] == [(3, 0), (2, 0), (2, 4)]
    assert [(part.part, part.parts) for part in parts] == [(0, 3), (1, 3), (2, 3)]
    assert np.concatenate([part.ids_of(0) for part in parts]).tolist() == [
        row[:2].tolist() for chunk in trace.chunks for row in chunk
    ]


def test_the_service_is_down_for_a_while(driver: Driver, wire: Wire) -> None:
    sender = sender_of(driver, wire, Backoff(first=0.01))
    wire.failures = [refused("503"), refused("ConnectionRefusedError"), refused("401")]
    deadline = time.monotonic() + 60
    while driver.assembly.closed and time.monotonic() < deadline:
        sender.tick()
        assert_conserved(sender, driver, in_flight=len(driver.assembly.closed))
    assert sender.accounts() == {"captured": 3, "delivered": 3}
    assert [part.trace for part in wire.parts] == [1, 2, 3]


def test_behind_a_proxy_with_a_limit_traces_go_in_smaller_parts(wire: Wire) -> None:
    """nginx passes on one mebibyte unless it is told otherwise."""
    driver = Driver()
    for number in range(2):
        name = f"cmpl-x{number}-0-0123abcd"
        for first in range(0, 19_200, 64):
            driver.step({name: (first, 64)})
        driver.step({}, finished=[name])
    asked: list[int] = []

    class Proxy(Wire):
        def post(self, body: bytes) -> None:
            asked.append(len(body))
            if len(body) > 100_000:
                raise refused("413")
            super().post(body)

    proxy = Proxy()
    sender = sender_of(driver, proxy)
    sender.tick()
    assert sender.accounts() == {"captured": 2, "delivered": 2}
    for trace in (1, 2):
        parts = [part for part in proxy.parts if part.trace == trace]
        assert [part.part for part in parts] == list(range(parts[0].parts))
        assert sum(part.tokens for part in parts) == 19_200
    too_large = [size for size in asked if size > 100_000]
    assert len(too_large) < 5, "what was learned with the first trace holds for the next"


def test_traces_whose_first_part_was_small_enough_teach_too() -> None:
    """Each version of the weights begins a part: that of the first step passes, and the next one doesn't."""
    driver = Driver()
    for number in range(5):
        for first in range(0, 19_200, 64):
            driver.step({f"r{number}": (first, 64)})
        driver.step({}, finished=[f"r{number}"])

    class Proxy(Wire):
        def post(self, body: bytes) -> None:
            if len(body) > 100_000:
                raise refused("413")
            super().post(body)

    def versions(steps: np.ndarray) -> np.ndarray:
        return (steps > steps[0]).astype(np.int64)

    sender = TraceSender(driver.assembly, driver.layers, WHO, 7, Proxy(), versions=versions)
    sender.tick()
    accounts = sender.accounts()
    assert accounts["delivered"] + accounts["dropped_refused"] == accounts["captured"] == 5
    assert accounts["delivered"] >= 2, "each that is lost makes the parts of the next ones half as large"


def test_what_is_too_large_in_any_size_is_dropped(driver: Driver, wire: Wire) -> None:
    wire.failures = [refused("413")] * 30
    sender = sender_of(driver, wire)
    sender.tick()
    assert assert_conserved(sender, driver, 0)["dropped_refused"] == 3


def test_what_is_refused_for_good_is_dropped_and_counted(driver: Driver, wire: Wire) -> None:
    wire.failures = [refused("409")]
    sender = sender_of(driver, wire)
    sender.tick()
    assert assert_conserved(sender, driver, 0) == {"captured": 3, "delivered": 2, "dropped_refused": 1}
    assert driver.assembly.sent == driver.tracer._held


def test_stopping_sends_what_is_left(driver: Driver, wire: Wire) -> None:
    sender = sender_of(driver, wire)
    sender.start()
    sender.stop(5)
    assert len(wire.parts) == 3
    assert wire.closed


def test_each_part_says_whose_computation_was_taken_over(driver: Driver) -> None:
    trace = driver.assembly.closed[0]
    trace.taken_over = [TakenOver(0, 8, "a"), TakenOver(8, 4, "", "not_traced")]
    parts = [decode_part(part) for part in encode_trace(trace, driver.layers, WHO, 7, part_bytes=10)]
    assert len(parts) > 1
    assert all(part.taken_over == trace.taken_over for part in parts)


def test_what_became_of_a_request_is_on_the_wire(wire: Wire) -> None:
    driver = Driver(drafting=True)
    end = RequestEnd(20, frozenset({2}), certain=True)
    first, second = StepOutcome(scheduled({"a": 4})), StepOutcome(scheduled({"a": 3}, {"a": 2}))
    first.tell(of_v1({"a": [9]}))
    second.tell(of_v1({"a": [10, 2]}))
    driver.step({"a": (0, 4)}, outcome=first, end=end, lora="sql")
    driver.step({"a": (4, 3)}, drafts={"a": 2}, outcome=second)
    driver.step({}, finished=["a"])
    sender_of(driver, wire).tick()
    [part] = wire.parts
    assert (part.lora, part.finish_reason, part.outcome) == ("sql", "stop", "ended")
    assert (part.tokens, part.accepted_drafts, part.rejected_drafts) == (6, 1, 1)
