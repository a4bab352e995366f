"""What may go wrong between a client and a service."""

from __future__ import annotations


class MoescopeError(Exception):
    """The service can't be asked, or refuses; the message says what to do."""


class UnreachableError(MoescopeError):
    """No service answers."""


class ProblemError(MoescopeError):
    """The service answered with a problem (RFC 9457).

    Attributes:
        status: of HTTP.
        kind: a slug such as ``no-such-trace``; empty where the answer is not moescope's.
        detail: what is wrong and what to do.
    """

    def __init__(self, status: int, kind: str, detail: str) -> None:
        self.status, self.kind, self.detail = status, kind, detail
        super().__init__(detail)


class CutOffError(MoescopeError):
    """An answer ended before its end: the service or the connection broke off."""
