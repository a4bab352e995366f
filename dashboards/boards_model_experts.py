"""Rows of the board Model about experts: how uneven they are, and how far they have drifted."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.spec import (
    CENTRED,
    EXPERTS,
    MODEL,
    NEEDS_EXPERTS,
    Panel,
    Query,
    Row,
    least_even,
    most,
    of_fair,
)
from moescope.service.measures.balance import GAUGES

_TO_LAYER: Final = "/d/moescope-layer?var-layer=${__data.fields.layer}&${__all_variables}&${__url_time_range}"
_MAX_VIO: Final = GAUGES["max_vio"]
_ENTROPY: Final = GAUGES["normalised_entropy"]
_DEAD: Final = GAUGES["dead"]
_FAIR_THRESHOLDS: Final = ((3, "orange"), (5, "red"))
"""Of multiples of a fair share."""
_BASE: Final = "baseline, phase"
_BASE_NAME: Final = "{{baseline}}, {{phase}}"

BALANCE: Final = Row(
    "Experts",
    (
        Panel(
            "timeseries",
            "Worst MaxVio and lowest normalised entropy",
            f"Of the worst layer. {_MAX_VIO.help} {_ENTROPY.help}",
            (
                Query(f"max({_MAX_VIO.name}{{{MODEL}}})", _MAX_VIO.title),
                Query(f"min({_ENTROPY.name}{{{MODEL}}})", _ENTROPY.title),
            ),
            width=8,
            height=12,
        ),
        Panel(
            "timeseries",
            _DEAD.title,
            "Experts that no token chose in the service's window, over all layers.",
            (Query(f"sum({most(_DEAD.name, MODEL, 'server, model, layer')})", "dead"),),
            width=8,
            height=12,
        ),
        Panel(
            "table",
            "Hottest experts",
            "The twenty experts furthest above their layer's fair share. Click a value to open "
            "the layer." + NEEDS_EXPERTS,
            (Query(f"topk(20, {of_fair(EXPERTS, MODEL, 'layer', 'expert')})", "times fair share"),),
            width=8,
            height=12,
            thresholds=_FAIR_THRESHOLDS,
            link=_TO_LAYER,
        ),
        Panel(
            "matrix",
            "Layer x expert",
            "Slots of each expert in each layer, as a multiple of the layer's fair share: 1 is yellow, more "
            "is red, less is blue. Where there are over 2,000 cells, the layers with the hottest experts."
            + NEEDS_EXPERTS,
            (Query(least_even(EXPERTS, MODEL, "layer", "expert")),),
            width=24,
            height=14,
            scale=CENTRED,
            axes=("layer", "expert"),
        ),
    ),
)

DRIFT: Final = Row(
    "Drift",
    (
        Panel(
            "timeseries",
            "Drift of the median layer",
            "Jensen-Shannon divergence of the experts' shares, bits, from the hour before and from "
            "each pinned baseline, beside what sampling alone would show.",
            (
                Query(most("moescope_median_layer_drift_bits", MODEL, _BASE), _BASE_NAME),
                Query(
                    most("moescope_drift_sampling_noise_bits", MODEL, _BASE),
                    f"sampling: {_BASE_NAME}",
                ),
            ),
        ),
        Panel(
            "timeseries",
            "New dead and new hot experts",
            "Experts of all layers that lost every slot, or grew to 3 times a fair share, since the "
            "baseline. /v1/drift names them.",
            (
                Query(most("moescope_new_dead_experts", MODEL, _BASE), f"dead: {_BASE_NAME}"),
                Query(most("moescope_new_hot_experts", MODEL, _BASE), f"hot: {_BASE_NAME}"),
            ),
        ),
    ),
)
