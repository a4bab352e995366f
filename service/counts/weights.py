"""Which weights a producer has, and how much it counted with others before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from moescope.capture.wire import Frame


class WeightsWish(StrEnum):
    """Which weights a question is about."""

    LATEST = "latest"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class WeightsTold:
    """What frames have told of a producer's weights up to some totals.

    Attributes:
        version, label: see :class:`moescope.capture.wire.Frame`; a version counts within its epoch.
        at: when the first frame with these weights came, after one with others; seconds of Unix time on the
            service's clock. 0: they were never others.
        tokens: how many tokens had been counted by then. What came later is of these weights alone.
    """

    version: int = 0
    label: str = ""
    at: float = 0.0
    tokens: int = 0


def weights_after(
    before: WeightsTold, frame: Frame, at: float, *, former_epoch: int | None, tokens: tuple[int, int]
) -> WeightsTold:
    """What is told once a newest frame came.

    A worker that starts again has the weights that it loads: those are taken for the same as before only if
    they were not changed in either epoch.

    Args:
        before: what was told before.
        frame: the newest frame.
        at: when it came.
        former_epoch: the epoch of the frame before it; None: it is the first.
        tokens: counted before this frame, and with it.
    """
    version, label = frame.weights_version, frame.weights_label
    same = (version, label) == (before.version, before.label)
    if not version and (same or former_epoch is None):
        return replace(before, label=label)
    if same and former_epoch == frame.epoch:
        return before
    # The tokens that a frame adds may be of the weights before it, but for those of weights as loaded.
    return WeightsTold(version, label, at, tokens[1] if version else tokens[0])


def weights_after_late(before: WeightsTold, frame: Frame, at: float, tokens: int) -> WeightsTold:
    """What is told once a frame of a life came that doesn't count at present.

    What it adds is of former weights, unless no weights were ever changed.

    Args:
        before: what was told before.
        frame: the frame.
        at: when it came.
        tokens: counted with this frame.
    """
    unlike = (frame.weights_version, frame.weights_label) != (before.version, before.label)
    if not (unlike or before.at):
        return before  # both lives have the weights that they loaded
    return replace(before, at=before.at or at, tokens=tokens)
