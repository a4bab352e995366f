"""docs/security.md says of each answer what bounds it, with the numbers that the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moescope.service.advice import advise
from moescope.service.api.app import create_app
from moescope.service.api.params import query
from moescope.service.api.routes import coactivation, histogram, placement_now, stragglers, trend
from moescope.service.api.schemas.coactivation import MAX_MATRIX
from moescope.service.drift.baseline import MAX_BASELINES
from moescope.service.settings import Settings
from moescope.service.traces.coactivation import MAX_EXPERTS
from moescope.service.traces.finding import MAX_PARTS, MAX_REFERENCES
from moescope.service.traces.plan import MAX_RUNS
from moescope.service.traces.routing import MAX_POSITIONS
from moescope.service.verdict.desk import MOST_KEPT

TEXT = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
ROWS = {
    path: bound
    for paths, bound in re.findall(r"^\| (`/[^|]*) \| (.*) \|$", TEXT, re.MULTILINE)
    for path in re.findall(r"`([^`]+)`", paths)
}


def test_every_answer_has_a_bound() -> None:
    paths = {
        getattr(route, "path", "").replace(":path}", "}")
        for route in create_app(Settings()).routes
        if "GET" in (getattr(route, "methods", None) or ())
    }
    asked = {path for path in paths if path.startswith("/v1/") or path == "/metrics"}
    assert set(ROWS) == asked


@pytest.mark.parametrize(
    ("path", "numbers"),
    [
        ("/v1/traces/{request_id}", [MAX_POSITIONS]),
        ("/v1/requests/{request_id}/routing", [MAX_PARTS, MAX_REFERENCES, MAX_RUNS]),
        ("/v1/coactivation", [MAX_EXPERTS, MAX_MATRIX, coactivation._AT_ONCE]),
        ("/v1/histogram", [histogram.MAX_NUMBERS, query.MAX_STEPS]),
        ("/v1/stragglers", [stragglers.MAX_WORK, stragglers.MAX_CELLS]),
        ("/v1/trend", [trend.MAX_POINTS]),
        ("/v1/placement", [placement_now.MAX_NUMBERS, placement_now.MAX_COPIES]),
        ("/v1/verdict", [MOST_KEPT]),
        ("/v1/baselines", [MAX_BASELINES]),
    ],
)
def test_the_numbers_are_those_of_the_code(path: str, numbers: list[int]) -> None:
    told = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", ROWS[path])]
    assert set(numbers) <= set(told)
    assert advise.MAX_WORK == 1 << 30
