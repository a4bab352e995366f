"""What of a folder is too old to be moved: the services on the ClickHouse would remove it at once.

The ages are those of the settings of the services. What they remove while it is moved is no difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.store.limits import Retention

MARGIN_S: Final = 120.0
"""What gets too old so soon may be gone when it is counted."""
_BUCKETS: Final = ((10_000, "fine_s"), (300_000, "middle_s"))

Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class Ages:
    """How long what is kept, as of one instant.

    Attributes:
        retention: ages.
        now_ms: milliseconds of Unix time.
    """

    retention: Retention
    now_ms: int

    def young(self, at_ms: Int64Array) -> Flags:
        """Which of a producer's snapshots stay, bool [n].

        Of old ones the last in each bucket of time stays, and the newest of all in any case.

        Args:
            at_ms: when they were true, milliseconds of Unix time, rising, int64 [n].
        """
        stay = np.ones(len(at_ms), bool)
        for bucket_ms, age in _BUCKETS:
            until = (self.now_ms - int(getattr(self.retention, age) * 1000)) // bucket_ms * bucket_ms
            bucket = at_ms // bucket_ms
            stay &= (at_ms >= until) | np.append(bucket[1:] != bucket[:-1], True)[: len(at_ms)]
        stay &= at_ms >= self.now_ms - int(self.retention.coarse_s * 1000)
        stay[-1:] = True
        return stay

    @property
    def oldest_trace_ms(self) -> int:
        """Requests that were stored before this millisecond of Unix time go."""
        return self.now_ms - int(self.retention.trace_s * 1000)
