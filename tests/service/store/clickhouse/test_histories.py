"""Generated histories of several services on one store: all say the same, and it is true."""

from __future__ import annotations

import pytest

from tests.service.store.clickhouse.histories import play, shrunk
from tests.service.store.clickhouse.laws import BrokenLawError
from tests.service.store.clickhouse.playing import Play
from tests.service.store.clickhouse.several import Peer
from tests.service.store.clickhouse.stories import KINDS, story

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
