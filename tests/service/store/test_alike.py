"""Both stores answer alike: the same frames and traces, every route, before and after damage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, encode_part
from moescope.service.settings import Settings
from moescope.service.store.open import open_store
from tests.service.cli.running import run
from tests.service.conftest import Clock, Service
from tests.service.frames import EPOCH, frame, halves, producer
from tests.service.store.rewriting import rewrite
from tests.service.trace_parts import part

RANKS = 4
BEGIN = EPOCH / 1e9
SECONDS = range(4, 64, 4)
PATHS = {
    "/v1/traces": ["", "?limit=2", "?layer=3&expert=7", "?request_id=x2", "?dp_rank=0&min_tokens=3"],
    "/v1/traces/{request_id}": ["x1.json", "x2.raw", "x3.npz", "x1.parquet", "x1.json?layer=3", "none"],
    "/v1/coactivation": ["?layer=3", "?layer=9"],
    "/v1/ranks": ["", "?dp_rank=1"],
    "/v1/pools": [""],
    "/v1/pools/{pool}": ["chat"],
    "/v1/histogram": ["", "?start=-40s", "?start=-60s&step=7s", "?phase=decode", "?dp_rank=2"],
    "/v1/balance": ["", "?start=-30s", "?start=-50s&end=-20s"],
    "/v1/stragglers": ["", "?start=-60s&step=10s"],
    "/v1/drift": ["?baseline=pinned", "?start=-20s"],
    "/v1/baselines": [""],
    "/v1/baselines/{name}": ["pinned", "none"],
    "/v1/advice": ["", "?redundant=2"],
    "/v1/advice/placement": ["", "?form=vllm-ascend"],
    "/v1/advice/rearrangements": [""],
    "/v1/placement": ["", "?form=tables"],
    "/v1/view": ["", "?parts=counts&parts=flows&parts=owners&start=-30s", "?parts=ep_ranks&parts=hot"],
    "/v1/trend": ["", "?points=10&step=5s"],
    "/v1/compare": ["?start=-20s&base_start=-60s"],
    "/v1/verdict": [""],
    "/v1/requests/unusual": ["", "?limit=1"],
    "/v1/requests/concentrated": [""],
    "/v1/requests/similar": ["?like=x2", "?like=none"],
    "/v1/requests/histogram": ["", "?layer=3"],
    "/v1/requests/{request_id}/routing": ["x1/routing", "none/routing"],
    "/v1/requests/{request_id}/routing.{suffix}": ["x2/routing.raw", "x3/routing.json"],
    "/v1/traces/export": ["?format=ndjson", "?format=ndjson&joined=true"],
    "/healthz": [""],
    "/readyz": [""],
    "/metrics": [""],
}
ELSEWHERE = {"/v1/live"}  # has no end
OWN = ["store", "ingest", "scrape", "build", "history", "query", "frames"]
OF_THE_ENGINE = re.compile(rf"^(# .*|(process|python)_.*|moescope_({'|'.join(OWN)})_.*)$", re.MULTILINE)
"""Metrics about the process and the engine, and comments."""


def _feed(service: Service) -> None:
    for second in SECONDS:
        service.clock.now = BEGIN + second
        for rank in range(RANKS):
            who = producer(dp_rank=rank, dp_size=RANKS, ep_rank=rank % 2, ep_size=2, pool="chat")
            counts = [second * (rank + 1), second, second, second * (2 - rank % 2)]
            given = {3: counts, 5: counts[::-1]}
            halved = {layer: [value // 2 * 2 // 2 for value in values] for layer, values in given.items()}
            made = frame(
                given,
                who=who,
                seq=second,
                top_k=1,
                after_s=second,
                steps=second,
                decode=halved if rank % 2 else None,
                placement=halves(4, 2),
            )
            service.push(made).raise_for_status()
    for number in (1, 2, 3):
        body = encode_part(part(number, tokens=number * 3, who={"dp_size": RANKS}))
        answer = service.client.post("/v1/traces", content=body, headers={"content-type": TRACE_CONTENT_TYPE})
        answer.raise_for_status()
    service.client.post("/v1/baselines", json={"name": "pinned", "start": "-30s"}).raise_for_status()


def _answers(service: Service) -> dict[str, tuple[int, Any]]:
    found: dict[str, tuple[int, Any]] = {}
    for route, variants in PATHS.items():
        for variant in variants:
            path = re.sub(r"\{.*", "", route) + variant
            answer = service.client.get(path)
            body: Any = answer.content
            if path == "/metrics":
                body = OF_THE_ENGINE.sub("", answer.text)
            elif "ndjson" in answer.headers["content-type"]:
                rows = [json.loads(line) for line in answer.text.splitlines()]
                body = [_of_any_engine(row) for row in rows]
            elif "json" in answer.headers["content-type"]:
                body = json.loads(body)
                if answer.status_code == 503:  # the store's place is in it
                    body["detail"] = body["detail"].partition("can't be read")[2]
                if "next_cursor" in body:  # an opaque word of the engine
                    body["next_cursor"] = body["next_cursor"] is not None
            found[path] = answer.status_code, body
    return found


def _of_any_engine(row: dict[str, Any]) -> dict[str, Any]:
    """A row of an export without its engine's cursor and the place of the store."""
    told = row.get("left_out")
    why = (told or "").partition("can't be read")[2] or told
    return row | {"cursor": row.get("cursor") is not None, "left_out": why}


def _assert_alike(one: Service, other: Service, but: str = "") -> dict[str, tuple[int, Any]]:
    mine, theirs = _answers(one), _answers(other)
    for path, answer in mine.items():
        if path == but:
            continue
        assert answer == theirs[path], path
    return mine


def _damage(setting: str) -> None:
    with closing(open_store(Settings(store=setting))) as store:
        rewrite(store, "account", "account", "dp_rank = 1", lambda blob: blob[: len(blob) // 2])
        for rank_second in SECONDS[4:6]:
            where = f"at_ms = {round((BEGIN + rank_second) * 1000)}"
            where += " AND producer = 1" if not setting.startswith("clickhouse") else " AND dp_rank = 0"
            rewrite(store, "snapshot", "totals", where, lambda blob: blob[:20])
        rewrite(store, "trace_part", "runs", "tokens = 6", lambda _: b"\xc1")


def _open(start: Callable[..., Service], setting: str, now: float, **more: Any) -> Service:
    clock = Clock(now)
    service = start(clock, store=setting, min_tokens=1, history_mib=1, **more)
    service.clock = clock
    return service


def test_both_stores_answer_alike(
    start_service: Callable[..., Service], clickhouse: str, tmp_path: Path
) -> None:
    settings = [str(tmp_path / "store"), f"{clickhouse}/alike"]
    services = [_open(start_service, setting, BEGIN) for setting in settings]
    asked = {route for route, item in services[0].get("/openapi.json")["paths"].items() if "get" in item}
    assert asked == set(PATHS) | ELSEWHERE
    for service in services:
        _feed(service)
    answers = _assert_alike(*services)
    assert answers["/v1/traces/x2.raw"][0] == 200
    assert sum(status == 200 for status, _ in answers.values()) > 35

    start_service.end_all()  # type: ignore[attr-defined]
    for setting in settings:
        _damage(setting)
    # Counters begin at zero where one service lost something; where others may know it they wait.
    again = [_open(start_service, setting, BEGIN + SECONDS[-1]) for setting in settings]
    damaged = _assert_alike(*again, but="/metrics")
    assert damaged["/v1/traces/x2.raw"][0] == 503
    assert damaged["/v1/traces/x1.json"] == answers["/v1/traces/x1.json"]
    [deployment] = damaged["/v1/ranks"][1]["deployments"]
    assert [item["dp_rank"] for item in deployment["dp_ranks"]] == [0, 2, 3]


def test_a_folder_that_was_moved_answers_alike(
    start_service: Callable[..., Service],
    clickhouse: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, url = tmp_path / "store", f"{clickhouse}/moved_alike"
    keeps = {f"keep_{name}_s": 1e10 for name in ("1s", "10s", "5min", "traces")}
    service = _open(start_service, str(folder), BEGIN, **keeps)
    _feed(service)
    who = producer(dp_rank=1, dp_size=RANKS, ep_rank=1, ep_size=2, pool="chat")
    counts = {3: [5, 6, 7, 8], 5: [8, 7, 6, 5]}
    another = EPOCH + 50 * 10**9
    placed = halves(4, 2)
    for second in (2, 4):  # a worker that starts again, and half of a trace
        counted = {layer: [second * value for value in values] for layer, values in counts.items()}
        later = frame(counted, who=who, seq=second, top_k=1, epoch=another, steps=second, placement=placed)
        service.push(later).raise_for_status()
        service.clock.now += 1.5
    body = encode_part(part(9, tokens=5, parts=2, who={"dp_size": RANKS}))
    service.client.post("/v1/traces", content=body, headers={"content-type": TRACE_CONTENT_TYPE})
    now = service.clock.now
    start_service.end_all()  # type: ignore[attr-defined]
    before = _answers(_open(start_service, str(folder), now, **keeps))
    start_service.end_all()  # type: ignore[attr-defined]

    monkeypatch.setenv("MOESCOPE_STORE", url)
    for name, seconds in keeps.items():
        monkeypatch.setenv(f"MOESCOPE_{name.upper()}", str(seconds))
    for _ in range(2):  # the second time nothing changes
        done = run("migrate", "--from", folder)
        assert done.returncode == 0, done.output
        after = _answers(_open(start_service, url, now, **keeps))
        start_service.end_all()  # type: ignore[attr-defined]
        for path, answer in before.items():
            # A service that is alone shows counters when it has heard its workers again.
            assert after[path] == answer or path == "/metrics", path
    assert sum(status == 200 for status, _ in before.values()) > 35
    both = [_open(start_service, setting, now, **keeps) for setting in (str(folder), url)]
    for service in both:
        service.clock.now += 4
        for rank in range(RANKS):
            who = producer(dp_rank=rank, dp_size=RANKS, ep_rank=rank % 2, ep_size=2, pool="chat")
            given = {3: [900 + rank] * 4, 5: [900 + rank] * 4}
            start = another if rank == 1 else EPOCH
            made = frame(given, who=who, seq=99, top_k=1, epoch=start, steps=99, placement=placed)
            service.push(made).raise_for_status()
        body = encode_part(part(9, tokens=5, part=1, parts=2, who={"dp_size": RANKS}))
        answer = service.client.post("/v1/traces", content=body, headers={"content-type": TRACE_CONTENT_TYPE})
        answer.raise_for_status()
    answers = _assert_alike(*both)
    assert answers["/v1/traces"][1]["traces"][0]["tokens"] == 10
