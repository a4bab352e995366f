"""Generated histories of several services on one store: all say the same, and it is true."""

from __future__ import annotations

import pytest

from tests.service.store.clickhouse import histories
from tests.service.store.clickhouse.histories import play, shrunk
from tests.service.store.clickhouse.laws import BrokenLawError
from tests.service.store.clickhouse.playing import Play
from tests.service.store.clickhouse.several import Peer
from tests.service.store.clickhouse.stories import KINDS, Event, story

TOGETHER = 17
"""Histories that share the services, and what befalls these."""


@pytest.mark.parametrize("seed", range(len(KINDS)))
def test_services_say_the_same_and_it_is_true(clickhouse: str, seed: int) -> None:
    play(clickhouse, seed, TOGETHER)


def test_a_service_that_hears_nothing_is_found_by_few_events(
    clickhouse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peer, "hear", lambda _: None)
    events = story(1, 2, steps=4)
    with pytest.raises(BrokenLawError) as found:
        Play(clickhouse, 1).run(events)
    fewer, fault = shrunk(clickhouse, 1, events, found.value, tries=12)
    assert fault.law == found.value.law
    assert len(fewer) < len(events) / 2
    assert [event.kind for event in fewer if event.kind == "end"] == ["end", "end"]


def test_what_breaks_another_law_is_not_the_shortest_story_of_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = story(1, 2, steps=4)
    needed = events[2]

    def fault_of(_clickhouse: str, _seed: int, some: list[Event]) -> BrokenLawError:
        metric = "moescope_tokens_created" if needed in some else "moescope_dp_imbalance_ratio"
        return BrokenLawError(
            f"before all are killed: {metric} of {{'model': 'tiny'}} is 1.0 at service 2", 0
        )

    monkeypatch.setattr(histories, "_fault_of", fault_of)
    fewer, fault = shrunk("", 1, events, fault_of("", 1, events))
    assert [event for event in fewer if event.kind != "end"] == [needed]
    assert fault.law == fault_of("", 1, events).law
