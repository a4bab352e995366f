"""What takes long is made beside the questions that want it, and each question gets the newest."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from moescope.service.live.large import NoRoomError
from moescope.service.live.producers import Deployment
from moescope.service.live.state import LiveState

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Made(Generic[T]):
    at: float
    version: int
    value: T


class Beside(Generic[T]):
    """Something of each deployment: made by who asks first, then anew by one thread; safe for threads.

    Args:
        what: its name, of the thread and in the log, such as "drift".
        make: makes it; an error reaches who asks first, else the log.
        state: its clock, its deployments, and what large questions may hold.
        every_s: it is made anew when it is older, seconds, and somebody asks.
        version: it is made anew, too, when this has changed.
    """

    def __init__(
        self,
        what: str,
        make: Callable[[Deployment], T],
        state: LiveState,
        every_s: float,
        version: Callable[[], int] = lambda: 0,
    ) -> None:
        self._what, self._make, self._state, self._every_s = what, make, state, every_s
        self._version = version
        self._lock = threading.Lock()
        self._made: dict[Deployment, _Made[T]] = {}
        self._busy: set[Deployment] = set()
        self._queue: deque[Deployment] = deque()
        self._working = False

    def latest(self, deployment: Deployment, may_make: Callable[[], bool] = lambda: True) -> T | None:
        """The newest; None while the first is being made by somebody else.

        Args:
            deployment: a known one.
            may_make: asked if there is none yet: whether the caller makes it now, else the thread does.
        """
        now, version = self._state.now(), self._version()
        with self._lock:
            made = self._made.get(deployment)
            fresh = made is not None and made.version == version and 0 <= now - made.at < self._every_s
            if fresh or deployment in self._busy:
                return None if made is None else made.value
            self._busy.add(deployment)
        if made is None and may_make():
            return self._keep(deployment)
        self._later(deployment)
        return None if made is None else made.value

    def _later(self, deployment: Deployment) -> None:
        """Let the thread make it: one, so that it does one after the other however many are due."""
        with self._lock:
            self._queue.append(deployment)
            if self._working:
                return
            self._working = True
        threading.Thread(target=self._work, name=f"moescope-{self._what}", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._working = False
                    return
                deployment = self._queue.popleft()
            self._refresh(deployment)

    def _refresh(self, deployment: Deployment) -> None:
        try:
            with self._state.large.question(wait_s=math.inf):
                self._keep(deployment)
        except NoRoomError as error:
            _log.warning("%s of %s can't be made. %s", self._what, deployment, error)
        except Exception:  # noqa: BLE001 whatever it is, the next question tries again
            _log.exception("%s of %s can't be made", self._what, deployment)
        finally:
            with self._lock:
                self._busy.discard(deployment)

    def _keep(self, deployment: Deployment) -> T:
        now, version = self._state.now(), self._version()
        try:
            value = self._make(deployment)
            known = set(self._state.deployments())
            with self._lock:
                self._made = {key: made for key, made in self._made.items() if key in known}
                self._made[deployment] = _Made(now, version, value)
            return value
        finally:
            with self._lock:
                self._busy.discard(deployment)
