"""A job is done again and again until the block ends, which ends a job that waits."""

from __future__ import annotations

import threading

from moescope.service.serving.repeating import repeating


def test_again_and_again_in_a_thread_of_that_name() -> None:
    names: list[str] = []
    often = threading.Event()

    def job(_: threading.Event) -> None:
        names.append(threading.current_thread().name)
        if len(names) == 3:
            often.set()

    with repeating(job, 0.001, "tests-job"):
        assert often.wait(30)
    assert set(names) == {"tests-job"}
    assert "tests-job" not in {thread.name for thread in threading.enumerate()}


def test_the_end_ends_a_job_that_waits_and_is_not_held_up_by_the_pause() -> None:
    waits = threading.Event()

    def job(over: threading.Event) -> None:
        waits.set()
        assert over.wait(30)

    with repeating(job, 0.001, "tests-job"):
        assert waits.wait(30)
    with repeating(lambda _: None, 3600, "tests-job"):
        pass
