"""Where the loads of single steps go, and by what the EP rank of a slot is told."""

from __future__ import annotations

from typing import Any

import torch

from moescope.capture.counting.device_maps import DeviceMaps
from moescope.capture.counting.load_ring import LoadRing, ring_by_maps, ring_for
from moescope.capture.frames.unavailable import Unavailable
from moescope.capture.seam.eplb import EplbWatch
from moescope.capture.seam.ranks import why_no_steps
from moescope.capture.seam.survey import MoeSurvey
from moescope.capture.wire import Producer


def open_ring(
    survey: MoeSurvey,
    producer: Producer,
    vllm_config: Any,
    device: torch.device,
    unavailable: Unavailable,
    eplb: EplbWatch | None,
    microbatches: int = 1,
) -> LoadRing | None:
    """A ring of loads, if a step has the same number on all DP ranks and slots have an EP rank.

    Under EPLB only the device can tell slots by EP rank, with the ring. So where single steps don't fit,
    there is a ring for sums alone, of no `capacity`. Without EPLB the counts and the placement tell them.
    """
    if producer.ep_size < 2 or not survey.routed:
        return None
    reason = why_no_steps(vllm_config)
    if reason is not None:
        unavailable.note("steps", reason)
        return None
    if not vllm_config.parallel_config.enable_eplb:
        if survey.why_no_placement is not None:
            unavailable.note("steps", survey.why_no_placement)
        layers = [layer.spec for layer in survey.routed]
        try:
            return ring_for(layers, survey.placement, producer.ep_size, device, microbatches)
        except LookupError as error:
            unavailable.note("steps", str(error))
            return None
    try:
        if eplb is None:
            raise LookupError(unavailable.reasons().get("placement", "EPLB has no state"))
        maps = DeviceMaps(eplb.expert_maps(producer.ep_size, device), device)
    except Exception as error:  # noqa: BLE001 - counts don't need it
        no_ep_ranks(unavailable, f"which EP ranks EPLB has slots go to can't be told: {error}")
        return None
    return _ring_by_maps(maps, producer.ep_size, device, microbatches, unavailable)


def _ring_by_maps(
    maps: DeviceMaps, ep_size: int, device: torch.device, microbatches: int, unavailable: Unavailable
) -> LoadRing | None:
    """A ring; one for sums only where single steps don't fit, and none where a single one does not."""
    try:
        return ring_by_maps(maps, ep_size, device, microbatches)
    except LookupError as error:
        unavailable.note("steps", str(error))
    try:
        return ring_by_maps(maps, ep_size, device, microbatches, sums_only=True)
    except LookupError as error:
        unavailable.note("ep_slots", str(error))
        return None


def no_ep_ranks(unavailable: Unavailable, reason: str) -> None:
    """From now on it can't be told which EP ranks slots go to, nor the loads of single steps."""
    unavailable.note("steps", reason)
    unavailable.note("ep_slots", reason)
