"""Taking the bodies that producers send: within the limits, with every refusal counted and logged."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from fastapi import Request

from moescope.service.api.limits.limits import Limits
from moescope.service.api.params.bodies import client_of, receive
from moescope.service.api.problems import RefusedFrameError
from moescope.service.live.state import LiveState
from moescope.service.logs import Throttle
from moescope.service.settings import Settings

_log = logging.getLogger(__name__)


class Intake:
    """Takes bodies for the routes that producers send to.

    Args:
        state: counts refusals by their reason.
        settings: bounds of one body.
        limits: bounds of all bodies together, and of each address.
    """

    def __init__(self, state: LiveState, settings: Settings, limits: Limits) -> None:
        self._state = state
        self._settings = settings
        self._limits = limits
        self._throttle = Throttle(state.now)

    @asynccontextmanager
    async def body_of(
        self, request: Request, content_type: str, kind: Literal["frame", "trace"]
    ) -> AsyncIterator[bytes]:
        """The body of a request. Until the block ends its bytes count towards ``max_waiting_mib``.

        A refusal is counted and logged, also one that the block raises.

        Raises:
            RefusedFrameError: see :func:`receive` and :meth:`Limits.body_of`.
        """
        try:
            with self._limits.body_of(client_of(request)) as took:
                yield await receive(request, self._settings, content_type, took)
        except RefusedFrameError as error:
            self._state.count_refused(error.reason)
            if self._throttle.allows(f"{kind} {error.reason}"):
                _log.warning("refused a %s (logged once a minute): %s", kind, error)
            raise
