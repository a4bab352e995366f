"""Every request is taken seriously: a route answers nothing that it was asked in words it doesn't know.

:class:`CheckedRoute` reads what its route takes from the route itself, before the route sees the request.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Final, Union, get_args, get_origin

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from moescope.service.api.params.bodies import replayed, take_json, take_none
from moescope.service.api.params.not_taken import MEANT, why_not_taken
from moescope.service.api.problems import ProblemError
from moescope.service.nearest import hint

ALL_CHECKED: Final = "/v1/"
"""Paths below are checked. A scraper or a probe may add parameters of its own elsewhere."""
_NAMED: Final = 5  # unknown parameters that one answer names


class CheckedRoute(APIRoute):
    """Refuses parameters and bodies that its route doesn't take, with a problem document that helps.

    Below ``/v1/`` these end a request with 422: a parameter that the route doesn't know, one without a value,
    and one that is given twice though the route takes one value. Everywhere a body is bounded, in bytes and
    in time, before anything of it is kept; a route that takes none refuses it.

    An answer becomes JSON in the thread that computed it, since FastAPI would do that in the event loop.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        computes = not inspect.iscoroutinefunction(endpoint)
        super().__init__(path, _as_json(endpoint) if computes else endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that FastAPI calls."""
        handler, takes = self.answering(), _taken(self)

        async def checked(request: Request) -> Response:
            if self.path.startswith(ALL_CHECKED):
                check_query(request.method, self.path_format, request.query_params.multi_items(), takes)
            return await handler(await self._with_body(request))

        return checked

    def answering(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request that was checked; for a subclass to put something around it."""
        return super().get_route_handler()

    async def _with_body(self, request: Request) -> Request:
        """The request with its whole body, or without one; a route that reads bytes does that itself."""
        if "requestBody" in (self.openapi_extra or {}):
            return request
        timeout_s = request.app.state.running.settings.body_timeout_s
        if self.body_field is None:
            await take_none(request, timeout_s)
            return request
        return replayed(request, await take_json(request, timeout_s))


def _as_json(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint of a thread, which answers with bytes where it answered with a model."""

    @functools.wraps(endpoint)
    def answer(*values: Any, **named: Any) -> Any:
        found = endpoint(*values, **named)
        if not isinstance(found, BaseModel):
            return found
        body = type(found).__pydantic_serializer__.to_json(found, by_alias=True)
        return Response(body, media_type="application/json")

    return answer


def check_query(method: str, path: str, given: Iterable[tuple[str, str]], takes: Mapping[str, bool]) -> None:
    """Check the names of a query's parameters, how often each is there, and that each has a value.

    Args:
        method, path: the route.
        given: names and values, in their order.
        takes: the parameters that the route takes, to whether one may be repeated.

    Raises:
        ProblemError: something is wrong with a name (422); it says what the route takes.
    """
    pairs = list(given)
    counted = Counter(name for name, _ in pairs)
    unknown = [name for name in counted if name not in takes]
    repeated = [name for name, count in counted.items() if count > 1 and takes.get(name) is False]
    empty = [name for name in dict.fromkeys(name for name, value in pairs if not value) if name in takes]
    if not (unknown or repeated or empty):
        return
    said = [_unknown(path, name, takes) for name in unknown[:_NAMED]]
    if len(unknown) > _NAMED:
        said.append(f"{len(unknown) - _NAMED} more names are unknown.")
    said += [
        f"{name} is given {counted[name]} times, and one value is taken: give it once." for name in repeated
    ]
    said += [f"{name} is empty: give a value, or leave it out." for name in empty]
    listed = ", ".join(f"{name} (repeatable)" if many else name for name, many in takes.items())
    said.append(f"{method} {path} takes {listed or 'no parameters'}; /docs describes them.")
    kind = "unknown-parameter" if unknown else "repeated-parameter" if repeated else "empty-parameter"
    raise ProblemError(422, kind, "The parameters are not valid", " ".join(said))


def _unknown(path: str, name: str, takes: Mapping[str, bool]) -> str:
    why = why_not_taken(path, name)
    if why is not None:
        return f"{name} has no meaning here: {why}."
    return f"There is no parameter {name[:100]!r}.{hint(name, takes, MEANT)}"


def _taken(route: APIRoute) -> dict[str, bool]:
    """The query parameters that a route takes, to whether one may be repeated."""
    return {
        field.alias: _is_list(field.field_info.annotation)
        for part in parts_of(route.dependant)
        for field in part.query_params
    }


def parts_of(dependant: Dependant) -> Iterator[Dependant]:
    """What a route depends on, itself first, then each of its dependencies with theirs."""
    yield dependant
    for dependency in dependant.dependencies:
        yield from parts_of(dependency)


def _is_list(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_is_list(part) for part in get_args(annotation))
    return annotation is list or get_origin(annotation) is list
