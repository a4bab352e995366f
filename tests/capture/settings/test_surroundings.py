"""What launchers put into the environment."""

from __future__ import annotations

import pytest

from moescope.capture.settings.surroundings import Surroundings, pass_on_launch


def test_without_launchers_there_is_nothing() -> None:
    assert Surroundings.from_environment({"PATH": "/bin"}) == Surroundings("", ("", ""), 0)


def test_what_launchers_say() -> None:
    environment = {"MASTER_ADDR": "10.0.0.4", "MASTER_PORT": "29400", "RANK": "3"}
    pass_on_launch(environment, "gpu-17:8000")
    expected = Surroundings("gpu-17:8000", ("10.0.0.4", "29400"), 3)
    assert Surroundings.from_environment(environment) == expected


@pytest.mark.parametrize("rank", ["", "-1", "x", "1.5", "\u00b2", "1" * 5000, "9" * 4000])
def test_a_rank_that_is_none_is_the_first(rank: str) -> None:
    """Nobody here can mend it, and it must not end capture. A superscript is a digit, but no decimal,
    and Python refuses to read a number of over 4,300 digits.
    """
    assert Surroundings.from_environment({"RANK": rank}).rank == 0
