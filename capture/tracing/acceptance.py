"""Which rows of a step belong to a trace where tokens are drafted: those of tokens that the request keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from moescope.capture.seam.ends import Finish
from moescope.capture.tracing.buffer import Trace


class Kept(NamedTuple):
    """What a trace keeps of a request's rows in a step.

    Attributes:
        rows: the first ones, that many.
        rejected: the others: of drafts that were rejected, and behind the request's end.
        accepted: how many of ``rows`` are of accepted drafts.
        complete: whether the request's last token was sampled in the step.
        reason: why the request ends with it; empty: it doesn't, or that isn't known.
    """

    rows: int
    rejected: int
    accepted: int = 0
    complete: bool = False
    reason: Finish = ""


def kept_rows(trace: Trace, first: int, count: int, drafts: int, sampled: Sequence[int] | None) -> Kept:
    """The rows that a trace keeps of `count` rows at the positions from `first` on.

    A step verifies the last `drafts` of its tokens and samples one more than it accepts. The sampled token
    that is no draft has no row yet. The request ends at its first stop token, or at its greatest length; what
    was accepted behind that is no token of it, and its last token gets no row, as without drafts.

    Args:
        trace: says where the request ends, and whether it has.
        first: the position of the first row.
        count: rows of the request.
        drafts: how many of them, the last ones, are of draft tokens.
        sampled: the tokens that were sampled for the request, none for a chunk of a prompt that does not end
            it; None: not known.

    Raises:
        LookupError: whether the request ends isn't known (see `RequestEnd.last_token`).
    """
    if trace.complete:
        return Kept(0, count)
    if sampled is None:
        return Kept(count - drafts, 0)
    if not sampled:
        return Kept(count, 0)
    accepted = min(len(sampled) - 1, drafts)
    rows = count - drafts + accepted
    last = trace.end.last_token(sampled, first + rows + 1 - len(sampled), trace.generated)
    if last is None:
        return Kept(rows, count - rows, accepted)
    accepted = min(accepted, last.place)
    rows = count - drafts + accepted
    return Kept(rows, count - rows, accepted, complete=True, reason=last.reason)
