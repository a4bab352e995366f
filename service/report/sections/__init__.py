"""The sections of a report, in their order. A new one is a module with ``section`` and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from moescope.service.report.facts import Facts
from moescope.service.report.markup import Section
from moescope.service.report.sections import advice, experts, ranks, stragglers, summary, time, worst_layers

SECTIONS: Final[tuple[Callable[[Facts], Section | None], ...]] = (
    summary.section,
    time.section,
    worst_layers.section,
    experts.section,
    ranks.section,
    stragglers.section,
    advice.section,
)
"""Each makes its section of the page, or gives None where the facts have nothing for it."""
