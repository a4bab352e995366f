"""A series that would be too large is refused before anything of the past is read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moescope.service.api.routes import histogram, stragglers
from moescope.service.live import state
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer

SERIES = {"start": "-10s", "step": "1s"}


@pytest.fixture
def unread(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service whose past must not be read; every answer has more than what is allowed."""
    for seq in (1, 2):
        service.clock.now += 1
        counts = {layer: [10 * seq] * 8 for layer in (3, 4)}
        made = frame(counts, who=producer(ep_size=2), seq=seq, placement=halves(8, 2))
        assert service.push(made).status_code == 200
    assert service.client.get("/v1/histogram", params=SERIES).status_code == 200
    assert service.client.get("/v1/stragglers", params=SERIES).status_code == 200

    def read(*_: object) -> Iterator[object]:
        raise AssertionError("it reads before it refuses")
        yield

    for reader in ("walk", "all_of"):
        monkeypatch.setattr(state, reader, read)
    monkeypatch.setattr(histogram, "MAX_NUMBERS", 159)
    return service


@pytest.mark.parametrize("route", ["histogram", "stragglers"])
def test_what_is_small_enough_reads(unread: Service, monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    """So that the tests below would see a reading."""
    monkeypatch.setattr(histogram, "MAX_NUMBERS", 160)
    assert unread.client.get(f"/v1/{route}", params=SERIES).status_code == 500


def test_a_histogram(unread: Service) -> None:
    answer = unread.client.get("/v1/histogram", params=SERIES)
    assert answer.status_code == 400, answer.text
    assert "It would have 160 counts, 159 are allowed" in answer.json()["detail"]


@pytest.mark.parametrize(("name", "limit"), [("MAX_CELLS", 39), ("MAX_WORK", 9)])
def test_stragglers(unread: Service, monkeypatch: pytest.MonkeyPatch, name: str, limit: int) -> None:
    monkeypatch.setattr(stragglers, name, limit)
    answer = unread.client.get("/v1/stragglers", params=SERIES)
    assert answer.status_code == 400, answer.text
    assert "ask for 9 intervals at most" in answer.json()["detail"]
