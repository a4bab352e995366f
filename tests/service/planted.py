"""Traced requests of two usual kinds, and some that were planted among them to be found."""

from __future__ import annotations

import numpy as np

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, TracePart, encode_part
from tests.service.conftest import Service
from tests.service.trace_parts import part

PLANTED_LAYERS = [MoeLayer(1, 16, 2), MoeLayer(3, 16, 2)]
TOKENS = 60
USUAL = 40
"""Usual requests: x1 .. x40, the odd ones of one kind, the even ones of the other."""


def likelihoods(kind: int) -> np.ndarray:
    """How likely each expert of a layer is in a usual request: one kind likes low experts, one high ones."""
    weights = np.linspace(6, 1, 16) if kind else np.linspace(1, 6, 16)
    return weights / weights.sum()


def drawn(trace: int, likely: np.ndarray, tokens: int = TOKENS) -> list[np.ndarray]:
    """Two different experts for each token in each layer."""
    rng = np.random.default_rng(trace)
    noise = np.log(likely + 1e-300) - np.log(rng.standard_exponential((2, tokens, 16)))
    return [np.argsort(-layer, axis=1)[:, :2].astype(np.uint8) for layer in noise]


def only(*experts: int) -> np.ndarray:
    """Nearly all slots go to these experts."""
    likely = np.full(16, 1e-9)
    likely[list(experts)] = 1
    return likely / likely.sum()


def usual(trace: int, tokens: int = TOKENS, **fields: object) -> TracePart:
    """A request of one of both kinds."""
    experts = drawn(trace, likelihoods(trace % 2), tokens)
    return part(trace, tokens=tokens, experts=experts, layers=PLANTED_LAYERS, **fields)  # type: ignore[arg-type]


def planted(trace: int, likely: np.ndarray, tokens: int = TOKENS, **fields: object) -> TracePart:
    """A request whose experts are drawn from other likelihoods."""
    experts = drawn(trace, likely, tokens)
    return part(trace, tokens=tokens, experts=experts, layers=PLANTED_LAYERS, **fields)  # type: ignore[arg-type]


def send(service: Service, made: TracePart) -> None:
    """Have the service keep a part."""
    headers = {"content-type": TRACE_CONTENT_TYPE}
    response = service.client.post("/v1/traces", content=encode_part(made), headers=headers)
    assert response.status_code == 200, response.text


def send_usual(service: Service) -> None:
    """Have it keep all usual requests, a second apart."""
    for trace in range(1, USUAL + 1):
        send(service, usual(trace))
        service.clock.now += 1
