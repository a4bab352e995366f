"""vLLM's plugin: with ``MOESCOPE=1`` capture is in whatever worker class vLLM has.

vLLM loads plugins in each of its processes, in some more than once, and a plugin that raises ends the server.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from moescope.capture.settings.attachment import attachment_wanted, carry_through_ray

logger = logging.getLogger("vllm.moescope")


def attach() -> None:
    """The entry point: nothing without ``MOESCOPE``; called again it changes nothing; it never raises."""
    try:
        if attachment_wanted(os.environ):
            _attach()
    except Exception as error:  # noqa: BLE001 - an observer must not harm the server
        logger.error("moescope: capture is off, the server serves on: %r", error)


def _attach() -> None:
    from moescope.capture.seam.resolver import extend_workers

    carry_through_ray(os.environ)
    extend_workers(_extended)


def _extended(worker_class: type[Any]) -> type[Any]:
    """The class that vLLM resolved, with capture; only a process that has a worker comes here."""
    from moescope.capture.attach.mixin import extended

    return extended(worker_class)
