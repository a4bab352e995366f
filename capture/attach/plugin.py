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
    _pass_on_launch()
    extend_workers(_extended)


def _pass_on_launch() -> None:
    """Tell the workers which API server started them: Ray's are no children of it."""
    from moescope.capture.seam.deployment import name_of_server, this_place
    from moescope.capture.settings.surroundings import pass_on_launch

    try:
        name = name_of_server(this_place())
        if name is not None:
            pass_on_launch(os.environ, name)
    except Exception as error:  # noqa: BLE001 - names are plainer then
        logger.warning("moescope: what started this process can't be told: %r", error)


def _extended(worker_class: type[Any]) -> type[Any]:
    """The class that vLLM resolved, with capture; only a process that has a worker comes here."""
    from moescope.capture.attach.mixin import extended

    return extended(worker_class)
