"""`moescope pools`, and the option --pool of other commands, as their users run them."""

from __future__ import annotations

import json

import pytest

from tests.service.cli.running import Done, run
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer


@pytest.fixture
def pooled(service: Service) -> Service:
    """Two replicas that are alike and one that is not, a decode instance, and one of no pool."""
    loads = {
        "a": [1000, 1000, 1000, 1000],
        "b": [1000, 1010, 1000, 1000],
        "c": [9000, 1000, 500, 500],
        "d": [1000, 0, 0, 1000],
        "alone": [1000, 1000, 0, 0],
    }
    for server, counts in loads.items():
        role = {"alone": "", "d": "decode"}.get(server, "prefill")
        who = producer(server=server, ep_size=2, pool="" if server == "alone" else "chat/x", role=role)
        decode = {3: counts if role == "decode" else [0, 0, 0, 0]}
        service.push(frame({3: counts}, who=who, placement=halves(4, 1), after_s=100, decode=decode))
    return service


def words(done: Done) -> list[str]:
    assert (done.returncode, done.stderr) == (0, ""), done.output
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_pools_lists_all_pools(pooled: Service) -> None:
    lines = words(run("pools", "--url", pooled.url))
    assert "chat/x tiny 4 3 1 10,505 105 -" in lines
    assert "- in no pool: alone" in lines


def test_one_pool_shows_each_replica_and_who_stands_out(pooled: Service) -> None:
    lines = words(run("pools", "chat/x", "--url", pooled.url, columns=200))
    row = next(line.split() for line in lines if line.startswith("c prefill"))
    # server, role, state, tokens, tokens/s, of mean, over EP, worst, in layer
    assert row[:9] == ["c", "prefill", "counting", "5,500", "55", "1.74", "1.818", "1.818", "3"]
    assert "prefill: 9,505 tokens (9,505 of prefill, 0 of decode), 95 tokens/s" in lines
    assert "decode: 1,000 tokens (0 of prefill, 1,000 of decode), 10 tokens/s" in lines
    standing = [line for line in lines if " stands out: " in line]
    assert any(line.startswith("c stands out: imbalance over EP ranks 1.82") for line in standing)
    assert not [line for line in standing if line.startswith("d ")]
    layer = next(line.split() for line in lines if line.startswith("3 "))
    assert layer[:3] == ["3", "9,505", "1,000"]
    assert 0 < float(layer[3]) < 1
    assert any(line.startswith("- d: no sibling") for line in lines)


def test_a_pool_as_json_is_the_answer(pooled: Service) -> None:
    done = run("pools", "chat/x", "--json", "--url", pooled.url)
    assert json.loads(done.stdout) == pooled.get("/v1/pools/chat%2Fx")


def test_nothing_is_listed_without_a_pool(service: Service) -> None:
    service.push(frame({0: [1, 1]}))
    assert "MOESCOPE_POOL" in run("pools", "--url", service.url).stdout
    done = run("pools", "chat", "--url", service.url)
    assert (done.returncode, "MOESCOPE_POOL" in done.stderr) == (7, True)


def test_balance_and_stragglers_of_a_pool_are_those_of_each_replica(pooled: Service) -> None:
    for command in ("balance", "stragglers"):
        done = run(command, "--pool", "chat/x", "--url", pooled.url)
        assert done.returncode == 0, done.output
        for server in "abcd":
            alone = run(command, "--pool", "chat/x", "--server", server, "--url", pooled.url)
            assert alone.stdout.strip() in done.stdout
        assert "tiny on alone" not in done.stdout
    done = run("balance", "--pool", "other", "--url", pooled.url)
    assert (done.returncode, "pool=chat/x" in done.stderr) == (7, True)


def test_ranks_of_a_pool(pooled: Service) -> None:
    done = run("ranks", "--pool", "chat/x", "--url", pooled.url)
    assert [f"tiny on {server}" in done.stdout for server in ("a", "d", "alone")] == [True, True, False]
    assert "pool chat/x, decode" in done.stdout
