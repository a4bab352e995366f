"""Cycles of garbage are looked for in time, and not while a block puts it off, whichever threads run it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Generator

import pytest

from moescope.service.serving.garbage import no_search, searching


class _Cycle:
    """Refers to itself, and tells when it is freed."""

    def __init__(self, freed: threading.Event) -> None:
        self.itself = self
        weakref.finalize(self, freed.set)


@pytest.fixture
def unasked() -> Generator[None]:
    """The interpreter looks for no cycles by itself."""
    gc.disable()
    yield
    gc.collect()
    gc.freeze()  # as it was (tests/conftest.py)
    gc.enable()


def test_blocks_of_several_threads_overlap_and_the_last_one_turns_the_search_on_again() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with no_search():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with no_search():
        thread.start()
        assert inside.wait(10)
        assert not gc.isenabled()
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_an_error_turns_it_on_again_and_who_had_it_off_keeps_it_off() -> None:
    def fails() -> None:
        with no_search():
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        fails()
    assert gc.isenabled()
    gc.disable()
    try:
        with no_search():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.usefixtures("unasked")
def test_a_cycle_is_freed_though_nothing_more_is_made() -> None:
    freed = threading.Event()
    with searching(0.01):
        assert gc.get_freeze_count() > 0
        _Cycle(freed)
        assert freed.wait(30)
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("unasked")
def test_no_cycle_is_looked_for_in_a_block_that_puts_it_off() -> None:
    freed = threading.Event()
    with searching(0.01):
        with no_search():
            _Cycle(freed)
            assert not freed.wait(0.2)
        assert freed.wait(30)
