"""The expensive questions leave out no route."""

from __future__ import annotations

import re

from devkit.soak.questions import questions_about
from moescope.service.api.app import create_app
from moescope.service.settings import Settings

ELSEWHERE = {
    "/healthz",  # the probe asks it
    "/v1/live",  # answers without an end are for the gate of memory
    "/v1/pools/{pool}",  # the fleet is in no pool
}


def test_every_route_that_can_be_asked_is_asked() -> None:
    document = create_app(Settings(store=None, port=0)).openapi()
    asked = [path.partition("?")[0] for path in questions_about()]
    missing = [
        route
        for route, item in document["paths"].items()
        if "get" in item
        and route not in ELSEWHERE
        and not any(re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", route), path) for path in asked)
    ]
    assert not missing
