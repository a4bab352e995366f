"""Two threads for one answer: while an item is written, the next one is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def in_turn(items: Iterator[T], use: Callable[[T], object]) -> Iterator[None]:
    """Make and use one item with each step."""
    for item in items:
        use(item)
        yield


def made_ahead(items: Iterator[T], use: Callable[[T], object]) -> Iterator[None]:
    """The same, but each step makes the item of the next one too, in a thread, while it uses its own.

    The first step makes two. Between two steps nothing goes on, so whoever takes the steps slowly has no
    thread at work; one item is held for the next step. What making an item raises is raised in its own step.
    """
    with ThreadPoolExecutor(1, "moescope-ahead") as helper:

        def begin() -> Future[T | None]:
            context = copy_context()
            return helper.submit(lambda: context.run(lambda: next(items, None)))

        item = begin().result()
        while item is not None:
            following = begin()
            use(item)
            wait([following])
            yield
            item = following.result()
