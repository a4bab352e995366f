"""A row with anything wrong in any column, of any table, costs what it is about, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

import pytest

from moescope.service.counts.account import Account
from moescope.service.store.clickhouse import account_rows, history, trace_rows
from moescope.service.store.clickhouse.kept import Kept
from moescope.service.store.clickhouse.rowbinary import Value
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.codec import encode_totals
from moescope.service.store.records import ArrivedPart, Document, Posting, StoreError, TraceQuery
from tests.service.conftest import Clock, Service
from tests.service.frames import EPOCH, frame, producer
from tests.service.store.accounts import BORN, key, posted, posting
from tests.service.trace_parts import part

ODD: dict[type, Sequence[Value]] = {
    int: (-1, 0, (1 << 63) - 1, -(1 << 63)),
    str: (b"\xff\x00\xfe", "", "\x1b[31m", "x" * 5000),
    bytes: (b"\xff\x00\xfe", b"", b"\x02\xff", b"\x93\xff\xff", b"\x01\x28\xb5\x2f\xfd", b"x" * 5000),
    list: ([], [b"\xff"], ["", ""]),
}
"""Values that a column may have by damage, or by a newer moescope, by the type of what it has."""


def odd_rows(columns: Sequence[str], make: Callable[[int], list[Value]]) -> Iterator[list[Value]]:
    """A row for each odd value of each column; ``make`` gives the n-th row as it should be."""
    n = 1
    for at in range(len(columns)):
        right = make(n)[at]
        kinds = [kind for kind in ODD if isinstance(right, kind)]
        odd = ODD[kinds[0]] if kinds else (right[:0], right[1:], right[:-1])  # type: ignore[index]
        for value in odd:
            n += 1
            row = make(n)
            row[at] = value
            yield row


def account_row(n: int) -> list[Value]:
    found = account_rows.rows_of([odd_posting(n)], "another", Kept(), Kept())
    return [*found.accounts[0], 1_700_000_000_000_000]


def life_row(n: int) -> list[Value]:
    return account_rows.rows_of([odd_posting(n)], "another", Kept(), Kept()).lives[0]


def former_row(n: int) -> list[Value]:
    """A row of `snapshot`, as schema 3 wrote it."""
    item = odd_posting(n)
    latest, at_ms = item.account.latest, round(item.at * 1000)
    totals = encode_totals(item.account.totals)
    return [*item.key, at_ms // 1000, at_ms, latest.epoch, latest.seq, totals]


def odd_posting(n: int) -> Posting:
    account = Account(max_epochs=4)
    account.post(frame({1: [2, 0], 3: [2, 0]}, who=producer(server=f"odd {n}")), at=BORN + 5)
    return posted(account.state(), 5)


def trace_rows_of(n: int) -> tuple[list[Value], list[Value]]:
    """A row of ids, and its header."""
    made = part(1000 + n, tokens=6, steps=b"\0" * 48)
    routing, headers = trace_rows.rows_of([ArrivedPart(made, BORN + 1)], trace_rows.Numbers())
    return routing[0], headers[0]


def document_row(n: int) -> list[Value]:
    return ["baseline", f"odd {n}", b"x", n, 0]


DAMAGES: dict[str, tuple[Sequence[str], Callable[[int], list[Value]]]] = {
    "account": ((*account_rows.COLUMNS, "written"), account_row),
    "life": (history.COLUMNS, life_row),
    "snapshot": ((*history.KEY, "second", "at_ms", "epoch", "seq", "totals"), former_row),
    "trace_part": (trace_rows.PART_COLUMNS, lambda n: trace_rows_of(n)[1]),
    "routing": (trace_rows.ROUTING_COLUMNS, lambda n: trace_rows_of(n)[0]),
    "document": (("kind", "name", "content", "version", "gone"), document_row),
    "gone": (("name", "why", "at_ms"), lambda n: [n, "expired", n]),
}


def damage(store: ClickHouseStore, table: str) -> int:
    """Put odd rows beside those that are there; how many."""
    columns, make = DAMAGES[table]
    rows = list(odd_rows(columns, make))
    # What else a trace needs, so that its odd row is looked at.
    if table == "routing":
        headers = [trace_rows_of(n)[1] for n in range(2, len(rows) + 2)]
        store._connection.insert("trace_part", trace_rows.PART_COLUMNS, headers)
    if table == "trace_part":
        routing = [trace_rows_of(n)[0] for n in range(2, len(rows) + 2)]
        store._connection.insert("routing", trace_rows.ROUTING_COLUMNS, routing)
    store._connection.insert(table, columns, rows)
    return len(rows)


def read_all(store: ClickHouseStore, number: int) -> Any:
    """All that a trace has."""
    [worker] = store.traces(number, None)
    steps = worker.steps(0, worker.tokens)
    return worker.runs.tolist(), [ids.tolist() for ids in worker.experts], steps.tolist()


def refusal(store: ClickHouseStore, number: int) -> str:
    """Why a trace can't be read; nothing if it can."""
    try:
        for worker in store.traces(number, None):
            worker.runs.sum()
            worker.read(0, worker.tokens)
            worker.steps(0, worker.tokens)
            assert worker.runs_bytes >= 0
    except StoreError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("table", DAMAGES)
def test_odd_rows_cost_themselves_only(
    replicas: list[ClickHouseStore], table: str, log: pytest.LogCaptureFixture
) -> None:
    one, two = replicas
    one.save([posting([2, 0, 0, 0], 5), ArrivedPart(part(1), BORN), Document("baseline", "pinned", b"x")])
    [kept] = one.traced_requests(TraceQuery(name="x1"))
    whole = read_all(one, kept.number)
    assert damage(one, table) > 9

    assert key(0) in {item.key for item in two.accounts()}
    assert key(0) in {item.key for item in two.news()}
    assert two.news() == []
    [totals] = two.totals_at(key(0), [BORN + 6])
    assert totals is not None
    assert two.oldest(key(0)) is not None
    assert key(0) in two.begins()
    assert ("pinned", b"x") in two.documents("baseline")
    assert kept in two.traced_requests(TraceQuery(name="x1"))
    listed = two.traced_requests(TraceQuery(limit=1000))
    assert {item.number for item in two.listed(TraceQuery(limit=1000))} >= {item.number for item in listed}
    two.traced_requests(TraceQuery(layer=1, expert=3))
    assert read_all(two, kept.number) == whole
    refusals = {refusal(two, item.number) for item in listed}
    assert all("can't be read" in why or "removed" in why for why in refusals if why), refusals
    numbers = sorted({item.number for item in listed} | {kept.number})
    found = [slots.number for at in range(0, len(numbers), 64) for slots in two.slots(numbers[at : at + 64])]
    assert kept.number in found
    assert two.shapes([part(1)])[0] is not None
    two.shapes([part(1000 + n) for n in range(50)])
    assert two.why_absent("nobody") is None
    two.usage()
    two.maintain(BORN + 10)
    assert len(log.records) < 200, "each kind is told once a minute, accounts one by one"
    two.save([posting([4, 0, 0, 0], 6), ArrivedPart(part(2), BORN + 2), Document("baseline", "pinned", None)])
    assert "pinned" not in dict(two.documents("baseline"))
    assert [item.at for item in one.news() if item.key == key(0)] == [BORN + 6], "news go on"


def test_a_service_starts_and_serves_beside_all_of_them(
    start_service: Callable[..., Service], replicas: list[ClickHouseStore], url: str, clock: Clock
) -> None:
    one, _ = replicas
    one.save([posting([2, 0, 0, 0], 5), ArrivedPart(part(1), BORN), Document("baseline", "pinned", b"x")])
    for table in DAMAGES:
        damage(one, table)
    clock.now = EPOCH / 1e9 + 60
    service = start_service(store=url, min_tokens=1)
    answers = {
        path: service.client.get(path).status_code
        for path in (
            "/v1/ranks?server=prod&model=tiny",
            "/v1/histogram?server=prod&model=tiny",
            "/v1/histogram?server=prod&model=tiny&start=-50s&step=10s",
            "/v1/traces?limit=1000",
            "/v1/traces/x1",
            "/v1/traces/export",
            "/v1/coactivation?layer=1&server=prod&model=tiny",
            "/v1/baselines",
            "/metrics",
            "/readyz",
        )
    }
    wrong = [service.client.get(path).text for path, code in answers.items() if code != 200]
    assert not wrong, wrong
    exposed = service.client.get("/metrics").text
    assert 'moescope_store_unreadable_total{kind="account"}' in exposed
    listed = service.get("/v1/traces", limit=1000)["traces"]
    ids = [quote(item["request_id"], safe="") for item in listed]
    codes = {service.client.get(f"/v1/traces/{name}").status_code for name in ids[::8] if name}
    assert codes <= {200, 404, 409, 503}, codes
