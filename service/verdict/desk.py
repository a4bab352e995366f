"""Answers for verdicts, cheap enough to be asked for by every open page each second.

A verdict is made from one look at a window, as /v1/view is, and kept for a second. What takes longer, advice
and drift on the last hour, is made beside: the first time by who asks, then by a thread of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from moescope.service.advice.advise import (
    DEFAULT_FIT_SHARE,
    DEFAULT_MEMORY_PRICE,
    DEFAULT_MIN_GAIN,
    AdviceWish,
    UnanswerableError,
    advise,
)
from moescope.service.drift.watch import DriftWatch
from moescope.service.live.beside import Beside
from moescope.service.live.large import NoRoomError
from moescope.service.live.producers import Deployment
from moescope.service.live.state import LiveState
from moescope.service.store.records import StoreError
from moescope.service.verdict.facts import Facts, Remedy
from moescope.service.verdict.gather import Question, drift_of, facts_of
from moescope.service.verdict.judge import judge
from moescope.service.verdict.model import Verdict
from moescope.service.verdict.remedies import remedy_of
from moescope.service.verdict.waiting import is_uneven
from moescope.service.windows.weights import changed_within
from moescope.service.windows.window import ModelWindow

DRIFT_LATER: Final = "drift is being measured, ask again"
KEEP_S: Final = 1.0
"""For so long a verdict is kept while time passes."""
MOST_KEPT: Final = 256
"""Verdicts that are kept, at most: each has a few kilobytes."""
ADVICE_S: Final = 60.0
"""Advice is made anew so often at most, and only while a verdict wants it."""
MOST_FIRSTS: Final = 4
"""First advices and first measures of drift that a question makes, at most: those of two deployments."""
HOUR_S: Final = 3600.0
_log = logging.getLogger(__name__)

Key = tuple[Deployment, str, str]
"""A deployment, and begin and end of a window as they were asked for."""


class Firsts:
    """How many first advices, and first measures of drift, one question may still make itself.

    Each reads an hour and takes a good part of a second; the others are made beside, one after the other.
    """

    def __init__(self, most: int = MOST_FIRSTS) -> None:
        self._left = most

    def take(self) -> bool:
        """Whether there is one more."""
        self._left -= 1
        return self._left >= 0


@dataclass(frozen=True, slots=True)
class _Kept:
    at: float
    frames: int
    verdict: Verdict


class VerdictDesk:
    """Verdicts on the deployments of a state; safe for threads.

    Args:
        state: what the service knows.
        drift: drift of each deployment, refreshed beside.
        min_tokens: fewer tokens are no sample.
        partial_of: why a window shows a part of its deployment only.
    """

    def __init__(
        self,
        state: LiveState,
        drift: DriftWatch,
        min_tokens: int,
        partial_of: Callable[[ModelWindow], str | None],
    ) -> None:
        self._state, self._drift, self._min_tokens = state, drift, min_tokens
        self._partial_of = partial_of
        self._remedies = Beside("advice", self._remedy, state, ADVICE_S)
        self._lock = threading.Lock()
        self._kept: dict[Key, _Kept] = {}

    def verdict(
        self,
        deployment: Deployment,
        start: float | None,
        end: float | None,
        name: Key,
        firsts: Firsts | None = None,
    ) -> Verdict:
        """The verdict on a deployment in a window.

        Args:
            deployment: a known one.
            start, end: seconds of Unix time; None is unbounded.
            name: what the verdict is kept under; the same question later has the same name.
            firsts: what a question on several deployments may still make; None: of one deployment.

        Raises:
            StoreError: the archive can't be read.
            UnwantedError: nobody waits for it any more.
        """
        now, frames = self._state.now(), sum(self._state.frames().values())
        with self._lock:
            kept = self._kept.get(name)
        if kept is not None and (0 < now - kept.at < KEEP_S or (now == kept.at and frames == kept.frames)):
            return kept.verdict
        made = judge(self._facts(deployment, Question(start, end, now, self._min_tokens), firsts or Firsts()))
        with self._lock:
            self._kept.pop(name, None)
            while len(self._kept) >= MOST_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[name] = _Kept(now, frames, made)
        return made

    def _facts(self, deployment: Deployment, question: Question, firsts: Firsts) -> Facts:
        spans = self._state.spans(deployment, question.start, question.end)
        facts = facts_of(question, spans, lambda: self._state.placements(deployment), self._partial_of)
        if not facts.open_end or facts.silence is not None or not facts.tokens or facts.too_little:
            return facts
        remedy = self._remedies.latest(deployment, firsts.take) if is_uneven(facts) else None
        try:
            drifted = self._drift.newest(deployment, firsts.take)
        except (NoRoomError, StoreError) as error:
            _log.warning("a verdict on %s has no drift: %s", deployment, error)
            return replace(facts, remedy=remedy)
        caveats = (*facts.caveats, DRIFT_LATER) if drifted is None else facts.caveats
        return replace(facts, remedy=remedy, drift=drift_of(drifted or ()), caveats=caveats)

    def _remedy(self, deployment: Deployment) -> Remedy:
        """What advice on the last hour says; it reads the hour, and takes a good part of a second."""
        now = self._state.now()
        try:
            since = changed_within(self._state, deployment, now - HOUR_S, None)
            start = now - HOUR_S if since is None else since
            return remedy_of(advise(self._state, deployment, start, None, self._wish))
        except (UnanswerableError, NoRoomError, StoreError) as error:
            return Remedy(known=False, reason=str(error).rstrip("."))

    @property
    def _wish(self) -> AdviceWish:
        """As /v1/advice asks where nothing is said."""
        return AdviceWish(
            ranks=None,
            nodes=None,
            groups=1,
            redundant=(),
            fit_share=DEFAULT_FIT_SHARE,
            min_gain=DEFAULT_MIN_GAIN,
            memory_price=DEFAULT_MEMORY_PRICE,
            min_tokens=self._min_tokens,
        )
