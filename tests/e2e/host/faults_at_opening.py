"""What can go wrong while capture is opened: it stays off, and says so in frames too."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any, Final
from unittest import mock

import torch

from moescope.capture import session
from moescope.capture.attach import mixin
from moescope.capture.counting import reference
from moescope.capture.seam import identity, survey, versions
from tests.anew import executed_anew
from tests.e2e.host.injecting import (
    Case,
    Environment,
    raising,
    returning,
    setting,
)


@contextlib.contextmanager
def broken_import() -> Iterator[Environment]:
    """A module of the capturer can't be imported, as where a dependency is missing."""
    with mock.patch.dict(sys.modules, {"moescope.capture.session": None}):
        anew = executed_anew(mixin)
    with mock.patch.object(mixin, "_import_error", anew._import_error):
        yield {}


@contextlib.contextmanager
def odd_router() -> Iterator[Environment]:
    """A router without the interface that is known, found after others have been bound."""
    original = session.survey_model

    class Odd:
        capture_fn = None

    def with_odd(*args: Any, **kwargs: Any) -> survey.MoeSurvey:
        found = original(*args, **kwargs)
        odd = dataclasses.replace(found.routed[-1], router=Odd())
        return dataclasses.replace(found, routed=(*found.routed[:-1], odd))

    with mock.patch.object(session, "survey_model", with_odd):
        yield {}


AT_OPENING: Final[dict[str, Case]] = {
    "import error": Case(
        inject=broken_import, shows="capture is off, the server serves on: .*import of", state="disabled"
    ),
    "bad setting": Case(
        inject=setting(MOESCOPE_INTERVAL="soon"),
        shows="capture is off.*MOESCOPE_INTERVAL: 'soon'",
        state="disabled",
    ),
    "token file missing": Case(
        inject=setting(MOESCOPE_TOKEN_FILE="/nowhere/token"),
        shows="MOESCOPE_TOKEN_FILE: .* can't be read",
        state="disabled",
    ),
    "survey fails": Case(
        inject=raising(session, "survey_model"),
        shows="capture is off.*survey_model is broken",
        state="disabled",
    ),
    "no memory for counts": Case(
        inject=raising(reference.CountBuffers, "__init__", torch.OutOfMemoryError("no memory")),
        shows="capture is off.*OutOfMemoryError: no memory",
        state="disabled",
    ),
    "router of another kind": Case(
        inject=odd_router, shows="capture is off.*set_capture_fn", state="disabled"
    ),
    "ranks unknown": Case(
        inject=raising(session, "read_producer"),
        shows="capture is off.*read_producer is broken",
        state="disabled",
    ),
    "version can't be told": Case(
        inject=raising(identity, "vllm_version"),
        shows="capture is off.*vllm_version is broken",
        state="disabled",
    ),
    "unknown version": Case(
        inject=returning(versions, "vllm_version", "9.9.0"),
        shows="not tested with vLLM 9.9.0",
        state="counting",
        exact=True,
    ),
}
