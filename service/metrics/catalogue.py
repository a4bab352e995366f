"""The catalogue of metrics: every family that ``/metrics`` can show, as data.

Per-step quantities are counters, so that a rate never loses the steps between two scrapes. Gauges are what
was true over the last window (setting ``window_s``); without a sample they have no series at all. The gauges
of measures of a layer are made from the measures' declarations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from moescope.service.metrics.catalogue_counts import COUNTS
from moescope.service.metrics.catalogue_health import HEALTH
from moescope.service.metrics.catalogue_windows import WINDOWS
from moescope.service.metrics.family import Family

CATALOGUE: Final[Mapping[str, Family]] = {family.name: family for family in (*COUNTS, *WINDOWS, *HEALTH)}
