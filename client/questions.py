"""What a question looks like on the wire, and what its answer means: the same for both clients."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import quote

import httpx
import msgspec
import numpy as np

from moescope.client.errors import CutOffError, MoescopeError, ProblemError, UnreachableError
from moescope.client.records import (
    ExportPart,
    RequestRouting,
    Trace,
    TraceInfo,
    info_of,
    told_of,
    versions_of,
    weights_of,
)

DEFAULT_URL: Final = "http://127.0.0.1:9890"
"""Where a service is that was started without settings."""
ATTEMPTS: Final = 4
"""How often a busy service is asked, or an export that was cut off without a whole request in between."""
LONGEST_WAIT_S: Final = 30.0
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RELATIVE: Final = re.compile(r"-(\d+(?:\.\d+)?)([smhd])")

Form = Literal["moescope", "vllm"]
Missing = Literal["refuse", "zero"]
Token = str | Callable[[], str | None] | None
Instant = str | float | datetime | None
Parameters = dict[str, Any]


class TraceFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests are wanted; None is any.

    Attributes:
        start, end: when they were stored: a time, seconds of Unix time, or relative as ``-1h``.
        pool: only of deployments that were of this pool then.
        lora: ``none``: only those without an adapter. Only exports take it.
        layer, expert: only those of which a token took this expert of this layer. Only lists take it.
    """

    server: str | None = None
    model: str | None = None
    pool: str | None = None
    dp_rank: int | None = None
    lora: str | None = None
    weights_version: int | None = None
    start: Instant = None
    end: Instant = None
    min_tokens: int | None = None
    layer: int | None = None
    expert: int | None = None

    def params(self) -> Parameters:
        """As parameters of a query."""
        named = {name: getattr(self, name) for name in self.__struct_fields__}
        return {**named, "start": _instant(self.start), "end": _instant(self.end)}

    def anchored(self, now: float) -> TraceFilter:
        """The same with times instead of ``-1h`` or ``now``: so all pages of an answer have one window."""
        return msgspec.structs.replace(self, start=_anchored(self.start, now), end=_anchored(self.end, now))


def _anchored(value: Instant, now: float) -> Instant:
    if not isinstance(value, str):
        return value
    relative = _RELATIVE.fullmatch(value)
    if relative:
        return max(0.0, now - float(relative[1]) * _SECONDS[relative[2]])
    return now if value == "now" else value


def _instant(value: Instant) -> str | None:
    if isinstance(value, datetime):
        return repr(value.timestamp())
    return value if value is None or isinstance(value, str) else repr(float(value))


class TokenAuth(httpx.Auth):
    """Puts the token into each request; one that may change is asked for each time."""

    def __init__(self, token: Token) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        """The request with its token."""
        token = self._token() if callable(self._token) else self._token
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        yield request


def asked(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without those that are None."""
    return {name: value for name, value in params.items() if value is not None}


def path_of(request_id: str, suffix: str) -> str:
    """The path of one trace."""
    return f"/v1/traces/{quote(request_id, safe='')}.{suffix}"


def whole_path_of(request_id: str, suffix: str) -> str:
    """The path of a whole request."""
    return f"/v1/requests/{quote(request_id, safe='')}/routing.{suffix}"


def one_trace(
    server: str | None,
    model: str | None,
    dp_rank: int | None,
    layers: Sequence[int] | None,
    first: int | None,
    end: int | None,
    form: Form,
    missing: Missing,
    decoder_layers: int | None,
) -> Parameters:
    """The parameters of one trace."""
    vllm = {"form": form, "missing": missing, "decoder_layers": decoder_layers} if form == "vllm" else {}
    where = {"server": server, "model": model, "dp_rank": dp_rank}
    return asked(
        {**where, "layer": None if layers is None else list(layers), "first": first, "end": end, **vllm}
    )


def check(response: httpx.Response) -> None:
    """Refuse an answer that is none; its body must have been read.

    Raises:
        ProblemError: it is a problem.
    """
    if response.is_success:
        return
    kind, detail = "", f"{response.url.host} answers {response.status_code}"
    try:
        problem = json.loads(response.content)
        kind = str(problem["type"]).rpartition(":")[2]
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ProblemError(response.status_code, kind, detail)


def waiting_s(response: httpx.Response, attempt: int) -> float | None:
    """How long to wait before the question is asked again; None: its answer is the last."""
    if response.status_code != 503 or "retry-after" not in response.headers or attempt + 1 >= ATTEMPTS:
        return None
    try:
        return min(LONGEST_WAIT_S, max(0.1, float(response.headers["retry-after"])))
    except ValueError:
        return None


def unreachable(url: str, error: httpx.HTTPError) -> UnreachableError | CutOffError:
    """What an exception of httpx means."""
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return CutOffError(f"{url} broke off the answer ({error}): ask again")
    why = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in why:
        return UnreachableError(
            f"the certificate of {url} is not trusted ({why}): give its authority's PEM file, as verify= or "
            "in MOESCOPE_CA_FILE"
        )
    return UnreachableError(
        f"no service answers at {url} ({why}): start one with `moescope serve`, or name another with url=, "
        "--url or MOESCOPE_URL"
    )


def page_of(response: httpx.Response) -> tuple[list[dict[str, Any]], str | None]:
    """The traces of a list, and the cursor of the next page; None: there is none."""
    answer = response.json()
    return list(answer["traces"]), answer["next_cursor"]


def newest(found: Sequence[TraceInfo], request_id: str) -> TraceInfo:
    """The first of a list, which is to have the request that was just read.

    Raises:
        CutOffError: it is gone.
    """
    if not found:
        raise CutOffError(f"the trace of {request_id} was removed while it was read")
    return found[0]


def trace_of(info: TraceInfo, content: bytes) -> Trace:
    """A trace from its npz."""
    with np.load(io.BytesIO(content)) as file:
        first, experts = int(file["first_position"]), file["routed_experts"]
        return Trace(
            info=info,
            experts=experts,
            first_position=first,
            layers=file["layers"],
            num_experts=file["num_experts"],
            top_k=file["top_k"],
            times_computed=file["times_computed"],
            weights_version=weights_of(file["weights"], first, len(experts)),
        )


def whole_of(content: bytes) -> RequestRouting:
    """A whole request from its npz.

    Raises:
        MoescopeError: the service is older than this client.
    """
    with np.load(io.BytesIO(content)) as file:
        first, experts = int(file["first_position"]), file["routed_experts"]
        text = str(file["joined"])
        try:
            told, info = told_of(text), info_of(json.loads(text))
        except msgspec.ValidationError as error:
            raise MoescopeError(
                f"the service tells less than this client needs ({error}): upgrade it"
            ) from None
        return RequestRouting(
            info=info,
            parts=told.parts,
            missing=told.missing,
            absent=told.absent,
            experts=experts,
            first_position=first,
            layers=file["layers"],
            num_experts=file["num_experts"],
            top_k=file["top_k"],
            times_computed=file["times_computed"],
            weights_version=versions_of(told.parts, first, len(experts)),
        )


def part_of(response: httpx.Response, nbytes: int) -> ExportPart:
    """What the headers of an export say of it."""
    headers = response.headers
    return ExportPart(
        requests=int(headers["x-moescope-requests"]),
        tokens=int(headers["x-moescope-tokens"]),
        nbytes=nbytes,
        next_cursor=headers["x-moescope-next-cursor"],
    )
