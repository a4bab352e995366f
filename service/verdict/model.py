"""What a verdict is made of. It is the same for the API, the command line, the page and alerts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, get_args

Kind = Literal[
    "silent",
    "no_traffic",
    "capture_incomplete",
    "part_only",
    "too_little_data",
    "one_expert_hot",
    "one_rank_hot",
    "ranks_hot_by_layer",
    "dp_uneven",
    "steps_only",
    "drifted",
    "balanced",
]
"""In the order of precedence among findings of one severity; see :func:`precedence`."""
Severity = Literal["ok", "info", "warning", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("ok", "info", "warning", "critical")
"""Rising."""
Unit = Literal["share", "ratio", "number", "layers", "tokens", "seconds", "bits", "id"]
"""``share`` is of 1; ``id`` is the number of a layer, rank or expert."""
HowFar = Literal["chance", "little", "drifted"]
"""What routing against a base shows: no more than chance, more but little, or drift."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number that a verdict rests on, and where its proof is.

    Attributes:
        name: what it is.
        value: as the API has it.
        unit: what it is a number of.
        view: link to the page's view, relative to the service's address: deployment, window and view.
        api: link to the answer that has it, likewise.
    """

    name: str
    value: float
    unit: Unit
    view: str
    api: str

    @property
    def text(self) -> str:
        """The value for people, with its unit."""
        if self.unit == "share":
            return f"{100 * self.value:.1f} %"
        if self.unit == "ratio":
            return f"{self.value:.3f}"
        if self.unit == "bits":
            return f"{self.value:.4f} bits"
        if self.unit == "seconds":
            return f"{self.value:,.0f} s"
        return f"{self.value:.0f}" if self.unit == "id" else f"{self.value:,.0f}"


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


def precedence(finding: Finding) -> tuple[int, bool, int]:
    """Where a finding comes among others: a key to sort by; the first is the verdict.

    The gravest is first. Of those that are as grave, what capture misses comes behind what is true of the
    layers that it sees, unless it makes numbers wrong (critical); the others are in the order of ``Kind``.
    """
    behind = finding.kind in ("capture_incomplete", "part_only") and finding.severity == "warning"
    return -SEVERITIES.index(finding.severity), behind, get_args(Kind).index(finding.kind)


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
        finding: what comes first; see :func:`precedence`.
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
