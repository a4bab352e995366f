"""How long EP ranks wait for each other, as numbers and in words: what several rules say."""

from __future__ import annotations

from moescope.service.verdict.facts import Balance, Facts
from moescope.service.verdict.links import Links
from moescope.service.verdict.model import Action, Finding, Kind, Number, Severity
from moescope.service.verdict.sentences import ACTIONS, SENTENCES, percent, plural, times
from moescope.service.verdict.thresholds import WAITING, WAITING_BADLY


def is_uneven(facts: Facts) -> bool:
    """Whether EP ranks are uneven in the window's sums, which another placement may mend."""
    return facts.balance is not None and not facts.too_little and is_uneven_by(facts.balance)


def is_uneven_by(balance: Balance) -> bool:
    """Whether EP ranks are uneven in the sums of a window."""
    return balance.waiting >= WAITING


def waiting_of(facts: Facts) -> float:
    """Share of the time that an average rank waits: from single steps where these are known."""
    windowed = 0.0 if facts.balance is None else facts.balance.waiting
    return windowed if facts.in_steps is None else max(facts.in_steps.cost, windowed)


def severity_of(waiting: float) -> Severity:
    """How bad it is that an average rank waits so long."""
    return "critical" if waiting >= WAITING_BADLY else "warning"


def waiting_words(facts: Facts) -> str:
    """How long an average rank waits, by the window's sums and, where it differs, in single steps."""
    assert facts.balance is not None
    balance, steps = facts.balance, facts.in_steps
    layers = plural(len(balance.layers), "layer")
    share = percent(balance.waiting)
    words = SENTENCES["waiting"].format(share=share, ratio=times(balance.ratio), layers=layers)
    if steps is None or percent(steps.cost) == share:
        return words
    return SENTENCES["in_steps"].format(waiting=words, share=percent(steps.cost))


def waiting_numbers(facts: Facts, links: Links) -> tuple[Number, ...]:
    """The numbers about waiting; with a balance that is known."""
    assert facts.balance is not None
    found = [
        Number(
            "imbalance ratio over EP ranks",
            facts.balance.ratio,
            "ratio",
            links.view("overview"),
            links.api("view"),
        ),
        Number(
            "waiting by the window's sums",
            facts.balance.waiting,
            "share",
            links.view("ranks"),
            links.api("stragglers"),
        ),
    ]
    if facts.in_steps is not None:
        proof = links.view("ranks"), links.api("stragglers")
        found.append(Number("waiting in single steps", facts.in_steps.cost, "share", *proof))
    return tuple(found)


def plain(kind: Kind, severity: Severity, words: str, numbers: tuple[Number, ...]) -> Finding:
    """A finding whose kind says what to do."""
    return Finding(kind, severity, words, numbers, Action(ACTIONS[kind]))
