"""Measures in answers: their fields and descriptions are made from their declarations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from pydantic import ConfigDict, RootModel, model_validator

from moescope.service.measures.balance import MEASURES
from moescope.service.measures.measure import Measure

Values = dict[str, int | float]
"""Measure's name to its value, all of :data:`MEASURES`; a whole number is an int."""


def _field(measure: Measure) -> dict[str, Any]:
    return {
        "type": "integer" if measure.whole else "number",
        "title": measure.name.replace("_", " ").title(),
        "description": measure.description,
    }


_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {name: _field(measure) for name, measure in MEASURES.items()},
    "required": list(MEASURES),
}


def values_of(found: Mapping[str, float] | None) -> Values | None:
    """Measures of one layer along one axis as answers have them; None without a sample.

    Raises:
        KeyError: a measure is missing.
    """
    if found is None:
        return None
    return {name: int(found[name]) if item.whole else found[name] for name, item in MEASURES.items()}


def _describe(schema: dict[str, Any]) -> None:
    schema.pop("additionalProperties", None)
    schema.update(_SCHEMA)


class Measures(RootModel[Values]):
    """Measures of balance over N loads."""

    model_config = ConfigDict(json_schema_extra=_describe)

    @model_validator(mode="after")
    def _check(self) -> Measures:
        if list(self.root) != list(MEASURES):
            raise ValueError(f"measures {list(self.root)} instead of {list(MEASURES)}")
        return self


CompactMeasures = Annotated[
    Values,
    msgspec.Meta(
        title="Measures",
        description="Measures of one layer along one axis, as in /v1/balance.",
        extra_json_schema=dict(_SCHEMA),
    ),
]
