"""Whether advice rests on enough of the past: what the answer is to say first."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from moescope.service.advice.evidence import Windows
from moescope.service.advice.verdict import WORTH_IT, Verdict

LEAST_S: Final = 600.0
"""Data of a shorter time, seconds, say little of what a placement saves: half of it checks the other half,
and a placement that is to stay for hours must have held for minutes at least."""
WHOLE: Final = 0.9
"""Data of so much of the window that was asked for are all of it: ranks report one after the other."""


def is_short(windows: Windows) -> bool:
    """Whether the data are too short to say what a placement is worth."""
    return windows.seconds < LEAST_S


def said_of(verdict: Verdict, windows: Windows) -> Verdict:
    """The verdict as it may be said: from short data none that a placement is worth it, or isn't."""
    if verdict.decision == "no_sample" or not is_short(windows):
        return verdict
    what = verdict.words.removeprefix(WORTH_IT)
    so_far = what if what != verdict.words else f"{what[:1].lower()}{what[1:]}"
    return replace(verdict, decision="too_early", words=f"So far, {so_far}")


def short_words(windows: Windows, asked_s: float | None) -> str | None:
    """What is to be said first of the data; None: they are long enough, and all that was asked for.

    Args:
        windows: what advice rests on.
        asked_s: length of the window that was asked for, seconds; None: it had no begin.
    """
    seconds = windows.seconds
    if is_short(windows):
        what = (
            ""
            if asked_s is None or seconds >= WHOLE * asked_s
            else f", where {asked_s:,.0f} s were asked for"
        )
        return (
            f"Too early to say: this rests on data of {seconds:,.0f} s only{what}. It takes {LEAST_S:.0f} s "
            "at least to say what a placement is worth."
        )
    if asked_s is not None and seconds < WHOLE * asked_s:
        return f"This rests on data of {seconds:,.0f} s, where {asked_s:,.0f} s were asked for."
    return None
