"""Which requests are traced: the same answer on every rank, from the request alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceSampling:
    """Which requests to trace.

    Attributes:
        rate: share of the requests, 0 to 1, chosen by a hash of the id that the client knows.
        opt_in: requests may ask for their trace.
    """

    rate: float = 0.0
    opt_in: bool = False

    @property
    def any(self) -> bool:
        """Whether any request may be traced."""
        return self.rate > 0 or self.opt_in

    def wants(self, client_id: str, opted_in: bool) -> bool:
        """Whether to trace the request with this id."""
        if opted_in and self.opt_in:
            return True
        return _fraction(client_id) < self.rate


def _fraction(client_id: str) -> float:
    """A number in [0, 1), spread evenly over ids."""
    digest = hashlib.blake2b(client_id.encode(), digest_size=6, person=b"moescope").digest()
    return int.from_bytes(digest, "big") / 2**48
