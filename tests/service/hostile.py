"""Bodies that no capturer sends: made by Hypothesis from a good frame or part, or from nothing."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import msgspec
from hypothesis import strategies as st

from moescope.capture import wire
from tests.service.frames import EPOCH, frame, halves, producer
from tests.service.trace_parts import part

Change = Callable[[Any], Any]

NASTY: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)),
    *(float("nan"), float("inf"), -0.5, 1e308),
    *(
        "",
        "x",
        "x" * 300,
        "x" * 100_000,
        'a"b\\c\n{}',
        "\x00",
        "\u202e",
        "prod",
        b"",
        b"\xff" * 8,
        b"\x80" * 64,
    ),
    *([], {}, [[]], [1] * 5000, {"a": 1}, {str(i): i for i in range(2000)}),
    *([[0, 1, 1]], [[5, 8192, 8192]] * 3, [[i, 8192, 1] for i in range(1024)], ["deep", [[[[[[[["x"]]]]]]]]]),
)
BOMBS: tuple[bytes, ...] = (
    b"\xdd\xff\xff\xff\xff",  # a list of 4 Gi items
    b"\xdf\xff\xff\xff\xff",  # a map of as many
    b"\xc6\xff\xff\xff\xff" + b"\0" * 99,  # 4 GiB of bytes, of which 99 come
    b"\xdb\x7f\xff\xff\xff",
    b"\x91" * 100_000,
    b"\x81\xa1a" * 50_000,
    b"\x82\xa4wire\x92\x01\x00\xa5epoch" + b"\x91" * 20_000,
    b"\xc1",
    b"",
    b"\x00" * 5000,
    b"\x1f\x8b\x08\x00" + b"\0" * 100,  # gzip's and zstd's magic: bodies are never decompressed
    b"\x28\xb5\x2f\xfd" + b"\0" * 100,
)


def _builtins(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(message, builtin_types=(bytes,))
    return found


def good_frame(seq: int = 5) -> dict[str, Any]:
    """A frame with everything in it that a frame may have."""
    who = producer(dp_rank=1, dp_size=2, ep_rank=1, ep_size=2)
    made = frame(
        {0: [seq] * 8, 3: [seq] * 8},
        who=who,
        seq=seq,
        after_s=seq,
        epoch=EPOCH,
        placement=halves(8, 2),
        uncovered=[wire.UncoveredLayer(5, "monolithic")],
        drops={"sends_failed": 1},
        traces={"captured": 1},
    )
    return _builtins(made)


def good_part() -> dict[str, Any]:
    """A part of a trace."""
    return _builtins(part(1, tokens=4))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a message."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += _places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += _places(item, (*path, index))
    return found


def _put(message: Any, path: tuple[Any, ...], change: Change) -> None:
    for key in path[:-1]:
        message = message[key]
    changed = change(message[path[-1]])
    if changed is _GONE:
        del message[path[-1]]
    else:
        message[path[-1]] = changed


_GONE = object()


def _stretched(value: Any, amount: int) -> Any:
    """Something else of the same type, such as a wrong length or a smaller count."""
    if isinstance(value, bytes):
        return value[:amount] if amount % 2 else value + b"\xff" * amount
    if isinstance(value, bool) or value is None:
        return amount
    if isinstance(value, int):
        return max(-(2**63), value - amount) if amount % 2 else min(2**64 - 1, value + 2**amount)
    if isinstance(value, str):
        return value * amount
    return value * amount if isinstance(value, list) else value


@st.composite
def changed(draw: st.DrawFn, good: Callable[[], dict[str, Any]]) -> bytes:
    """A good message with one to three things wrong, perhaps cut off or with a wrong byte."""
    message = good()
    for _ in range(draw(st.integers(1, 3))):
        places = _places(message)
        if not places:
            break
        path = draw(st.sampled_from(places))
        change: Change = draw(
            st.one_of(
                st.sampled_from(NASTY).map(lambda value: lambda _: deepcopy(value)),
                st.just(lambda _: _GONE),
                st.integers(0, 40).map(lambda amount: lambda value: _stretched(value, amount)),
                st.binary(max_size=80).map(lambda value: lambda _: value),
                st.text(max_size=20).map(lambda value: lambda _: value),
                st.integers(-(2**63), 2**64 - 1).map(lambda value: lambda _: value),
            )
        )
        _put(message, path, change)
    body = msgspec.msgpack.encode(message)
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return body[: draw(st.integers(0, len(body)))]
    if kind == 1 and body:
        at = draw(st.integers(0, len(body) - 1))
        return body[:at] + bytes([draw(st.integers(0, 255))]) + body[at + 1 :]
    return body


def bodies(good: Callable[[], dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """Mostly nearly good ones, sometimes bombs and noise."""
    near = changed(good)
    return st.one_of(near, near, near, near, st.sampled_from(BOMBS), st.binary(max_size=300))
