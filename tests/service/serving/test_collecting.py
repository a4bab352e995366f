"""No cycles of garbage are looked for while a block runs, whichever threads run it; then it is as before."""

from __future__ import annotations

import gc
import threading

import pytest

from moescope.service.serving.collecting import no_search


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
