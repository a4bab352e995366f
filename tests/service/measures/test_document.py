"""What is made from the declarations of measures: documents, page, answers, metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from moescope.service.api.schemas.measures import Measures, values_of
from moescope.service.api.schemas.requests import ConcentratedOut, SimilarOut, UnusualOut
from moescope.service.measures.balance import GAUGES, MEASURES, measure_all
from moescope.service.measures.document import (
    BEGIN,
    END,
    SCRIPT,
    script,
    table,
    table_of_requests,
    with_tables,
)
from moescope.service.measures.requests import REQUEST_MEASURES
from moescope.service.metrics.catalogue import CATALOGUE

DOCUMENT = Path(__file__).parents[3] / "docs" / "measures.md"
HOW = "is not what the declarations say; run: python -m moescope.service.measures.document docs/measures.md"


def test_the_documents_table_is_made_from_the_declarations() -> None:
    text = DOCUMENT.read_text()
    same = with_tables(text) == text
    assert same, f"docs/measures.md {HOW}"
    assert all(f"`{name}`" in table() for name in MEASURES)
    assert all(f"`{name}`" in table_of_requests() for name in REQUEST_MEASURES)


def test_a_document_without_a_place_for_the_table_is_refused() -> None:
    for lacking in ("# Measures\n", f"{BEGIN}{END}# Measures\n"):
        with pytest.raises(ValueError, match="has no lines"):
            with_tables(lacking)


def test_the_pages_module_is_made_from_the_declarations() -> None:
    same = SCRIPT.read_text() == script()
    assert same, f"{SCRIPT.name} {HOW}"


def test_answers_about_requests_have_every_measure() -> None:
    known = {*UnusualOut.model_fields, *ConcentratedOut.model_fields, *SimilarOut.model_fields}
    assert known >= set(REQUEST_MEASURES)


def test_every_gauge_of_a_measure_is_in_the_catalogue_with_its_unit() -> None:
    for gauge in GAUGES.values():
        for item in (gauge, gauge.limit):
            if item is not None:
                family = CATALOGUE[item.name]
                assert family.help == item.help
                assert family.unit in ("ratio", "experts")


def test_answers_have_every_measure_with_what_it_means() -> None:
    schema = Measures.model_json_schema()
    assert schema["required"] == list(schema["properties"]) == list(MEASURES)
    for name, measure in MEASURES.items():
        field = schema["properties"][name]
        assert measure.formula in field["description"]
        assert field["type"] == ("integer" if measure.whole else "number")


def test_answers_are_refused_where_a_measure_is_missing() -> None:
    found = {name: float(value) for name, value in measure_all([3, 1, 0]).items()}
    values = values_of(found)
    assert values is not None
    assert Measures(values).model_dump() == values
    whole = [name for name, value in values.items() if isinstance(value, int)]
    assert whole == [name for name, measure in MEASURES.items() if measure.whole]
    assert "dead" in whole
    assert values_of(None) is None
    del values["gini"]
    with pytest.raises(ValidationError):
        Measures(values)
