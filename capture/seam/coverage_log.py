"""What vLLM's log says of a model's layers once they are surveyed."""

from __future__ import annotations

import logging

from moescope.capture.seam.deployment import DeploymentName
from moescope.capture.seam.survey import MoeSurvey
from moescope.capture.settings.environment import CaptureSettings

logger = logging.getLogger("vllm.moescope")


def log_coverage(survey: MoeSurvey, settings: CaptureSettings, deployment: DeploymentName) -> None:
    """Say where frames go and, of each layer that isn't counted, why."""
    logger.info(
        "moescope: counting %d MoE layers for the deployment %r (from %s), sending to %s every %g s",
        len(survey.routed),
        *deployment,
        settings.endpoint,
        settings.interval,
    )
    for layer in survey.uncovered:
        logger.warning("moescope: layer %d is not covered: %s", layer.layer, layer.reason)
    for layer in survey.absent:
        logger.error("moescope: layer %d is absent: %s", layer.layer, layer.reason)
    if survey.absent_unnamed:
        logger.error("moescope: MoE layers are absent: %s", survey.absent_unnamed)
    if survey.slower is not None:
        logger.warning(
            "moescope: decode is slower than without capture: %s; MOESCOPE_LEAVE_FAST_KERNELS=1 leaves these "
            "layers alone",
            survey.slower,
        )
