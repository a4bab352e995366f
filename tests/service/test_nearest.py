"""Words that are nearly right."""

from __future__ import annotations

import time

import pytest

from moescope.service.nearest import hint, nearest

KNOWN = ("server", "model", "layer", "dp_rank", "start", "end", "min_tokens")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("sever", "server"),
        ("Layer", "layer"),
        ("layers", "layer"),
        ("dp-rank", "dp_rank"),
        ("dpRank", "dp_rank"),
        ("MIN_TOKEN", "min_tokens"),
        ("zzz", None),
        ("", None),
    ],
)
def test_nearest(word: str, meant: str | None) -> None:
    assert nearest(word, KNOWN) == meant


def test_what_is_said_comes_before_what_is_alike() -> None:
    assert hint("Window", KNOWN, {"window": "Give start=-5m."}) == " Give start=-5m."
    assert hint("strat", KNOWN, {"window": "Give start=-5m."}) == " Did you mean start?"
    assert hint("zzz", KNOWN) == ""


def test_a_long_word_takes_no_time() -> None:
    begun = time.process_time()
    assert nearest("server" * 1_000_000, KNOWN) is None
    assert time.process_time() - begun < 5
