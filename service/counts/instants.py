"""Instants that were noted by a clock which is ahead of the one that reads them.

Services that share a store tell each other instants, and a clock may be set back. What is after now was noted
by a clock that is ahead, or was; what is before now may have been noted by any clock, and may have been read
by several since. So instants after now are moved, and those before it stay: whoever reads them next, on
whatever clock, does not move them once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


def not_after(now: float, instants: Iterable[float]) -> Callable[[float], float] | None:
    """Moves instants so that none is after now; None: none of them is.

    Those after now are moved back by as much as the latest of them is ahead. Where that would bring one
    before what stays, all of them are moved closer together. So their order stays, and nothing comes further
    apart: no life seems to have gone on for longer after another one was silent.

    Args:
        now: seconds of Unix time.
        instants: all that are compared with each other, in the same units.
    """
    known = list(instants)
    newest = max(known)
    if newest <= now:
        return None
    first = min(at for at in known if at > now)
    last = max((at for at in known if at <= now), default=None)
    fits = last is None or last < now - (newest - first)
    scale = 1.0 if last is None or fits else (now - last) / (newest - last)

    def moved(at: float) -> float:
        return at if at <= now else min(now, now - (newest - at) * scale)

    return moved
