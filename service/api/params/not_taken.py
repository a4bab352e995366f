"""Filters that have no meaning at some routes, and why; and what people mean by words that are none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_STEPS: Final = (
    "a step waits for the busiest EP rank with the tokens of all DP ranks and both phases, so the loads of "
    "single steps are not told by either"
)
_ALL_LAYERS: Final = (
    "a placement is judged over all layers at once; fitted_by_layer and held_out_by_layer tell"
)
_ALL_TOKENS: Final = "a placement serves the tokens of all DP ranks and both phases at once"
_NOW: Final = "the placement is that of now; GET /v1/advice/rearrangements tells when it changed"
_WHERE: Final = "where an expert is does not depend on whose tokens, or tokens of which phase, go to it"
_SINCE_START: Final = (
    "this route tells what is so now, and totals since the start; /v1/view and /v1/histogram take a window"
)
_TRACE_PHASE: Final = "a trace is of a whole request, whose prompt_tokens tell where its decoding begins"
_ONE_TRACE: Final = "a trace is whole; first and end choose positions of it"
_WHOLE: Final = "an export has whole requests; GET /v1/traces/{id} gives positions of one"
_POOL: Final = "a pool is compared over whole deployments; /v1/compare and /v1/balance take this of one"
_ALL_POOLS: Final = "this route lists all pools; /v1/pools/{pool} tells of one, /v1/ranks?pool= of its ranks"
_PINNED: Final = "a baseline is of a deployment and pinned whole; GET /v1/drift?phase= compares one phase"
_VERDICT: Final = (
    "a verdict is on a whole deployment; /v1/view and /v1/balance take this, and it has links to them"
)

WHY: Final[Mapping[str, Mapping[str, str]]] = {
    "/v1/advice": {"layer": _ALL_LAYERS, "dp_rank": _ALL_TOKENS, "phase": _ALL_TOKENS},
    "/v1/advice/placement": {
        "layer": "the map is of all layers, as what loads it wants it",
        "dp_rank": _ALL_TOKENS,
        "phase": _ALL_TOKENS,
    },
    "/v1/advice/rearrangements": {
        "layer": "a rearrangement is judged over all its layers at once",
        "dp_rank": _ALL_TOKENS,
        "phase": _ALL_TOKENS,
    },
    "/v1/baselines": dict.fromkeys(("layer", "dp_rank", "phase", "start", "end"), _PINNED),
    "/v1/baselines/{name}": dict.fromkeys(("layer", "dp_rank", "phase", "start", "end"), _PINNED),
    "/v1/coactivation": {"phase": _TRACE_PHASE},
    "/v1/placement": {"dp_rank": _WHERE, "phase": _WHERE, "start": _NOW, "end": _NOW},
    "/v1/pools": {
        **dict.fromkeys(("layer", "dp_rank", "phase"), _POOL),
        **dict.fromkeys(("pool", "server"), _ALL_POOLS),
    },
    "/v1/pools/{pool}": dict.fromkeys(("server", "layer", "dp_rank", "phase"), _POOL),
    "/v1/ranks": dict.fromkeys(("layer", "phase", "start", "end"), _SINCE_START),
    "/v1/requests/concentrated": {"phase": _TRACE_PHASE},
    "/v1/requests/histogram": {"phase": _TRACE_PHASE},
    "/v1/requests/similar": {"phase": _TRACE_PHASE},
    "/v1/requests/unusual": {"phase": _TRACE_PHASE},
    "/v1/stragglers": {"dp_rank": _STEPS, "phase": _STEPS},
    "/v1/traces": {"phase": _TRACE_PHASE},
    "/v1/traces/export": {"phase": _TRACE_PHASE, "first": _WHOLE},
    "/v1/requests/{request_id}/routing": {"phase": _TRACE_PHASE, "start": _ONE_TRACE},
    "/v1/requests/{request_id}/routing.{suffix}": {"phase": _TRACE_PHASE, "start": _ONE_TRACE},
    "/v1/traces/{request_id}": {"phase": _TRACE_PHASE, "start": _ONE_TRACE},
    "/v1/verdict": dict.fromkeys(("layer", "dp_rank", "phase"), _VERDICT),
}
"""Route to filter to why it has no meaning there."""

_ENDS: Final = "Give start=-5m for the last 5 minutes, and end if it doesn't end now."
MEANT: Final[Mapping[str, str]] = {
    "window": _ENDS,
    "range": _ENDS,
    "last": _ENDS,
    "since": "Give start, such as start=-5m.",
    "from": "Give start, such as start=-5m.",
    "to": "Give end, such as end=-1m.",
    "until": "Give end, such as end=-1m.",
    "deployment": "Give server, the deployment's name.",
    "interval": "Give step, such as step=10s.",
}
"""What to say for words that are not like any parameter but stand for one."""


def why_not_taken(path: str, name: str) -> str | None:
    """Why a filter that other routes take has no meaning at this one; None: nothing is known of it."""
    return WHY.get(path, {}).get(name)
