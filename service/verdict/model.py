"""What a verdict is made of. It is the same for the API, the command line, the page and alerts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal[
    "silent",
    "no_traffic",
    "capture_incomplete",
    "too_little_data",
    "one_expert_hot",
    "one_rank_hot",
    "ranks_hot_by_layer",
    "dp_uneven",
    "steps_only",
    "drifted",
    "balanced",
]
"""In the order of precedence: of several that are true the first is the verdict, the others are ``also``."""
Severity = Literal["ok", "info", "warning", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("ok", "info", "warning", "critical")
"""Rising."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number that a verdict rests on, and where its proof is.

    Attributes:
        name: what it is.
        value: as the API has it.
        unit: ``share`` (of 1), ``ratio``, ``tokens``, ``slots``, ``seconds``, ``steps``, ``layers``, ``bits``
            or ``id``.
        view: link to the page's view, relative to the service's address: deployment, window and view.
        api: link to the answer that has it, likewise.
    """

    name: str
    value: float
    unit: str
    view: str
    api: str


@dataclass(frozen=True, slots=True)
class Action:
    """What to do; ``numbers`` are what it would bring, and what it would cost."""

    words: str
    numbers: tuple[Number, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is true of a deployment in a window."""

    kind: Kind
    severity: Severity
    words: str
    numbers: tuple[Number, ...]
    action: Action


@dataclass(frozen=True, slots=True)
class Confidence:
    """How much data a verdict rests on.

    Attributes:
        tokens: computed in the window; None: not known.
        seconds: that the data really span.
        steps: of which the loads of all ranks are known, or else steps of the DP rank with most of them.
        layers: MoE layers that have a sample of balance over EP ranks.
        enough: whether that is enough to judge balance.
        words: a sentence that says so.
        caveats: what else limits it: estimates, several versions of the weights, a window cut short.
    """

    tokens: int | None
    seconds: float
    steps: int
    layers: int
    enough: bool
    words: str
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is the matter with a deployment.

    Attributes:
        server, model: the deployment.
        start, end: its window, seconds of Unix time; start None: since the workers' start.
        finding: what comes first in the order of precedence.
        also: what else is true, in that order.
        confidence: what the judgement of balance rests on.
    """

    server: str
    model: str
    start: float | None
    end: float
    finding: Finding
    confidence: Confidence
    also: tuple[Finding, ...] = field(default=())
