"""Services go by the server's clock."""

from __future__ import annotations

from moescope.service.store.clickhouse.clock import ServerClock


class _Server:
    """A server whose answers take a while on the way."""

    def __init__(self) -> None:
        self.now, self.own, self.takes_s = 1_700_000_000.0, 50.0, 0.0

    def ask(self) -> float:
        self.own += self.takes_s / 2
        self.now += self.takes_s / 2
        told = self.now
        self.own += self.takes_s / 2
        self.now += self.takes_s / 2
        return told


def test_it_goes_on_by_the_own_clock_and_is_set_by_the_server() -> None:
    server = _Server()
    clock = ServerClock(server.ask, lambda: server.own)
    assert clock() == 1_700_000_000.0
    server.own += 30
    assert clock() == 1_700_000_030.0
    server.now += 90
    clock.set()
    assert clock() == 1_700_000_090.0


def test_what_the_delay_of_an_answer_explains_changes_nothing() -> None:
    server = _Server()
    clock = ServerClock(server.ask, lambda: server.own)
    server.takes_s, server.now = 2.0, server.now + 0.5
    before = clock()
    clock.set()
    assert clock() == before + 2.0
    server.takes_s = 20.0
    server.now += 15.0
    clock.set()
    assert clock() == before + 22.0, "an answer that took so long tells nothing"
