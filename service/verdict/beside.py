"""What takes long is made beside the questions that want it, and each question gets the newest."""

from __future__ import annotations

import logging
import math
import threading
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
    value: T


class Beside(Generic[T]):
    """Something of each deployment: made by who asks first, then anew by a thread; safe for threads.

    Args:
        make: makes it; an error reaches who asks first, else the log.
        state: its clock, its deployments, and what large questions may hold.
        every_s: it is made anew when it is older, seconds, and somebody asks.
    """

    def __init__(self, make: Callable[[Deployment], T], state: LiveState, every_s: float) -> None:
        self._make, self._state, self._every_s = make, state, every_s
        self._lock = threading.Lock()
        self._made: dict[Deployment, _Made[T]] = {}
        self._busy: set[Deployment] = set()

    def latest(self, deployment: Deployment) -> T | None:
        """The newest; None while another one makes the first."""
        now = self._state.now()
        with self._lock:
            made = self._made.get(deployment)
            fresh = made is not None and 0 <= now - made.at < self._every_s
            if fresh or deployment in self._busy:
                return None if made is None else made.value
            self._busy.add(deployment)
        if made is None:
            return self._keep(deployment)
        threading.Thread(
            target=self._refresh, args=(deployment,), name="moescope-advice", daemon=True
        ).start()
        return made.value

    def _refresh(self, deployment: Deployment) -> None:
        try:
            with self._state.large.question(wait_s=math.inf):
                self._keep(deployment)
        except NoRoomError as error:
            _log.warning("advice on %s can't be made. %s", deployment, error)
        except Exception:  # noqa: BLE001 whatever it is, the next question tries again
            _log.exception("advice on %s can't be made", deployment)

    def _keep(self, deployment: Deployment) -> T:
        now = self._state.now()
        try:
            value = self._make(deployment)
            known = set(self._state.deployments())
            with self._lock:
                self._made = {key: made for key, made in self._made.items() if key in known}
                self._made[deployment] = _Made(now, value)
            return value
        finally:
            with self._lock:
                self._busy.discard(deployment)
