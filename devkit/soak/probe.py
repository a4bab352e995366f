"""A client beside an attack: asks ``/healthz`` and sends frames, and says how long each answer took.

``python -m devkit.soak.probe URL`` runs it in a process of its own, so that nothing of the attack holds it
up. It ends when its input does, and prints what it measured.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from devkit.soak.load import TOKENS_A_FRAME, Fleet, Rank
from moescope.capture import wire

HEALTH_EVERY_S: Final = 0.02
INGEST_EVERY_S: Final = 0.1
PATIENCE_S: Final = 60.0
SERVER: Final = "soak"
"""The deployment that it sends frames of, one rank of 8 layers x 64 experts."""


@dataclass
class Seen:
    """What a probe measured; seconds, each with the time.monotonic() at which it was sent.

    Attributes:
        health, ingest: of each request.
        failures: what was not answered with 200.
        tokens: that the last frame which was acknowledged tells.
        sent: that the last frame tells, whether or not it was acknowledged.
        share: tokens that each frame adds.
    """

    health: list[tuple[float, float]] = field(default_factory=list)
    ingest: list[tuple[float, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    tokens: int = 0
    sent: int = 0
    share: int = TOKENS_A_FRAME

    def worst(self, kind: str, since: float = 0.0, until: float = float("inf")) -> float:
        """The longest answer among those that were waited for in a stretch of time, milliseconds."""
        found = [took for at, took in getattr(self, kind) if at + took >= since and at <= until]
        return 1e3 * max(found, default=0.0)


@contextlib.contextmanager
def probing(url: str) -> Iterator[Callable[[], Seen]]:
    """A probe in a process of its own; what it yields ends it and tells what it saw."""
    command = [sys.executable, "-m", "devkit.soak.probe", url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "the probe did not start"

        def end() -> Seen:
            output, _ = process.communicate(timeout=2 * PATIENCE_S)
            return Seen(**json.loads(output))

        try:
            yield end
        finally:
            if process.poll() is None:
                process.kill()


def _repeat(
    url: str, every: float, found: list[tuple[float, float]], stop: threading.Event, ask: Callable[[Any], str]
) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    while not stop.wait(every):
        began = time.monotonic()
        failure = ask(connection)
        found.append((began, time.monotonic() - began))
        if failure:
            connection.close()


def main() -> None:
    """Probe until the input ends."""
    url, seen, stop = sys.argv[1], Seen(), threading.Event()
    rank = Rank(Fleet(1, 8, 64, 1), 0, time.time_ns())

    def exchange(connection: Any, *request: Any) -> str:
        try:
            connection.request(*request)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            failure = repr(error)
        else:
            failure = "" if answer.status == 200 else f"{answer.status}: {body[:200]!r}"
        if failure:
            seen.failures.append(failure)
        return failure

    def health(connection: Any) -> str:
        return exchange(connection, "GET", "/healthz")

    def ingest(connection: Any) -> str:
        body = rank.next()
        seen.sent = rank.sent * TOKENS_A_FRAME
        failure = exchange(connection, "POST", "/v1/ingest", body, {"Content-Type": wire.CONTENT_TYPE})
        if not failure:
            seen.tokens = rank.sent * TOKENS_A_FRAME
        return failure

    threads = [
        threading.Thread(target=_repeat, args=(url, HEALTH_EVERY_S, seen.health, stop, health)),
        threading.Thread(target=_repeat, args=(url, INGEST_EVERY_S, seen.ingest, stop, ingest)),
    ]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
