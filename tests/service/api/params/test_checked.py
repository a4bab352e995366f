"""Every route of /v1 takes its question seriously: names, repetitions, values, bodies."""

from __future__ import annotations

import inspect
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, get_args, get_type_hints
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import APIRouter, Response
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from pydantic import BaseModel, field_serializer

from moescope.service.api.app import create_app
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.bodies import MAX_JSON
from moescope.service.api.params.checked import CheckedRoute, parts_of
from moescope.service.api.params.not_taken import WHY
from moescope.service.live.large import LargeQuestions
from moescope.service.settings import Settings
from tests.service.conftest import Clock, Service, open_service
from tests.service.frames import frame, halves, producer


def _routes() -> list[APIRoute]:
    """Every route that has parameters, whether routers are flattened by this version of FastAPI or not."""
    app = create_app(Settings(port=0))
    found = list(app.routes)
    for included in app.routes:
        found += getattr(getattr(included, "original_router", None), "routes", [])
    return [route for route in found if isinstance(route, APIRoute)]


ROUTES = [
    (method, route)
    for route in _routes()
    if route.path.startswith("/v1/")
    for method in sorted(route.methods or ())
]
NAMES = [f"{method} {route.path}" for method, route in ROUTES]


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    """One for all routes: what these tests ask changes nothing."""
    clock = Clock()
    service, end = open_service(clock, clock, min_tokens=1)
    yield service
    end()


def _query_fields(route: APIRoute) -> list[Any]:
    """The route's parameters in a query, those of its dependencies too."""
    return [field for part in parts_of(route.dependant) for field in part.query_params]


def _ask(service: Service, method: str, route: APIRoute, query: str) -> httpx.Response:
    return service.client.request(method, f"{re.sub(r'{[^}]*}', 'x', route.path)}?{query}")


def test_every_route_is_checked() -> None:
    assert len(ROUTES) > 20
    assert [route.path for route in _routes() if not isinstance(route, CheckedRoute)] == []


@pytest.mark.parametrize(("method", "route"), ROUTES, ids=NAMES)
def test_what_a_route_does_not_take_is_named_with_what_it_takes(
    shared: Service, method: str, route: APIRoute
) -> None:
    takes = [field.alias for field in _query_fields(route)]
    answer = _ask(shared, method, route, "qwertz=1")
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:moescope:problem:unknown-parameter")
    assert "There is no parameter 'qwertz'. " in answer.json()["detail"]
    for name in takes:
        assert name in answer.json()["detail"]
        for misspelt in (name.upper(), name + "s", name.replace("_", "-") + "x"):
            told = _ask(shared, method, route, f"{misspelt}=1")
            if misspelt not in takes:
                assert told.status_code == 422, misspelt
                assert re.search(rf"Did you mean \w+\?|Give {name}", told.json()["detail"]), told.text
        empty = _ask(shared, method, route, f"{name}=")
        assert (empty.status_code, f"{name} is empty" in empty.text) == (422, True), name


@pytest.mark.parametrize(("method", "route"), ROUTES, ids=NAMES)
def test_what_takes_one_value_is_not_given_twice(shared: Service, method: str, route: APIRoute) -> None:
    for field in _query_fields(route):
        answer = _ask(shared, method, route, f"{field.alias}=1&{field.alias}=2")
        told = f"{field.alias} is given 2 times" in answer.text
        assert told != ("list" in str(field.field_info.annotation)), field.alias
        assert answer.status_code == 422 or not told


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("/v1/balance?window=5m", "Give start=-5m for the last 5 minutes"),
        ("/v1/advice?redundent=4", "Did you mean redundant?"),
        ("/v1/balance?layers=3", "Did you mean layer?"),
        ("/v1/balance?DP_RANK=0", "Did you mean dp_rank?"),
        ("/v1/balance?server=a&server=b", "server is given 2 times"),
        ("/v1/balance?layer", "layer is empty"),
        ("/v1/traces/x?severs=prod", "Did you mean server?"),
        ("/v1/stragglers?dp_rank=0", "dp_rank has no meaning here: a step waits for the busiest EP rank"),
        ("/v1/advice?phase=decode", "phase has no meaning here: a placement serves"),
        (f"/v1/balance?{'x' * 50_000}=1", "There is no parameter 'xxx"),
        ("/v1/balance?" + "&".join(f"a{i}=1" for i in range(2000)), "1995 more names are unknown"),
    ],
)
def test_what_is_said(shared: Service, asked: str, words: str) -> None:
    answer = shared.client.get(asked)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert answer.elapsed.total_seconds() < 20


def test_each_reason_is_of_a_route_that_does_not_take_the_parameter() -> None:
    takes: dict[str, set[str]] = {}
    for _, route in ROUTES:
        names = {field.alias for field in _query_fields(route)}
        takes[route.path_format] = takes.get(route.path_format, set()) | names
    assert {path: set(names) & takes[path] for path, names in WHY.items()} == {path: set() for path in WHY}


@pytest.mark.parametrize("path", ["/healthz?verbose", "/readyz?x=1", "/metrics?name[]=up&x=", "/?utm=1"])
def test_a_probe_or_a_scraper_may_add_parameters_of_its_own(shared: Service, path: str) -> None:
    assert shared.client.get(path).status_code == 200


def test_an_unknown_path_is_told_the_nearest_one(shared: Service) -> None:
    assert "Did you mean /v1/balance?" in shared.client.get("/v1/balanse").json()["detail"]
    assert "Did you mean /v1/ranks?" in shared.client.get("/v1/rank").json()["detail"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (b'{"nmae": "a"}', "application/json", 422, "Did you mean name?"),
        (b'{"name": "a", "name": "b"}', "application/json", 422, "'name' is in the body twice"),
        (b"{}", "text/plain", 415, "send application/json"),
        (b"{}", None, 415, "send application/json"),
        (b"[" * (MAX_JSON - 1), "application/json", 400, "no JSON"),
        (b"\xff", "application/json", 400, "no JSON"),
        (b'{"note": "' + b"x" * MAX_JSON + b'"}', "application/json", 413, f"over {MAX_JSON} bytes"),
    ],
)
def test_bodies_of_json(shared: Service, content: bytes, kind: str | None, status: int, words: str) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = shared.client.post("/v1/baselines", content=content, headers=headers)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text


@pytest.mark.parametrize(("method", "route"), ROUTES, ids=NAMES)
def test_a_route_without_a_body_takes_none(shared: Service, method: str, route: APIRoute) -> None:
    if route.body_field is not None or route.openapi_extra:
        return
    path = re.sub(r"{[^}]*}", "x", route.path)
    answer = shared.client.request(method, path, json={"server": "prod"})
    assert (answer.status_code, "takes no body" in answer.json()["detail"]) == (422, True)


class Answer(BaseModel):
    """Says in which thread it became JSON."""

    name: str
    made: ClassVar[dict[str, int]] = {}

    @field_serializer("name")
    def told(self, name: str) -> str:
        self.made[name] = threading.get_ident()
        return name


def test_an_answer_becomes_json_in_the_thread_that_computed_it() -> None:
    """The event loop answers all others: it may not make megabytes of JSON."""
    made = Answer.made
    app = create_app(Settings(port=0))
    turns = Turns(1, LargeQuestions(1 << 20))
    for kind, route_class in (("checked", CheckedRoute), ("in-turn", turns.route)):
        router = APIRouter(route_class=route_class)

        @router.get(f"/v1/{kind}")
        def computed(kind: str = kind) -> Answer:
            made["thread"] = threading.get_ident()
            return Answer(name=kind)

        @router.get(f"/v1/{kind}-in-the-loop")
        async def in_the_loop(kind: str = kind) -> Answer:
            made["loop"] = threading.get_ident()
            return Answer(name=kind)

        app.router.routes.extend(router.routes)
        with TestClient(app) as client:
            client.get(f"/v1/{kind}-in-the-loop").raise_for_status()
            assert made[kind] == made["loop"]  # so that the line below can fail
            assert client.get(f"/v1/{kind}").json() == {"name": kind}
            assert made[kind] == made["thread"] != made["loop"]


@pytest.mark.parametrize("route", [route for _, route in ROUTES], ids=NAMES)
def test_a_route_of_a_thread_answers_with_what_becomes_json_there(route: APIRoute) -> None:
    endpoint = inspect.unwrap(route.endpoint)
    if inspect.iscoroutinefunction(endpoint):
        return
    told = get_type_hints(endpoint)["return"]
    for kind in get_args(told) or (told,):
        assert issubclass(kind, BaseModel | Response), f"{kind} becomes JSON in the event loop"


def _endless(service: Service, head: str) -> Iterator[bytes]:
    """What the service sends while a body without an end is sent to it."""
    parts = urlsplit(service.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60) as connection:
        connection.sendall(head.encode())
        done = threading.Event()

        def send() -> None:
            piece = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
            try:
                while not done.wait(0.001):
                    connection.sendall(piece)
            except OSError:
                pass  # the service closed it

        thread = threading.Thread(target=send)
        thread.start()
        try:
            while piece := connection.recv(65536):
                yield piece
        except ConnectionResetError:
            pass
        finally:
            done.set()
            thread.join(60)


@pytest.mark.parametrize("path", ["/v1/baselines", "/v1/session", "/v1/nothing", "/healthz"])
def test_a_body_without_an_end_is_ended(shared: Service, path: str) -> None:
    kind = "content-type: application/json"
    lines = [f"POST {path} HTTP/1.1", "host: x", kind, "transfer-encoding: chunked", ""]
    head = "".join(f"{line}\r\n" for line in lines)
    begun = time.monotonic()
    answer = b"".join(_endless(shared, head))
    assert re.match(rb"HTTP/1.1 (413|422|404|405) ", answer), answer[:200]
    assert time.monotonic() - begun < 30


def test_a_body_that_never_comes_has_a_deadline(start_service: Callable[..., Service]) -> None:
    service = start_service(body_timeout_s=0.5)
    parts = urlsplit(service.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/baselines HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\n\r\n{"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_a_query_is_checked_before_it_waits_for_its_turn(start_service: Callable[..., Service]) -> None:
    service = start_service(max_queries=1)
    service.push(frame({0: [10, 10]}, who=producer(ep_size=2), placement=halves(2, 1)))
    asked: dict[str, Any] = {"start": "-1h", "begin": "-2h"}
    assert service.client.get("/v1/balance", params=asked).status_code == 422
