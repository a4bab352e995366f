"""Whether nothing comes from a deployment any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from moescope.service.live.producers import ProducerState

SILENT_S: Final = 60.0
"""A deployment of which no worker has sent anything for so long is silent, if each of them is stale too."""


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing comes from any worker for ``age`` seconds; ``ended``: all of them shut down in order."""

    age: float
    ended: bool


def silence_of(producers: Sequence[ProducerState]) -> Silence | None:
    """Whether a deployment is silent, and for how long; None: it isn't.

    Args:
        producers: those of the deployment, one at least; who is gone doesn't count while others are not.
    """
    age = min(item.age for item in producers)
    waited = [item for item in producers if item.gone is None]
    if not waited:
        return Silence(age, ended=True)
    age = min(item.age for item in waited)
    if age < SILENT_S or not all(item.stale for item in waited):
        return None
    return Silence(age, ended=False)
