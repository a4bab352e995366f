"""Parameters of questions about one traced request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from moescope.service.api.params.query import LARGEST

TraceServerParam = Annotated[
    str | None, Query(description="vLLM deployment; needed when several have a request of this id.")
]
TraceModelParam = Annotated[
    str | None, Query(description="Model; needed when several have a request of this id.")
]
TracedPoolParam = Annotated[
    str | None,
    Query(description="Only requests of deployments that were of this pool then (MOESCOPE_POOL)."),
]
FirstParam = Annotated[int, Query(ge=0, le=LARGEST, description="First position.")]
EndPositionParam = Annotated[int | None, Query(ge=0, le=LARGEST, description="Position to end before.")]
SampleParam = Annotated[
    int | None,
    Query(ge=0, le=LARGEST, description="Which of several samples (n > 1) of a completion, from 0 on."),
]
