"""What the worker's log says of a model's layers once they are surveyed."""

from __future__ import annotations

import logging

import pytest

from moescope.capture.seam.coverage_log import log_coverage
from moescope.capture.seam.deployment import DeploymentName
from moescope.capture.seam.survey import MoeSurvey
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.wire import UncoveredLayer


def said(survey: MoeSurvey, caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Levels and lines, without the first, which says where frames go."""
    caplog.clear()
    logging.getLogger("vllm.moescope").addHandler(caplog.handler)
    try:
        log_coverage(survey, CaptureSettings(), DeploymentName("gpu-17:8000", "its port"))
    finally:
        logging.getLogger("vllm.moescope").removeHandler(caplog.handler)
    lines = dict.fromkeys((record.levelname, record.getMessage()) for record in caplog.records)
    return [line for line in lines if "sending to" not in line[1] and "not tested" not in line[1]]


def test_absent_layers_are_errors_and_the_others_warnings(caplog: pytest.LogCaptureFixture) -> None:
    survey = MoeSurvey(
        routed=(),
        uncovered=(UncoveredLayer(5, "monolithic kernel"),),
        placement=None,
        absent=(UncoveredLayer(7, "nothing that routes was found in it"),),
        absent_unnamed="others are not found",
        slower="a front",
    )
    assert said(survey, caplog) == [
        ("WARNING", "moescope: layer 5 is not covered: monolithic kernel"),
        ("ERROR", "moescope: layer 7 is absent: nothing that routes was found in it"),
        ("ERROR", "moescope: MoE layers are absent: others are not found"),
        (
            "WARNING",
            "moescope: decode is slower than without capture: a front; MOESCOPE_LEAVE_FAST_KERNELS=1 leaves "
            "these layers alone",
        ),
    ]


def test_a_model_that_is_whole_has_no_such_line(caplog: pytest.LogCaptureFixture) -> None:
    assert said(MoeSurvey(routed=(), uncovered=(), placement=None), caplog) == []
