"""`moescope ranks`, `balance` and `stragglers`, as their users run them."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.capture import wire
from tests.service.cli.running import plain, run, run_in_terminal
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, producer


def test_balance_and_ranks_show_tables(service: Service) -> None:
    for dp_rank in (0, 1):
        who = producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2)
        uncovered = [wire.UncoveredLayer(5, "monolithic kernel")]
        service.push(frame({3: [2000, 1000]}, who=who, placement=halves(2, 1), uncovered=uncovered))
    balance = run("balance", "--url", service.url)
    assert (balance.returncode, balance.stderr) == (0, "")
    row = next(line for line in balance.stdout.splitlines() if line.startswith("    3 "))
    assert row.split() == [*("3", "3,000", "0", "4,000", "1.333", "1.000", "1.333", "0", "4,000", "2,000")]
    assert "worst 1.333 (layer 3)" in balance.stdout
    assert "layer 5 can't be seen: monolithic kernel" in balance.stdout
    one = run("balance", "--dp-rank", "1", "--layer", "3", "--url", service.url)
    assert "slots by EP rank of DP rank 1" in " ".join(one.stdout.split())
    assert "1,500" in one.stdout
    assert run("balance", "--layer", "9", "--url", service.url).returncode == 7
    ranks = run("ranks", "--url", service.url)
    assert (ranks.returncode, ranks.stderr) == (0, "")
    assert "tiny on prod" in ranks.stdout
    assert "1,500" in ranks.stdout
    assert "of decode" in ranks.stdout
    assert "uncovered layers [5]" in ranks.stdout


def test_a_narrow_terminal_gets_the_hottest_rank_in_place_of_empty_columns(
    service: Service,
) -> None:
    for dp_rank in range(32):
        who = producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=32, ep_size=32)
        service.push(frame({3: [1000] * 31 + [3000]}, who=who, placement=halves(32, 1, 32)))
    hottest = ["3", "544,000", "31", "96,000", "2.824", "1.000", "2.824"]
    for width, rest in ((85, ["0"]), (600, ["0", *["32,000"] * 31, "96,000"])):
        done = run_in_terminal("balance", "--url", service.url, columns=width)
        assert done.returncode == 0
        row = next(line for line in plain(done.stdout).splitlines() if line.startswith("│     3"))
        assert row.replace("│", " ").split() == [*hottest, *rest]
        assert ("no room for EP 0 to EP 31: -o wide shows all" in done.stdout) == (width == 85)


def test_ranks_names_who_never_reported_and_what_cant_be_seen(service: Service) -> None:
    uncovered = [wire.UncoveredLayer(5, "monolithic kernel")]
    unavailable = {"phases": "no order"}
    absent = [wire.UncoveredLayer(7, "not found (FooBlock)")]
    service.push(
        frame(
            {3: [2, 1]},
            who=producer(dp_size=3),
            uncovered=uncovered,
            absent=absent,
            unavailable=unavailable,
        )
    )
    done = run("ranks", "--url", service.url)
    assert "- layer 7 is absent: not found (FooBlock)" in done.stdout
    assert "absent layers [7]" in done.stdout
    assert "- this is a part: of 3 DP ranks [1, 2] never reported" in done.stdout
    for command in ("balance", "stragglers", "advise", "drift"):
        answer = run(command, "--url", service.url, *(["--ranks", "2"] if command == "advise" else []))
        assert "- this is a part: of 3 DP ranks [1, 2] never reported" in answer.stdout, command
    assert "- layer 5 can't be seen: monolithic kernel" in done.stdout
    assert "- phases can't be told: no order" in done.stdout


def test_ranks_that_a_deployment_no_longer_has_are_gone_and_no_fault(service: Service) -> None:
    for rank in (0, 1):
        service.push(frame({3: [2, 2]}, who=producer(dp_rank=rank, dp_size=2)))
    service.clock.now += 3
    service.push(frame({3: [2, 2]}, who=producer(), epoch=EPOCH + 10**10))
    done = run("ranks", "--url", service.url)
    said = " ".join(done.stdout.split())
    assert "gone 3 s ago" in said
    assert "the deployment has 1 DP rank now" in said
    assert not [line for line in done.stdout.splitlines() if line.startswith("- ")]


def test_rows_that_are_not_the_tokens_are_said(service: Service) -> None:
    service.push(frame({3: [900, 900], 4: [1000, 1000]}, who=producer(dp_size=2), tokens=1000))
    service.push(frame({3: [1, 1], 4: [1, 1]}, who=producer(dp_rank=1, dp_size=2, tp_size=2)))
    done = run("ranks", "--url", service.url)
    assert "mismatched layers [3]" in " ".join(done.stdout.split())
    assert "- DP rank 0, pipeline stage 0: layer 3: 900 rows of 1,000 tokens" in done.stdout
    assert "not known whether rows add up to tokens: TP rank 1 has not reported" in done.stdout
    assert "add up to the tokens of DP rank 0: 900 of 1000" in run("stragglers", "--url", service.url).stdout
    assert "add up to the tokens of DP rank 0: 900 of 1000" in run("balance", "--url", service.url).stdout


def test_absent_layers_of_unknown_number_are_said_in_ranks_and_balance(service: Service) -> None:
    service.push(
        frame({}, tokens=3, absent_unnamed="the model's config has 8 experts, and nothing was found")
    )
    ranks, balance = run("ranks", "--url", service.url), run("balance", "--url", service.url)
    for done in (ranks, balance):
        said = " ".join(done.stdout.split())
        assert "- MoE layers are absent: the model's config has 8 experts, and nothing was found" in said
    assert "absent layers, not known which" in " ".join(ranks.stdout.split())


def test_stragglers_show_steps_beside_the_window(service: Service) -> None:
    for dp_rank in (0, 1):
        who = producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2)
        loads = wire.pack_step_loads(0, 3, np.array([0, 1]), np.array([[[2000, 0]], [[0, 2000]]]), 1)
        service.push(frame({3: [2000, 2000]}, who=who, placement=halves(2, 1), step_loads=loads))
    done = run("stragglers", "--url", service.url)
    assert (done.returncode, done.stderr) == (0, "")
    row = next(line for line in done.stdout.splitlines() if line.startswith("    3 "))
    assert row.split() == ["3", "2", "50.0%", "0.0%", "0", "50.0%"]
    assert "straggler cost 50.0 %; of the window's sums 0.0 %" in done.stdout
    assert "Stage 0: 3 steps joined, 0 incomplete, 0 pending" in done.stdout
    service.push(frame({0: [1, 1]}, who=producer(model="one")))
    alone = run("stragglers", "--url", service.url, "--model", "one")
    assert "No straggler cost: ep_size is 1" in alone.stdout


@pytest.mark.parametrize("command", ["ranks", "balance", "stragglers", "drift", "advise"])
def test_names_that_look_like_markup_stand_as_they_are(service: Service, command: str) -> None:
    who = producer(model="m[/b]:100:[v2]", ep_size=2)
    for seq in (1, 2, 3):
        counts = {0: [20 * seq, 0, 0, 20 * seq]}
        made = frame(counts, who=who, seq=seq, after_s=5 * seq, placement=halves(4, 1))
        assert service.push(made).status_code == 200
        service.clock.now += 5
    done = run(command, "--url", service.url)
    too_few = 7 if command in ("drift", "advise") else 0
    assert (done.returncode, done.stderr) == (too_few, "")
    assert "m[/b]:100:[v2] on prod" in done.stdout


def test_balance_of_idle_ranks_says_so(service: Service) -> None:
    service.push(frame({0: [0, 0]}))
    done = run("balance", "--url", service.url)
    assert "over experts: idle: no tokens in the window" in done.stdout
    assert "over EP: ep_size is 1" in done.stdout
