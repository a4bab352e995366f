"""GET /healthz and /readyz: the probes; GET /metrics: the scrape."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry

from moescope.service.api.limits.shared_runs import SharedRuns
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.probes import Health, Readiness
from moescope.service.live.state import LiveState
from moescope.service.metrics.instruments import Instruments
from moescope.service.metrics.text.exposition import Wanted, expose, negotiate
from moescope.service.metrics.text.writer import Writer


def probes_router(
    state: LiveState,
    registry: CollectorRegistry,
    instruments: Instruments,
    trouble: Callable[[], str | None],
) -> APIRouter:
    """The probes over ``state``, and the scrape of ``registry``, whose durations ``instruments`` counts.

    ``trouble`` says why frames would not be taken.
    """
    router = APIRouter(tags=["operation"], route_class=CheckedRoute)
    writer = Writer()

    def scrape(forms: frozenset[Wanted]) -> dict[Wanted, bytes]:
        with instruments.scrape.timed():
            return expose(registry, writer, forms)

    scrapes = SharedRuns(scrape)

    @router.get("/healthz")
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health()

    @router.get("/readyz", responses=documented(503))
    async def readyz() -> Readiness:
        """Whether frames are taken and queries answered; that needs no producer.

        503, with the reason, while what comes can't be kept: the store failed, or does not answer.
        """
        if (reason := trouble()) is not None:
            raise ProblemError(503, "not-ready", "Frames can't be kept", reason)
        producers = state.producers()
        return Readiness(producers=len(producers), stale_producers=sum(item.stale for item in producers))

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}},
    )
    async def metrics(request: Request) -> Response:
        """Metrics for Prometheus, as text or OpenMetrics by the Accept header, gzipped on request.

        Scrapes that come while one is made share the next.
        """
        accept, encoding = (request.headers.get(name, "") for name in ("accept", "accept-encoding"))
        wanted = negotiate(accept, encoding)
        return Response(await scrapes(wanted), headers=wanted.headers)

    return router
