"""One DP rank's workers, whose frames a live state takes on a clock that the test moves."""

from __future__ import annotations

from typing import Any

from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.health import Mismatch, StageHealth, stages
from tests.service.frames import EPOCH, frame, producer


class Clock:
    """A service's clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_100.0

    def __call__(self) -> float:
        return self.now


class Fleet:
    """A live state that takes the frames of one DP rank's workers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.state = LiveState(Settings(), self.clock)
        self._seq = 0

    def tell(
        self,
        tp_rank: int,
        step: int,
        rows: dict[int, int],
        tokens: int,
        decode: dict[int, int] | None = None,
        decode_tokens: int = 0,
        tp_size: int = 2,
        **fields: Any,
    ) -> None:
        """One frame: rows by layer (top-1, one expert) after a step; the clock then goes on by 0.1 s."""
        self._seq += 1
        who = {key: fields.pop(key) for key in ("pp_rank", "pp_size", "dp_rank", "dp_size") if key in fields}
        made = frame(
            {layer: [number] for layer, number in rows.items()},
            top_k=1,
            who=producer(tp_rank=tp_rank, tp_size=tp_size, **who),
            seq=self._seq,
            after_s=self.clock.now - fields.get("epoch", EPOCH) / 1e9,
            tokens=tokens,
            decode=None if decode is None else {layer: [number] for layer, number in decode.items()},
            **({} if decode is None else {"decode_tokens": decode_tokens}),
            steps=step,
            **fields,
        )
        self.state.ingest(made)
        self.clock.now += 0.1

    def stage(self, pp_rank: int = 0) -> StageHealth:
        """The law at a stage of DP rank 0."""
        return stages(self.state.producers())[pp_rank]

    def broken(self) -> list[Mismatch]:
        """The layers that break the law of rows."""
        return [found for stage in stages(self.state.producers()) for found in stage.broken]
