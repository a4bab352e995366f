"""200 parallel questions and downloads of any mix over 256 ranks: what they take, and if it comes back."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from typing import Final
from urllib.parse import urlsplit

import psutil

from devkit.soak import questions
from devkit.soak.gate import Options, Outcome
from devkit.soak.probe import probing
from devkit.soak.serving import Serving, serving

CLIENTS: Final = 200
OVER_MIB: Final = 512
BACK_MIB: Final = 64
"""What may be kept after a minute: the allocator's, and caches with a bound of their own."""
BACK_S: Final = 60
_EVERY_S: Final = 0.02
_PATIENCE_S: Final = 600.0


def memory(options: Options) -> Outcome:
    """Mixes of 200 clients at once: all read, none reads, each leaves after a second."""
    store = options.folder / "store"
    rng = random.Random(7)  # noqa: S311 it need not be hard to guess
    with serving(options.folder, "--metrics-level", "layer_expert", store=store) as service:
        questions.settle(service, options.folder, 10 if options.quick else 30)
        for path in questions.questions_about():
            _ask(service, path, 0, Counter())  # what is made once is there
        idle = _resident(service)
        rows = [
            _mix(service, name, rng, options.quick) for name in ("read", "never read", "leave", "downloads")
        ]
        with probing(service.url) as end:
            time.sleep(2)
            seen = end()
        assert "Traceback" not in service.text, service.text[-3000:]
    most = max(peak for _, peak, _, _ in rows) - idle
    kept = max(after for _, _, after, _ in rows) - idle
    told = "; ".join(
        f"{name}: {peak - idle:+.0f} MiB at most, {after - idle:+.0f} after a minute ({counts})"
        for name, peak, after, counts in rows
    )
    return Outcome(
        most <= OVER_MIB and kept <= BACK_MIB and not seen.failures,
        f"256 ranks x 58 layers x 256 experts, {CLIENTS} clients at once, idle {idle:.0f} MiB: {told}",
    )


def _mix(service: Serving, name: str, rng: random.Random, quick: bool) -> tuple[str, float, float, str]:
    """A mix of clients: its name, the most memory meanwhile and a minute later, MiB, and the answers."""
    paths = [path for path in questions.questions_about() if name != "downloads" or "/v1/traces/" in path]
    picked = [paths[i % len(paths)] for i in range(CLIENTS // (10 if quick else 1))]
    rng.shuffle(picked)
    stop, peaks, counts = threading.Event(), [0.0], Counter[str]()
    watch = threading.Thread(target=_watch, args=(service, peaks, stop))
    watch.start()
    hold = {"never read": 20.0, "leave": 1.0}.get(name, 0.0)
    clients = [threading.Thread(target=_ask, args=(service, path, hold, counts)) for path in picked]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    time.sleep(5 if quick else BACK_S)
    stop.set()
    watch.join()
    told = ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()))
    return name, peaks[0], _resident(service), told


def _ask(service: Serving, path: str, hold_s: float, counts: Counter[str]) -> None:
    """Ask; read all, or nothing for some seconds and then leave."""
    parts = urlsplit(service.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", path)
        if hold_s:
            time.sleep(hold_s)
            counts["left"] += 1
            return
        answer = connection.getresponse()
        while answer.read(1 << 20):
            pass
        counts[str(answer.status)] += 1
    except (OSError, http.client.HTTPException) as error:
        counts[type(error).__name__] += 1
    finally:
        connection.close()


def _watch(service: Serving, peaks: list[float], stop: threading.Event) -> None:
    while not stop.wait(_EVERY_S):
        peaks[0] = max(peaks[0], _resident(service))


def _resident(service: Serving) -> float:
    return float(psutil.Process(service.process.pid).memory_info().rss) / 2**20
