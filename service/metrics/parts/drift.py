"""Drift of each deployment for /metrics."""

from __future__ import annotations

from collections.abc import Iterable

from moescope.service.drift.measure import summary_of
from moescope.service.drift.watch import Drifted
from moescope.service.live.producers import Deployment
from moescope.service.metrics.parts.ranks import Found
from moescope.service.metrics.samples import Sample


def drift_gauges(deployment: Deployment, found: Iterable[Drifted]) -> Iterable[Found]:
    """Divergence from each base, new dead and new hot experts; without a sample there is no series."""
    for drifted in found:
        phase = drifted.phase or "all"
        summary = summary_of(list(drifted.layers))
        if summary.worst is not None and summary.median is not None and summary.noise is not None:
            labels = (*deployment, drifted.base, phase)
            yield Sample("moescope_worst_layer_drift_bits", labels, summary.worst)
            yield Sample("moescope_median_layer_drift_bits", labels, summary.median)
            yield Sample("moescope_drift_sampling_noise_bits", labels, summary.noise)
            yield Sample("moescope_new_dead_experts", labels, summary.new_dead)
            yield Sample("moescope_new_hot_experts", labels, summary.new_hot)
        for layer in drifted.layers:
            if layer.divergence is not None:
                at = (*deployment, str(layer.layer), drifted.base, phase)
                yield Sample("moescope_layer_drift_bits", at, layer.divergence)
                yield Sample("moescope_layer_new_dead_experts", at, len(layer.new_dead))
                yield Sample("moescope_layer_new_hot_experts", at, len(layer.new_hot))
