"""The gate of several services begins with the seed that is asked for, and says which seeds it played."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import devkit.soak.__main__ as soak
from devkit.soak import services
from devkit.soak.gate import Gate, Options, Outcome
from tests.service.store.clickhouse.laws import BrokenLawError


def test_seeds_are_played_from_the_first_one_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played: list[int] = []
    monkeypatch.setattr(services, "play", lambda _url, seed, _together: played.append(seed))
    outcome = services.services(Options(1.0, quick=False, folder=tmp_path, histories=80, first_seed=1025))
    assert played == [1025, 1026, 1027, 1028]
    assert not outcome.passed
    assert outcome.figures.startswith("80 histories (seeds 1025 to 1028) of the 2,000 that are asked for")
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(" in ")[0] for line in told] == [
        f"   seed {1024 + number}: {20 * number} of 80 histories" for number in range(1, 5)
    ]


def test_a_history_that_breaks_a_law_says_how_it_is_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(_url: str, seed: int, _together: int) -> None:
        if seed == 1026:
            raise BrokenLawError("A says 3, true is 4", 0)

    monkeypatch.setattr(services, "play", play)
    outcome = services.services(Options(1.0, quick=False, folder=tmp_path, histories=80, first_seed=1025))
    assert not outcome.passed
    assert outcome.figures == "A says 3, true is 4 (again: --first-seed 1026 --histories 20)"


@pytest.mark.parametrize(("more", "first"), [([], 1000), (["--first-seed", "1025"], 1025)])
def test_the_command_line_says_the_first_seed(
    more: list[str], first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Options] = []

    def run(options: Options) -> Outcome:
        asked.append(options)
        return Outcome(True, "")

    monkeypatch.setattr(soak, "GATES", (Gate("services", "", run),))
    monkeypatch.setattr(sys, "argv", ["soak", "services", "--quick", *more])
    assert soak.main() == 0
    assert [options.first_seed for options in asked] == [first]


def test_help_says_what_the_first_seed_is_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["soak", "--help"])
    with pytest.raises(SystemExit):
        soak.main()
    assert "--first-seed" in capsys.readouterr().out
