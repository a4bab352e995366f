"""Whether another placement of experts is worth it."""

from __future__ import annotations

from moescope.service.report.facts import Facts
from moescope.service.report.markup import Section, number, percent, table, text


def section(facts: Facts) -> Section | None:
    """The verdict, what was tried, and what the verdict rests on; None where there is one EP rank."""
    advice = facts.advice
    if advice is None:
        return None
    rows = [
        [
            text(item["name"]),
            number(item["fitted"]["ratio_of_sums"], 3),
            number(item["held_out"]["ratio_of_sums"], 3),
            percent(item["saving_fitted"]),
            percent(item["saving_held_out"]),
            number(item["copies_to_move"], 0),
            number(item["copies_in_vain"], 0),
        ]
        for item in advice["options"]
    ]
    head = [
        "placement",
        "fitted",
        "later",
        "saves: predicted",
        "held out",
        "copies to move",
        "copies in vain",
    ]
    lines = "".join(f"<li>{text(line)}</li>" for line in advice["verdict"]["evidence"])
    tried = table(head, rows) if rows else ""
    return Section(
        "Advice",
        " ".join(filter(None, (advice["short"], advice["verdict"]["words"]))),
        f"{tried}<ul>{lines}</ul>",
    )
