"""The kinds of verdict, each as a rule: facts to a finding, or None where it isn't the case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from moescope.service.verdict.facts import Facts
from moescope.service.verdict.links import Links
from moescope.service.verdict.model import Action, Finding, HowFar, Number
from moescope.service.verdict.sentences import (
    ACTIONS,
    SENTENCES,
    duration,
    percent,
    plural,
    silence_words,
    times,
)
from moescope.service.verdict.thresholds import BEYOND_CHANCE, DP_UNEVEN, MOVED, WAITING
from moescope.service.verdict.uneven import one_expert_hot, one_rank_hot, ranks_hot_by_layer
from moescope.service.verdict.waiting import is_uneven_by, plain, severity_of, waiting_numbers, waiting_words

Rule = Callable[[Facts, Links], Finding | None]


def silent(facts: Facts, links: Links) -> Finding | None:
    """Nothing comes from any worker."""
    if facts.silence is None or not facts.open_end:
        return None
    age, word = facts.silence.age, "ended" if facts.silence.ended else "silent"
    number = Number("silent for", age, "seconds", links.view("overview"), links.api("ranks", windowed=False))
    return Finding(
        "silent",
        "info" if facts.silence.ended else "critical",
        silence_words(facts.silence),
        (number,),
        Action(ACTIONS[word]),
    )


def no_traffic(facts: Facts, links: Links) -> Finding | None:
    """All that report computed no token."""
    if facts.tokens != 0 or facts.tokens_reason is not None:
        return None
    words = SENTENCES["no_traffic"].format(
        seconds=duration(facts.seconds), ranks=plural(facts.reporting, "DP rank")
    )
    return plain("no_traffic", "info", words, (_tokens(facts, links),))


def capture_incomplete(facts: Facts, links: Links) -> Finding | None:
    """Something is not seen, or doesn't add up."""
    if not facts.gaps:
        return None
    first, *others = facts.gaps
    more = f" Besides: {'; '.join(gap.words for gap in others)}." if others else ""
    words = SENTENCES["capture_incomplete"].format(gap=first.words, more=more)
    number = Number(
        "gaps", len(facts.gaps), "number", links.view("overview"), links.api("ranks", windowed=False)
    )
    return plain("capture_incomplete", first.severity, words, (number,))


def part_only(facts: Facts, links: Links) -> Finding | None:
    """Some of the deployment's workers are not in the numbers."""
    if facts.partial is None:
        return None
    words = SENTENCES["part_only"].format(partial=facts.partial)
    proof = links.view("overview"), links.api("ranks", windowed=False)
    return plain(
        "part_only", "warning", words, (Number("DP ranks that report", facts.reporting, "number", *proof),)
    )


def too_little_data(facts: Facts, links: Links) -> Finding | None:
    """Balance can't be judged from so few data."""
    if not facts.too_little:
        return None
    words = SENTENCES["too_little_data"].format(reasons="; ".join(facts.too_little))
    return plain("too_little_data", "info", words, (_tokens(facts, links),))


def dp_uneven(facts: Facts, links: Links) -> Finding | None:
    """One DP rank has more tokens than the others."""
    dp = facts.dp
    if dp is None or dp.ratio < DP_UNEVEN:
        return None
    words = SENTENCES["dp_uneven"].format(rank=dp.rank, ratio=f"{dp.ratio:.2f} times", ranks=dp.ranks)
    proof = links.view("overview"), links.api("balance")
    numbers = (
        Number("imbalance ratio of tokens over DP ranks", dp.ratio, "ratio", *proof),
        Number("DP rank", dp.rank, "id", *proof),
    )
    return plain("dp_uneven", "warning", words, numbers)


def steps_only(facts: Facts, links: Links) -> Finding | None:
    """Steps are uneven, and their sum is not."""
    steps = facts.in_steps
    if steps is None or facts.balance is None or is_uneven_by(facts.balance) or steps.cost < WAITING:
        return None
    words = SENTENCES["steps_only"].format(waiting=percent(steps.cost), ratio=times(facts.balance.ratio))
    numbers = waiting_numbers(facts, links)
    return plain("steps_only", severity_of(steps.cost), words, numbers)


def how_far(moved: float, divergence: float, noise: float) -> HowFar:
    """What medians over layers say of routing against a base: chance, more than that but little, or drift."""
    if divergence < BEYOND_CHANCE * noise:
        return "chance"
    return "little" if moved < MOVED else "drifted"


def drifted(facts: Facts, links: Links) -> Finding | None:
    """Routing is far from a base."""
    drift = facts.drift
    if drift is None or how_far(drift.moved, drift.divergence, drift.noise) != "drifted":
        return None
    words = SENTENCES["drifted"].format(
        moved=percent(drift.moved), base=_base(drift.base), new_hot=drift.new_hot, new_dead=drift.new_dead
    )
    proof = (
        links.view("advice", drift_base=drift.base),
        links.api("drift", windowed=False, baseline=drift.base),
    )
    numbers = (
        Number("slots that go to other experts", drift.moved, "share", *proof),
        Number("divergence", drift.divergence, "bits", *proof),
        Number("divergence by sampling alone", drift.noise, "bits", *proof),
    )
    return plain("drifted", "info", words, numbers)


def balanced(facts: Facts, links: Links) -> Finding:
    """Nothing else is the case."""
    if facts.balance is None:
        return plain("balanced", "ok", SENTENCES["one_ep_rank"], (_tokens(facts, links),))
    words = SENTENCES["balanced"].format(waiting=waiting_words(facts))
    return plain("balanced", "ok", words, waiting_numbers(facts, links))


ENDS: Final[tuple[Rule, ...]] = (silent, no_traffic)
"""Where one of these is the case, nothing else is asked."""
CAPTURE: Final[tuple[Rule, ...]] = (capture_incomplete, part_only)
UNEVEN: Final[tuple[Rule, ...]] = (one_expert_hot, one_rank_hot, ranks_hot_by_layer)
"""Causes of uneven EP ranks, the most particular first: only one of them is said."""
OTHERS: Final[tuple[Rule, ...]] = (dp_uneven, steps_only, drifted)


def _tokens(facts: Facts, links: Links) -> Number:
    return Number("tokens", facts.tokens or 0, "tokens", links.view("overview"), links.api("view"))


def _base(name: str) -> str:
    return "the hour before" if name == "previous_hour" else f"baseline {name}"
