"""The catalogue by the names that series have in the exposition."""

from __future__ import annotations

from typing import Final

from moescope.service.metrics.catalogue import CATALOGUE
from moescope.service.metrics.family import Family


def series_names(family: Family) -> tuple[str, ...]:
    """The names of a family's series."""
    if family.kind == "histogram":
        return tuple(f"{family.name}{suffix}" for suffix in ("_bucket", "_count", "_sum"))
    return (family.name,)


FAMILY_OF: Final = {name: family for family in CATALOGUE.values() for name in series_names(family)}
