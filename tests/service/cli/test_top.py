"""`moescope top` on a real pseudo terminal, against a real service with a simulated fleet."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from tests.service.cli.emulator import Terminal
from tests.service.cli.running import COMMAND, DEADLINE_S, run
from tests.service.conftest import Service
from tests.service.traffic import push_fleet

SERVER = "prod-eu-west-1-deepseek-v3-decode-pool-a.internal.example.com"


@pytest.fixture
def service(start_service: Callable[..., Service]) -> Service:
    """A service with two fleets: 40 EP ranks, one of them with experts that many want; and a small one."""
    made = start_service(min_tokens=1)
    fleet = {"ranks": 40, "experts": 80, "layers": 6}
    push_fleet(made, 8, 10.0, server=SERVER, tokens_per_s=40_000, habits={"hot": 0.5}, **fleet)
    made.clock.now -= 80
    push_fleet(made, 8, 10.0, server="small", ranks=2)
    return made


def opened(service: Service, *arguments: str, columns: int = 100, lines: int = 30) -> Terminal:
    words = ("top", "--url", service.url, "--interval-s", "0.5", *arguments)
    terminal = Terminal(*words, columns=columns, lines=lines)
    terminal.wait_for(lambda: "q quit" in terminal.text, "shown")
    return terminal


def column(terminal: Terminal, number: int) -> list[str]:
    """The cells of a column of the table, from the top."""
    head = next(i for i, line in enumerate(terminal.lines) if line.startswith(" 1 EP ranks"))
    rows = [re.split(r"\s{2,}", line.strip()) for line in terminal.lines[head + 2 : -1] if line.strip()]
    return [row[number] for row in rows]


def wait_for_cells(
    terminal: Terminal, title: str, number: int, wanted: list[str], what: str, in_order: bool = True
) -> None:
    """Until title and column are as wanted; it is drawn bit by bit. Without an order: all its cells."""

    def seen() -> bool:
        if title not in terminal.text:
            return False
        try:
            cells = column(terminal, number)
        except (IndexError, StopIteration):
            return False
        return cells[: len(wanted)] == wanted if in_order else sorted(cells) == sorted(wanted)

    terminal.wait_for(seen, what)


def test_ranks_layers_and_keys(service: Service) -> None:
    view = service.get("/v1/view", server=SERVER, start="-1m", parts="hot")
    waited = service.get("/v1/stragglers", server=SERVER, start="-1m")
    [verdict] = service.get("/v1/verdict", server=SERVER)["verdicts"]
    with opened(service) as terminal:
        assert SERVER in terminal.text
        assert "(1 of 2)" in terminal.text
        assert f"{verdict['severity'].upper()}: {verdict['words'][:60]}" in terminal.text
        total = waited["max_slots"] - waited["mean_slots"]
        caused = [sum(layer["caused"][rank] for layer in waited["layers"]) / total for rank in range(40)]
        most = sorted(range(40), key=lambda rank: -caused[rank])
        assert column(terminal, 0)[:3] == [str(rank) for rank in most[:3]]
        assert column(terminal, 1)[:3] == [f"{caused[rank]:.1%}" for rank in most[:3]]
        terminal.type("<")
        wait_for_cells(terminal, "EP rank ▲", 0, ["0", "1", "2"], "sorted by rank")
        terminal.type("r")
        wait_for_cells(terminal, "EP rank ▼", 0, ["39", "38", "37"], "sorted the other way round")
        terminal.type("\x1b[6~")
        terminal.wait_for(lambda: re.search(r"[2-9]\d* to \d+ of 40", terminal.text) is not None, "scrolled")
        assert column(terminal, 0)[0] != "39"
        terminal.type("\t")
        layers = [str(layer["layer"]) for layer in view["layers"]]
        wait_for_cells(terminal, "share of waiting ▼", 0, layers, "layers", in_order=False)
        ratio = view["over_ep_ranks"]["ratio_of_sums"]
        assert f"imbalance over EP ranks {ratio:.3f}" in terminal.text
        terminal.type("3")
        terminal.wait_for(lambda: "tokens/s ▼" in terminal.text, "DP ranks")
        assert "counting" in terminal.text
        terminal.type("?")
        terminal.wait_for(lambda: "sort the other way round" in terminal.text, "help")
        terminal.type("d")
        terminal.wait_for(lambda: "on small (2 of 2)" in terminal.text, "the other deployment")
        terminal.type("q")
        assert terminal.code() == 0
        assert terminal.restored()


def test_pause_and_a_new_size(service: Service) -> None:
    with opened(service, "--server", "small") as terminal:
        terminal.type("p")
        terminal.wait_for(lambda: "PAUSED" in terminal.text, "paused")
        found = re.search(r"tokens/s [\d,]+", terminal.text)
        assert found is not None
        rate = found[0]
        push_fleet(service, 3, 10.0, server="small", ranks=2, tokens_per_s=9_000)

        def drawn(lines: int, wanted: bool) -> bool:
            return terminal.lines[lines - 1].startswith("q quit") and (rate in terminal.text) == wanted

        terminal.resize(70, 18)
        terminal.wait_for(lambda: drawn(18, True), "drawn in its new size, with the same numbers")
        assert all(len(line) <= 70 for line in terminal.lines)
        terminal.type("p")
        terminal.wait_for(lambda: "PAUSED" not in terminal.text and drawn(18, False), "on again")
        terminal.resize(120, 40)
        terminal.wait_for(lambda: drawn(40, False) and "most in layer" in terminal.text, "larger")


@pytest.mark.parametrize(
    ("end", "code"),
    [("\x03", 0), (signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["Ctrl-C", "SIGINT", "SIGTERM", "SIGHUP"],
)
def test_however_it_ends_the_terminal_is_as_before(
    service: Service, end: str | signal.Signals, code: int
) -> None:
    with opened(service, lines=24, columns=80) as terminal:
        if isinstance(end, str):
            terminal.type(end)
        else:
            os.kill(terminal.pid, end)
        assert terminal.code() == code
        assert terminal.restored()
        assert b"Traceback" not in terminal.sent


def test_ctrl_z_gives_the_terminal_back_to_the_shell(service: Service) -> None:
    with Terminal("--norc", "--noprofile", "-i", command="/bin/bash") as terminal:
        terminal.type(f"{COMMAND} top --url {service.url}\r")
        terminal.wait_for(lambda: "q quit" in terminal.text, "shown")
        terminal.type("\x1a")
        terminal.wait_for(lambda: b"Stopped" in terminal.sent, "stopped")
        assert terminal.usual_screen()
        terminal.type("fg\r")
        terminal.wait_for(lambda: not terminal.usual_screen(), "back")
        terminal.type("q")
        terminal.wait_for(terminal.usual_screen, "ended")
        # What is typed before the shell has the terminal again is thrown away.
        usual = b"\x1b[?1049l"
        terminal.wait_for(lambda: terminal.sent.rpartition(usual)[2].endswith((b"$ ", b"# ")), "prompted")
        terminal.type("exit\r")
        assert terminal.code() == 0


def test_a_service_that_goes_away_is_told_with_the_age_of_the_numbers(service: Service) -> None:
    """A relay stands for the service, so that it can go away and come back at the same address."""
    with Relay(service.url) as relay:
        words = ("top", "--url", relay.url, "--interval-s", "0.5", "--server", "small")
        with Terminal(*words) as terminal:
            terminal.wait_for(lambda: "q quit" in terminal.text, "shown")
            relay.close()
            old = re.compile(r"These numbers are ([1-9]\d*) s old: no service answers")
            terminal.wait_for(lambda: old.search(terminal.text) is not None, "told")
            assert "on small" in terminal.text
            assert "EP rank" in terminal.text
            relay.open()
            terminal.wait_for(lambda: "s old" not in terminal.text, "fresh again")
            terminal.type("q")
            assert terminal.code() == 0


def test_mistakes_are_said_before_the_screen_is_taken(service: Service) -> None:
    piped = run("top", "--url", service.url)
    assert (piped.returncode, "balance --watch" in piped.stderr) == (2, True)
    for words, code in ((["--start", "soon"], 2), (["--url", "http://127.0.0.1:1"], 5)):
        done = run("top", "--url", service.url, *words)
        assert (done.returncode, done.stdout) == (code, "")


def test_nobody_has_reported(start_service: Callable[..., Service]) -> None:
    with opened(start_service()) as terminal:
        assert "No deployment has reported yet" in terminal.text
        terminal.type("2dr<\x1b[B")
        terminal.type("q")
        assert terminal.code() == 0


class Relay:
    """Passes connections on to a service, while it is open."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._target = host, int(port)
        self._port = 0
        self.open()

    @property
    def url(self) -> str:
        """Its own address."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Take connections, at the same address as before."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(self._listener,))
        self._thread.start()

    def close(self) -> None:
        """Take no more."""
        if self._thread.is_alive():
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._thread.join(DEADLINE_S)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                asking, _ = listener.accept()
            except OSError:
                return
            with asking, socket.create_connection(self._target, DEADLINE_S) as answering:
                asking.settimeout(DEADLINE_S)
                answering.sendall(asking.recv(65536))  # a GET is one piece
                answering.settimeout(1.0)
                try:
                    while data := answering.recv(65536):
                        asking.sendall(data)
                except TimeoutError:
                    pass  # the answer is over; the service would keep the connection
