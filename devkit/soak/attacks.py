"""Expensive requests with a feeder beside them, and kill -9 in the middle of each: nothing may be lost."""

from __future__ import annotations

import http.client
import random
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from devkit.processes import free_port
from devkit.soak import costly
from devkit.soak.gate import Options, Outcome
from devkit.soak.probe import SERVER, Seen, probing
from devkit.soak.serving import serving


def attacks(options: Options) -> Outcome:
    """Each expensive body, twice: the service goes on, and the service is killed meanwhile."""
    rng = random.Random(5)  # noqa: S311 it need not be hard to guess
    kinds = costly.BODIES[:: 6 if options.quick else 1]
    frames = lost = 0
    for number, kind in enumerate(kinds):
        for kills in (False, True):
            folder = options.folder / f"{number}-{kills}"
            seen, missing = attack(folder, kind, rng.uniform(0, 1.5) if kills else None)
            frames += seen.tokens // seen.share
            lost += missing
            print(f"   {kind.name}{', killed' if kills else ''}: {missing} lost", flush=True)
    return Outcome(
        lost == 0,
        f"{len(kinds)} kinds of body, each with and without kill -9 in it: {frames} frames of a feeder were "
        f"acknowledged, {lost} lost",
    )


def attack(folder: Path, kind: costly.Costly, kill_after_s: float | None) -> tuple[Seen, int]:
    """Send bodies beside a feeder, and kill the service meanwhile if asked to.

    Returns what the feeder saw, and how many frames that it was told are kept were not there after a restart,
    or are there more than once.
    """
    port, store = free_port(), folder / "store"
    bodies = [kind.make(number) for number in (1, 2)]
    with serving(folder, store=store, port=port) as service, probing(service.url) as end:
        time.sleep(0.5)
        sender = threading.Thread(target=_send, args=(service.url, kind, bodies))
        sender.start()
        if kill_after_s is None:
            sender.join()
        else:
            time.sleep(kill_after_s)
            service.process.kill()
            service.process.wait()
            sender.join()
        seen = end()
    assert seen.tokens, "the feeder was never answered"
    with serving(folder, store=store, port=port) as service:
        answer = httpx.get(f"{service.url}/v1/balance", params={"server": SERVER}, timeout=120).json()
    [kept] = answer["dp_tokens"]["loads"]
    missing = max(0, seen.tokens - kept) + max(0, kept - seen.sent)
    return seen, -(-int(missing) // seen.share)


def _send(url: str, kind: costly.Costly, bodies: list[bytes]) -> None:
    parts = urlsplit(url)
    for body in bodies:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
        with suppress(OSError, http.client.HTTPException):
            connection.request("POST", kind.path, body, {"Content-Type": kind.content_type})
            connection.getresponse().read()
        connection.close()
