"""Faults to inject into capture, one at a time, each with what must show of it.

A fault is a context manager that breaks something of `capture/`, or of the world around it, and yields the
variables that the session is opened with. `shows` is a pattern of the one log line; `state` and `drops` are
what the last frame must say, where one can still come.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

Environment = Mapping[str, str]
Fault = Callable[[], AbstractContextManager[Environment]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fault.

    Attributes:
        inject: see above; runs around the opening of the session, the requests, and its close.
        shows: regular expression that a log line of capture must match; None: it shows in frames only.
        state: of the last frame that arrives, or None when none can.
        drops: counters of the last frame that must be above zero.
        exact: whether the last frame must hold all tokens of the run.
        unseen: whether a layer must have fewer rows than tokens.
    """

    inject: Fault
    shows: str | None = None
    state: str | None = None
    drops: tuple[str, ...] = ()
    exact: bool = False
    unseen: bool = False


class InjectedError(RuntimeError):
    """Broken on purpose."""


def raising(target: Any, name: str, error: BaseException | None = None, after: int = 0) -> Fault:
    """`target.name` raises, from the call after the first `after` ones on."""

    @contextlib.contextmanager
    def inject() -> Iterator[Environment]:
        original, calls = getattr(target, name), 0
        is_static = isinstance(inspect.getattr_static(target, name), staticmethod)

        def broken(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise error or InjectedError(f"{name} is broken")
            return original(*args, **kwargs)

        with mock.patch.object(target, name, staticmethod(broken) if is_static else broken):
            yield {}

    return inject


def setting(**variables: str) -> Fault:
    """Variables that an operator got wrong."""

    @contextlib.contextmanager
    def inject() -> Iterator[Environment]:
        yield variables

    return inject


def returning(target: Any, name: str, value: Any) -> Fault:
    """`target.name` returns something else."""

    @contextlib.contextmanager
    def inject() -> Iterator[Environment]:
        with mock.patch.object(target, name, return_value=value):
            yield {}

    return inject


@contextlib.contextmanager
def with_setting(fault: Fault, **variables: str) -> Iterator[Environment]:
    """A fault, and what an operator has set besides."""
    with fault() as environment:
        yield {**environment, **variables}
