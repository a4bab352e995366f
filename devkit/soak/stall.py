"""One request at a time, each the most expensive of its kind: what others wait meanwhile."""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from devkit.soak import costly, questions
from devkit.soak.gate import Options, Outcome
from devkit.soak.probe import Seen, probing
from devkit.soak.serving import Serving, serving

HEALTH_MS: Final = 250.0
INGEST_MS: Final = 500.0
REST_S: Final = 0.3
EACH: Final = 3
_PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One kind of request, each of which was sent alone: when, and how it was answered."""

    name: str
    began: float
    ended: float
    status: str
    slowest_s: float


def stall(options: Options) -> Outcome:
    """What a probe waits for beside one expensive request at a time."""
    # Scrapes are the largest at this level.
    with serving(
        options.folder, "--metrics-level", "layer_expert", store=options.folder / "store"
    ) as service:
        questions.settle(service, options.folder, 10 if options.quick else 30)
        with probing(service.url) as end:
            time.sleep(5)
            quiet_until = time.monotonic()
            asked = [_send(service, kind) for kind in costly.BODIES]
            asked += [_ask(service, path) for path in questions.questions_about()]
            seen = end()
        assert "Traceback" not in service.text, service.text[-3000:]
    return _judged(asked, seen, quiet_until)


def _send(service: Serving, kind: costly.Costly) -> Asked:
    bodies = [kind.make(number) for number in range(1, EACH + 1)]
    return _each(service, kind.name, [("POST", kind.path, body, kind.content_type) for body in bodies])


def _ask(service: Serving, path: str) -> Asked:
    return _each(service, path, [("GET", path, None, "")] * EACH)


def _each(service: Serving, name: str, requests: list[tuple[str, str, bytes | None, str]]) -> Asked:
    """Send each of these once the one before was answered."""
    parts = urlsplit(service.url)
    began, slowest, statuses = time.monotonic(), 0.0, []
    for method, path, body, content_type in requests:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PATIENCE_S)
        sent = time.monotonic()
        try:
            connection.request(method, path, body, {"Content-Type": content_type} if content_type else {})
            answer = connection.getresponse()
            answer.read()
            statuses.append(str(answer.status))
        except TimeoutError:
            statuses.append(f"none in {_PATIENCE_S:g} s")
        finally:
            connection.close()
        slowest = max(slowest, time.monotonic() - sent)
        time.sleep(REST_S)
    print(f"   {name}: {'/'.join(statuses)} in {slowest * 1e3:.0f} ms", flush=True)
    return Asked(name, began, time.monotonic(), "/".join(dict.fromkeys(statuses)), slowest)


def _judged(asked: list[Asked], seen: Seen, quiet_until: float) -> Outcome:
    rows = [
        (item, seen.worst("health", item.began, item.ended), seen.worst("ingest", item.began, item.ended))
        for item in asked
    ]
    for item, health, ingest in rows:
        print(
            f"   {item.name}: {item.status}, answered in {item.slowest_s * 1e3:.0f} ms; "
            f"/healthz {health:.0f}, ingest {ingest:.0f} ms"
        )
    over = [item.name for item, health, ingest in rows if health > HEALTH_MS or ingest > INGEST_MS]
    by_health, by_ingest = max(rows, key=lambda row: row[1]), max(rows, key=lambda row: row[2])
    quiet = seen.worst("health", 0, quiet_until), seen.worst("ingest", 0, quiet_until)
    return Outcome(
        not over and not seen.failures,
        f"{len(rows)} kinds of request, {EACH} of each: beside them /healthz took {by_health[1]:.0f} ms at "
        f"most ({by_health[0].name}), ingest of others {by_ingest[2]:.0f} ms ({by_ingest[0].name}); without "
        f"them {quiet[0]:.0f} and {quiet[1]:.0f} ms"
        + (f"; over the limits: {', '.join(over)}" if over else "")
        + (f"; failed: {seen.failures[:3]}" if seen.failures else ""),
    )
