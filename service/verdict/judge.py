"""From facts to one verdict: a pure function."""

from __future__ import annotations

from collections.abc import Sequence

from moescope.service.verdict import rules
from moescope.service.verdict.facts import Facts
from moescope.service.verdict.links import Links
from moescope.service.verdict.model import Confidence, Finding, Verdict, precedence
from moescope.service.verdict.sentences import duration, plural


def judge(facts: Facts) -> Verdict:
    """The verdict on a deployment in a window; see docs/verdict.md for the kinds and their order."""
    links = Links(facts.server, facts.model, facts.start, facts.end)
    first, *others = _findings(facts, links)
    return Verdict(
        server=facts.server,
        model=facts.model,
        start=facts.start,
        end=facts.end,
        finding=first,
        confidence=_confidence(facts),
        also=tuple(others),
    )


def _findings(facts: Facts, links: Links) -> list[Finding]:
    return sorted(_unsorted(facts, links), key=precedence)


def _unsorted(facts: Facts, links: Links) -> list[Finding]:
    for rule in rules.ENDS:
        if (end := rule(facts, links)) is not None:
            return [end, *(_capture(facts, links) if end.kind == "no_traffic" else ())]
    capture = _capture(facts, links)
    if (few := rules.too_little_data(facts, links)) is not None:
        return [*capture, few]
    causes = _all(rules.UNEVEN, facts, links)[:1]
    found = [*causes, *_all(rules.OTHERS, facts, links)]
    if found:
        return [*capture, *found]
    if facts.balance is None and facts.ep_size > 1:  # a gap, or else too little data, says why
        return capture or [_unknown(facts, links)]
    return [*capture, rules.balanced(facts, links)]


def _capture(facts: Facts, links: Links) -> list[Finding]:
    return _all(rules.CAPTURE, facts, links)


def _all(asked: Sequence[rules.Rule], facts: Facts, links: Links) -> list[Finding]:
    return [found for rule in asked if (found := rule(facts, links)) is not None]


def _unknown(facts: Facts, links: Links) -> Finding:
    """Where no layer has a sample though nothing is missing."""
    reason = facts.balance_reason or "no layer has a sample"
    few = Facts(facts.server, facts.model, facts.start, facts.end, tokens=facts.tokens, too_little=(reason,))
    found = rules.too_little_data(few, links)
    assert found is not None
    return found


def _confidence(facts: Facts) -> Confidence:
    layers = 0 if facts.balance is None else len(facts.balance.layers)
    tokens = "an unknown number of tokens" if facts.tokens is None else plural(facts.tokens, "token")
    words = (
        f"Rests on {tokens} in {duration(facts.seconds)}, {plural(facts.steps, 'step')}, "
        f"{plural(layers, 'layer')}."
    )
    return Confidence(
        tokens=facts.tokens,
        seconds=facts.seconds,
        steps=facts.steps,
        layers=layers,
        enough=not facts.too_little and facts.balance is not None,
        words=words,
        caveats=facts.caveats,
    )
