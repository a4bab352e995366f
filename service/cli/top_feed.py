"""Asks the service for ``moescope top`` in a thread beside, so that keys are taken while it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from moescope.service.cli.top_facts import Snapshot, take
from moescope.service.cli.top_screen import Moment
from moescope.service.cli.top_state import State
from moescope.service.client.http import ServiceUnavailableError, get_json
from moescope.service.settings import SettingsError

_TIMEOUT_S: Final = 10.0
_Wanted = tuple[tuple[str | None, str | None], str]
"""Server and model, and the begin of the window."""


def asking(url: str) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """What gives the answer of the service at ``url`` at a path; it raises where there is none."""
    return lambda path, params: get_json(url, path, params, _TIMEOUT_S)


class Feed:
    """The newest snapshot, and what went wrong since.

    Args:
        url: address of the service.
        interval_s: seconds from an answer to the next question.
        first: the snapshot that there is already.
    """

    def __init__(self, url: str, interval_s: float, first: Snapshot) -> None:
        self._take = partial(take, asking(url))
        self._interval = interval_s
        self._changed = threading.Condition()
        self._snapshot = first
        self._problem = ""
        self._wanted: _Wanted = first.chosen or (None, None), ""
        self._paused = self._ended = False
        self._at_once = True

    def moment(self) -> Moment:
        """What there is now."""
        with self._changed:
            return Moment(self._snapshot, self._problem, time.time())

    def want(self, state: State) -> None:
        """Ask for what the user has chosen, at once; for nothing while he pauses."""
        with self._changed:
            self._wanted = state.deployment, state.window
            self._paused, self._at_once = state.paused, True
            self._changed.notify()

    @contextmanager
    def telling(self, tell: Callable[[], None]) -> Iterator[None]:
        """Ask again and again, and call ``tell`` after each answer."""
        self._ended = False
        # A question that has no answer yet keeps nobody from leaving.
        thread = threading.Thread(target=self._run, args=(tell,), name="moescope-top", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _run(self, tell: Callable[[], None]) -> None:
        while (wanted := self._next()) is not None:
            try:
                snapshot, problem = self._take(*wanted, time.time()), ""
            except (ServiceUnavailableError, SettingsError) as error:
                snapshot, problem = None, str(error)
            with self._changed:
                if self._ended:
                    return
                if wanted != self._wanted:
                    continue  # the user has chosen something else meanwhile
                self._snapshot = snapshot or self._snapshot
                self._problem = problem
                tell()

    def _next(self) -> _Wanted | None:
        """What to ask for, once it is time; None: nobody wants anything any more."""
        with self._changed:
            due = time.monotonic() + self._interval
            while not self._ended:
                left = due - time.monotonic()
                if not self._paused and (self._at_once or left <= 0):
                    self._at_once = False
                    return self._wanted
                self._changed.wait(None if self._paused else left)
            return None
