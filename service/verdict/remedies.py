"""What another placement of experts would do about uneven EP ranks, from advice."""

from __future__ import annotations

from moescope.service.advice.advise import Advice
from moescope.service.advice.short import LEAST_S, is_short
from moescope.service.advice.verdict import name_of
from moescope.service.verdict.facts import Facts, Remedy
from moescope.service.verdict.links import Links
from moescope.service.verdict.model import Action, Number
from moescope.service.verdict.sentences import ACTIONS, duration, percent


def remedy_of(advice: Advice) -> Remedy:
    """What advice on the last hour recommends, if it rests on data of ten minutes at least."""
    if advice.found is None:
        return Remedy(known=False, reason=advice.verdict.words.rstrip("."))
    if is_short(advice.windows):
        took, least = duration(advice.windows.seconds), duration(LEAST_S)
        return Remedy(known=False, reason=f"there are data of {took}, and it takes {least} at least")
    choice = advice.verdict.choice
    before, after = (
        None if item is None else item.held_out.summary.ratio_of_sums for item in (advice.found.base, choice)
    )
    if choice is None or before is None or after is None:
        return Remedy(reason=advice.verdict.words)
    return Remedy(
        name=name_of(choice),
        redundant=choice.redundant or 0,
        before=1 - 1 / before,
        after=1 - 1 / after,
        memory=(choice.redundant or 0) / advice.evidence.experts,
    )


def action_of(facts: Facts, links: Links) -> Action:
    """What to do about uneven EP ranks."""
    remedy = facts.remedy
    if remedy is None:
        past, soon = "this window is past; see Advice about it", "advice is being made, ask again"
        return Action(ACTIONS["not_known_yet"].format(reason=soon if facts.open_end else past))
    if not remedy.known:
        return Action(ACTIONS["not_known_yet"].format(reason=remedy.reason))
    if remedy.name is None:
        return Action(ACTIONS["no_placement_helps"].format(reason=remedy.reason))
    saved = (remedy.before - remedy.after) / remedy.before if remedy.before > 0 else 0.0
    words = ACTIONS["worth_it"].format(
        name=remedy.name,
        before=percent(remedy.before),
        after=percent(remedy.after),
        saved=percent(saved),
        memory=percent(remedy.memory) if remedy.memory else "no",
    )
    proof = links.view("advice", judge="1h"), links.api("advice", windowed=False)
    return Action(
        words,
        (
            Number("redundant experts", remedy.redundant, "number", *proof),
            Number("waiting with it, held out", remedy.after, "share", *proof),
            Number("share of the waiting that it saves, held out", saved, "share", *proof),
            Number("more memory for experts", remedy.memory, "share", *proof),
        ),
    )
