"""By what the EP rank of a slot is told, and what is said where it can't be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moescope.capture.counting import load_ring
from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.frames.open_ring import open_ring
from moescope.capture.frames.unavailable import Unavailable
from moescope.capture.seam.expert_maps import ExpertMaps
from moescope.capture.seam.replica_rule import ReplicaRule
from moescope.capture.seam.rows import Ranks, StepRows
from moescope.capture.wire import MoeLayer, Placement, PlacementTable, Producer, pack_ids

CPU = torch.device("cpu")
TWO = Producer(server="s", model="m", dp_rank=0, dp_size=2, ep_size=2)
HALVES = Placement(
    version=0,
    tables=[PlacementTable(pack_ids([0, 1, 2, 3]), pack_ids([0, 0, 1, 1]))],
    table_of_layer=[0],
)


def survey(**fields: Any) -> Any:
    layer = SimpleNamespace(spec=MoeLayer(0, 4, 2), module=module())
    return SimpleNamespace(**{"routed": (layer,), "placement": HALVES, "why_no_placement": None, **fields})


def module() -> Any:
    """A layer of vLLM with five physical experts, of which expert 0 has two."""
    physical = torch.tensor([[0, 4], [1, -1], [2, -1], [3, -1]])
    copies = torch.tensor([2, 1, 1, 1])
    return SimpleNamespace(
        eplb_state=SimpleNamespace(logical_to_physical_map=physical, logical_replica_count=copies)
    )


def config(enable_eplb: bool, **fields: Any) -> Any:
    return SimpleNamespace(parallel_config=SimpleNamespace(enable_eplb=enable_eplb, **fields))


class Watch:
    """A watch of EPLB, of maps with so many physical experts."""

    def __init__(self, physical: int) -> None:
        self._physical = physical

    def expert_maps(self, ep_size: int, device: torch.device) -> ExpertMaps:
        return ExpertMaps([module()], lambda: self._physical, ep_size, device)


def opened(eplb: Any, **fields: Any) -> tuple[Any, dict[str, str]]:
    said = Unavailable()
    return open_ring(survey(), TWO, config(True, **fields), CPU, said, eplb), said.reasons()


def test_without_eplb_the_placement_tells() -> None:
    said = Unavailable()
    ring = open_ring(survey(), TWO, config(False), CPU, said, None)
    assert ring is not None
    assert ring.maps is None
    assert said.reasons() == {}
    lost = open_ring(survey(placement=None, why_no_placement="no map"), TWO, config(False), CPU, said, None)
    assert (lost, said.reasons()) == (None, {"steps": "no map"})


def test_an_unknown_rule_is_said_and_nothing_is_counted_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.capture.seam.replica_rule._ROWS", 60)  # vLLM maps nothing on CPUs
    ring, said = opened(Watch(6))
    assert ring is None
    assert set(said) == {"steps", "ep_slots"}
    assert "by a rule that moescope doesn't know" in said["steps"]


def test_maps_that_cannot_be_read_are_said() -> None:
    ring, said = opened(Watch(5))
    assert ring is None
    assert "5 physical experts on 2 EP ranks" in said["ep_slots"]
    ring, said = opened(None)
    assert ring is None
    assert "EPLB has no state" in said["steps"]


def test_an_external_launcher_numbers_steps_unlike() -> None:
    ring, said = opened(Watch(4), distributed_executor_backend="external_launcher")
    assert ring is None
    assert set(said) == {"steps"}


@pytest.fixture
def known_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.capture.seam.expert_maps.find_rule", lambda _: ReplicaRule.ROW_HASH)


@pytest.mark.usefixtures("known_rule")
def test_where_steps_do_not_fit_slots_by_ep_rank_are_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of one layer on two EP ranks takes 8 bytes."""
    monkeypatch.setattr(load_ring, "RING_BYTES", 15 * 8)
    said = Unavailable()
    assert open_ring(survey(), TWO, config(False), CPU, said, None) is None
    assert set(said.reasons()) == {"steps"}  # there the counts and the placement tell slots by EP rank
    ring, reasons = opened(Watch(6))
    assert set(reasons) == {"steps"}
    assert "take 8 bytes a step, and 16 steps must fit 120" in reasons["steps"]
    assert ring.capacity == 0
    buffers = CountBuffers([MoeLayer(0, 4, 2)], CPU, 16, ring)
    capturer = RoutingCapturer(buffers, Ranks(), lambda: StepRows(None, None))
    for _ in range(40):
        capturer.begin_step(2)
        capturer.record(0, torch.tensor([[1, 2], [2, 3], [0, 0]]))
        capturer.end_step()
    assert buffers.ep_slots_of(0).tolist() == [120, 40]


@pytest.mark.usefixtures("known_rule")
def test_where_not_even_one_step_fits_neither_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_ring, "RING_BYTES", 7)
    ring, reasons = opened(Watch(6))
    assert ring is None
    assert set(reasons) == {"steps", "ep_slots"}
