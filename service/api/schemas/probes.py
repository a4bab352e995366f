"""What the probes answer, as types."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The service takes frames and answers queries, whether or not someone reports yet."""

    status: Literal["ready"] = "ready"
    producers: int
    stale_producers: int
