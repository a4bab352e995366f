"""What /v1/verdict answers, as types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from pydantic import BaseModel, Field

from moescope.service.verdict.model import Finding, Kind, Number, Severity, Unit, Verdict

_VIEW = "Link to the page's view that shows it, relative to the service's address."
_API = "Link to the answer that has it, relative to the service's address."


class NumberOut(BaseModel):
    """A number that a verdict rests on."""

    name: str
    value: float
    unit: Unit = Field(description="share: of 1; id: number of a layer, rank or expert.")
    text: str = Field(description="The value for people, with its unit.")
    view: str = Field(description=_VIEW)
    api: str = Field(description=_API)


class ActionOut(BaseModel):
    """What to do, and what it would bring and cost."""

    words: str
    numbers: list[NumberOut]


class FindingOut(BaseModel):
    """One thing that is true of a deployment in the window."""

    kind: Kind = Field(description="See docs/verdict.md.")
    severity: Severity
    words: str = Field(description="One or two sentences, for people.")
    numbers: list[NumberOut]
    action: ActionOut


class ConfidenceOut(BaseModel):
    """How much data a verdict rests on."""

    tokens: int | None = Field(description="Computed in the window; null: not known.")
    seconds: float = Field(description="That the data really span.")
    steps: int = Field(
        description="Steps of which the loads of all ranks are known, or else those of the busiest DP rank."
    )
    layers: int = Field(description="MoE layers that have a sample of balance over EP ranks.")
    enough: bool = Field(description="Whether that is enough to judge balance.")
    words: str
    caveats: list[str]


class VerdictOut(FindingOut):
    """The verdict on one deployment: the gravest that is true, and what else is true."""

    server: str
    model: str
    start: float | None = Field(description="The window, Unix seconds; null: since the workers' start.")
    end: float
    confidence: ConfidenceOut
    also: list[FindingOut] = Field(description="What else is true, the gravest first.")


class Verdicts(BaseModel):
    """The verdicts on the deployments that were asked about, the gravest first."""

    now: float = Field(description="Unix seconds on the service's clock.")
    severity: Severity = Field(description="The gravest of them; info without a deployment.")
    words: str = Field(description="The gravest one in a line.")
    verdicts: list[VerdictOut]


def verdict_out(verdict: Verdict) -> VerdictOut:
    """One deployment's."""
    return VerdictOut.model_validate(
        {
            **_finding(verdict.finding).model_dump(),
            "server": verdict.server,
            "model": verdict.model,
            "start": verdict.start,
            "end": verdict.end,
            "confidence": asdict(verdict.confidence),
            "also": [_finding(item) for item in verdict.also],
        }
    )


def _finding(finding: Finding) -> FindingOut:
    action = ActionOut(words=finding.action.words, numbers=_numbers(finding.action.numbers))
    return FindingOut(
        kind=finding.kind,
        severity=finding.severity,
        words=finding.words,
        numbers=_numbers(finding.numbers),
        action=action,
    )


def _numbers(numbers: Sequence[Number]) -> list[NumberOut]:
    return [NumberOut(**asdict(number), text=number.text) for number in numbers]
