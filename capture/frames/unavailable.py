"""What a worker can't tell, and why: it is said in the log once, and in every frame."""

from __future__ import annotations

import logging
from typing import Literal

logger = logging.getLogger("vllm.moescope")

Part = Literal["phases", "traces", "placement", "steps", "drafts", "ep_slots"]


class Unavailable:
    """Collects the reasons; the first one of each part stays.

    Until `announce` they are only kept, so that one line in the log has all that this vLLM lacks. Later ones
    get a line each. Any thread may read. The steps' thread and the sender's may note a part at the same time:
    the worst of it is a second line.
    """

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._announced = False

    def note(self, part: Part, reason: str) -> None:
        """From now on this part can't be told."""
        if part in self._reasons:
            return
        self._reasons[part] = reason
        if self._announced:
            logger.error("moescope: from here on not available: %s (%s); counting goes on", part, reason)

    def announce(self, vllm_version: str) -> None:
        """Write the line; nothing if all can be told."""
        self._announced = True
        if self._reasons:
            said = "; ".join(f"{part} ({reason})" for part, reason in self._reasons.items())
            logger.warning("moescope: not available with vLLM %s: %s; counting goes on", vllm_version, said)

    def reasons(self) -> dict[str, str]:
        """The reason of each part that can't be told, as in `Frame.unavailable`."""
        return dict(self._reasons)
