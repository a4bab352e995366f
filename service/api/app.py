"""The application: a factory, so that tests and servers each have one of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from prometheus_client import CollectorRegistry

from moescope.service.api.limits.answers import Answers
from moescope.service.api.limits.compressing import Compressed
from moescope.service.api.limits.downloads import Downloads
from moescope.service.api.limits.guard import Guard
from moescope.service.api.limits.hearing import Ear
from moescope.service.api.limits.keeping import Keeper
from moescope.service.api.limits.limits import Limits
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.bodies import JSON_TYPE
from moescope.service.api.params.checked import ALL_CHECKED
from moescope.service.api.problems import Problem, documented, install
from moescope.service.api.routes.advice import advice_router
from moescope.service.api.routes.balance import balance_router
from moescope.service.api.routes.baselines import baselines_router
from moescope.service.api.routes.coactivation import coactivation_router
from moescope.service.api.routes.compare import compare_router
from moescope.service.api.routes.drift import drift_router
from moescope.service.api.routes.histogram import histogram_router
from moescope.service.api.routes.home import home_router
from moescope.service.api.routes.ingest import ingest_router
from moescope.service.api.routes.live import live_router
from moescope.service.api.routes.one_trace import one_trace_router
from moescope.service.api.routes.placement import placement_router
from moescope.service.api.routes.placement_now import placement_now_router
from moescope.service.api.routes.pools import pools_router
from moescope.service.api.routes.probes import probes_router
from moescope.service.api.routes.ranks import ranks_router
from moescope.service.api.routes.rearrangements import rearrangements_router
from moescope.service.api.routes.request_routing import request_routing_router
from moescope.service.api.routes.requests import requests_router
from moescope.service.api.routes.requests_by_adapter import requests_by_adapter_router
from moescope.service.api.routes.requests_by_rank import requests_by_rank_router
from moescope.service.api.routes.session import session_router
from moescope.service.api.routes.stragglers import stragglers_router
from moescope.service.api.routes.trace_export import trace_export_router
from moescope.service.api.routes.traces import traces_router
from moescope.service.api.routes.trend import trend_router
from moescope.service.api.routes.verdict import verdict_router
from moescope.service.api.routes.view import view_router
from moescope.service.auth.sessions import (
    SECURITY_SCHEMES,
    Sessions,
    needed,
    open_book,
    security_of,
    tokens_needed,
)
from moescope.service.drift.baseline import KIND, BaselineBook
from moescope.service.drift.watch import DriftWatch
from moescope.service.live.state import LiveState
from moescope.service.metrics.collector import RoutingCollector, StoreHealth
from moescope.service.metrics.instruments import Instruments
from moescope.service.serving.running import Running
from moescope.service.settings import Settings
from moescope.service.store.records import PLACEMENT
from moescope.service.store.writer import StoreWriter
from moescope.service.traces.asking import Asker

_DESCRIPTION: Final = (
    "Exact telemetry of Mixture-of-Experts routing. A *token* is a row that the model computed for a "
    "request; a *slot* is one (token, chosen expert) pair. Errors are RFC 9457 problem documents."
)


def create_app(
    settings: Settings, clock: Callable[[], float] = time.time, writer: StoreWriter | None = None
) -> FastAPI:
    """A service with a state of its own.

    Args:
        settings: see :class:`Settings`; host and port matter to the server only.
        clock: seconds of Unix time; tests inject one.
        writer: keeps totals and history; whoever made it closes it. None: they are in memory only.

    Raises:
        StoreError: the store can't be read.
        TokenError: a file of tokens can't be used.
    """
    store, health, end_soon = None, None, _nothing
    if writer is not None:
        store, end_soon = writer.store, writer.end_soon
        health = StoreHealth(writer.trouble, writer.store.unreadable)
    state = _restored_state(settings, clock, writer)
    keeper = Keeper(state, writer)
    instruments = Instruments()
    registry = CollectorRegistry()
    book = BaselineBook([] if store is None else store.documents(KIND))
    if writer is not None:
        writer.watch(Ear(state, book).hear)
    drift = DriftWatch(state, book, settings.min_tokens)
    registry.register(RoutingCollector(state, settings, instruments, drift, health))
    limits, turns = Limits(settings), Turns(settings.max_queries, state.large)
    downloads = Downloads(settings.max_download_mib << 20)
    asker = None if store is None else Asker(store, settings.request_counts_mib << 20)
    tokens = open_book(settings)
    sessions = Sessions(tokens, clock)
    app = FastAPI(
        title="moescope",
        version=version("moescope"),
        description=_DESCRIPTION,
        openapi_url=None,  # FastAPI makes the schema in the event loop; see routes/home.py
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # the redirect's address would be made of the client's Host header
    )
    app.state.running = Running(settings, tokens, end_soon)
    app.add_middleware(Compressed)
    app.add_middleware(
        Guard,
        book=tokens,
        sessions=sessions,
        open_read=settings.open_read,
        refused=state.count_refused,
        clock=clock,
    )
    app.add_middleware(Answers, max_body=settings.max_body_mib << 20)
    install(app)
    for router in (
        ingest_router(state, settings, instruments, keeper, store, limits),
        requests_router(state, store, asker, turns, downloads),
        requests_by_rank_router(state, store, asker, turns, downloads),
        requests_by_adapter_router(state, store, asker, turns, downloads),
        trace_export_router(state, store, turns, downloads),
        traces_router(state, store, turns),
        one_trace_router(state, store, turns, downloads),
        request_routing_router(state, store, turns, downloads),
        coactivation_router(state, store, turns),
        ranks_router(state, turns),
        pools_router(state, settings, turns),
        histogram_router(state, turns),
        balance_router(state, settings, turns),
        stragglers_router(state, turns),
        drift_router(state, settings, book, turns),
        baselines_router(state, settings, book, keeper, turns),
        advice_router(state, settings, turns),
        placement_router(state, settings, turns),
        placement_now_router(state, turns),
        rearrangements_router(state, settings, turns),
        probes_router(state, registry, instruments, _nothing if health is None else health.trouble),
        verdict_router(state, settings, drift, turns),
        view_router(state, settings, turns),
        trend_router(state, turns),
        compare_router(state, turns),
        live_router(state),
        home_router(),
        session_router(sessions),
    ):
        app.router.routes.extend(router.routes)  # `include_router` would make each route a second time
    needs_token = tokens_needed(tokens, settings)
    app.openapi = lambda: _openapi(app, needs_token)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _nothing() -> None:
    """What there is to say, and to do, of a store where there is none."""


def _restored_state(settings: Settings, clock: Callable[[], float], writer: StoreWriter | None) -> LiveState:
    """A state that begins with what the store has, and adopts what other services keep there later."""
    if writer is None:
        return LiveState(settings, clock)
    state = LiveState(settings, clock, writer.store)
    kept = list(writer.store.accounts())
    state.restore(kept, writer.store.unbroken)
    state.hear_placements(writer.store.documents(PLACEMENT))
    if records := state.take_records():
        writer.submit(records)  # what counters leave out must be kept before they are shown
    return state


def _before_the_route(path: str, operation: dict[str, Any], guarded: bool) -> list[int]:
    """Statuses of a refusal that a request may get before its route sees it."""
    found = [401, 403] if guarded else []
    if path.startswith(ALL_CHECKED):
        found += [408, 422]  # a body that doesn't come, or that isn't taken; parameters that aren't
    if JSON_TYPE in operation.get("requestBody", {}).get("content", {}):
        found += [400, 413, 415]
    return found


def _openapi(app: FastAPI, needs_token: Callable[[str, str], bool]) -> dict[str, Any]:
    """The schema, with what no route names: the problem document, and what is answered before the route.

    Args:
        app: whose routes to describe.
        needs_token: whether a request of this method and path needs a token.
    """
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        components["Problem"] = Problem.model_json_schema()
        schema["components"]["securitySchemes"] = SECURITY_SCHEMES
        for unused in ("HTTPValidationError", "ValidationError"):
            components.pop(unused, None)
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                guarded = needed(method.upper(), path) is not None
                for status, answer in documented(*_before_the_route(path, operation, guarded)).items():
                    operation["responses"].setdefault(str(status), answer)
                if needs_token(method.upper(), path):
                    operation["security"] = security_of(method.upper())
        app.openapi_schema = schema
    return app.openapi_schema
