"""What producers get as an answer, as types."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Receipt(BaseModel):
    """Answer to a frame."""

    result: Literal["accepted", "duplicate", "stale"] = Field(
        description="accepted: counted. duplicate: this seq was here before. stale: a later one was. "
        "All three leave the totals right; none needs to be sent again."
    )
    epoch: int = Field(description="The frame's epoch.")
    seq: int = Field(description="The frame's seq.")


class TraceReceipt(BaseModel):
    """Answer to a part of a trace: it is kept. Sending it again changes nothing."""

    trace: int
    part: int
    parts: int
