"""What a steady decode step costs the thread that enqueues it: calls, and microseconds, by size of the batch.

    python -m benchmarks.host_share

A whole capture session of a worker, on CPUs, with the outputs of vLLM's own scheduler: all requests decode
one token in each step, none begins or ends. What is measured is what the session does when a step begins,
ends and is returned, without the counting, which is kernels on a GPU. The modes take turns in each step:
capture alone, and with traces that are only taken of requests which ask for them, and none does.

Calls of functions, those of C included, are counted by the interpreter and are the same on each machine. They
are those of a step at whose end no snapshot is due: the fewest. The times are medians, and differ between
machines: compare them within one run.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

import torch
from vllm.distributed import parallel_state

from benchmarks.results_file import keep, parser_of
from moescope.capture.session import CaptureSession
from moescope.capture.settings.environment import CaptureSettings
from tests.capture.scheduler import Scheduling, full_attention, model_config
from tests.capture.seam.runners import in_layers, runner

BATCHES: Final = (1, 8, 64, 256, 1024)
LAYERS: Final = 48
STEPS: Final = 300
RESULTS: Final = Path(__file__).with_name("results") / "host_share.json"
MODES: Final = {"capture": {}, "traces on, of no request": {"MOESCOPE_TRACE_OPT_IN": "1"}}


def main() -> None:
    """Print the table, and write it."""
    options = parser_of(__doc__, RESULTS, STEPS).parse_args()
    rows = []
    print(f"{'batch':>5}  {'mode':<26} {'calls':>7} {'us a step':>10}")
    for batch in BATCHES:
        for row in measure(batch, options.runs):
            rows.append(row)
            print(f"{row['batch']:>5}  {row['mode']:<26} {row['calls']:>7.0f} {row['us']:>10.2f}")
    keep(options, rows)


def measure(batch: int, steps: int) -> Iterator[dict[str, Any]]:
    """Calls and time of a step of so many requests, by mode."""
    with tempfile.TemporaryDirectory() as folder, one_rank():
        scheduling = Scheduling(
            model_config(Path(folder)),
            [full_attention(16)],
            64 * batch + 16,
            v2=True,
            max_num_seqs=batch,
            max_num_batched_tokens=max(64, 4 * batch),
        )
        for number in range(batch):
            scheduling.add(f"cmpl-{number:06d}-0-1a2b3c4d", [number % 50 + 1, 2, 3], tokens=400)
        requests = SimpleNamespace(kv_cache_config=scheduling.cache, decode_query_len=1)
        sessions = {mode: session_of(scheduling.config, variables) for mode, variables in MODES.items()}
        try:
            times: dict[str, list[int]] = {mode: [] for mode in MODES}
            calls: dict[str, list[int]] = {mode: [] for mode in MODES}
            for number in range(steps + 30):
                output = scheduling.schedule()
                counted = number % 10 == 9
                for mode, session in warm(output, sessions, number):
                    step = partial(run, session, output, requests)
                    measured = calls_of(step) if counted else time_of(step)
                    if number >= 30:
                        (calls if counted else times)[mode].append(measured)
                scheduling.finish(output)
        finally:
            for session in sessions.values():
                session.close()
    for mode in MODES:
        us = statistics.median(times[mode]) / 1000
        yield {"batch": batch, "mode": mode, "calls": min(calls[mode]), "us": round(us, 2)}


def warm(output: Any, modes: dict[str, CaptureSession], number: int) -> list[tuple[str, CaptureSession]]:
    """The modes, another one first in each step; the output's objects are in the caches for all of them."""
    cached = output.scheduled_cached_reqs
    for part in (output.num_scheduled_tokens.items(), cached.req_ids, cached.num_computed_tokens):
        hash(tuple(part))
    items = list(modes.items())
    return items[number % len(items) :] + items[: number % len(items)]


def session_of(config: Any, variables: dict[str, str]) -> CaptureSession:
    """A session that has begun to serve, whose frames reach nobody."""
    settings = CaptureSettings.read({"MOESCOPE_ENDPOINT": "http://127.0.0.1:9", **variables})[0]
    model = in_layers(*(runner(layer) for layer in range(LAYERS)))
    with mock.patch.dict(os.environ, {"VLLM_USE_V2_MODEL_RUNNER": "1"}):
        session = CaptureSession(model, config, torch.device("cpu"), settings)
    session.serving_begins()
    return session


def run(session: CaptureSession, output: Any, model_runner: Any) -> None:
    """What the worker's class does around a step of vLLM's."""
    session.step_begins(output, model_runner)
    session.step_ends()
    session.step_returned(output)
    session.step_sampled(output)
    session.step_returned(output)


def time_of(step: Callable[[], None]) -> int:
    """Nanoseconds."""
    began = time.perf_counter_ns()
    step()
    return time.perf_counter_ns() - began


def calls_of(step: Callable[[], None]) -> int:
    """Calls of functions within it, in this thread."""
    count = 0

    def note(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return count - 2  # of the step itself, and of the end of counting


@contextmanager
def one_rank() -> Iterator[None]:
    """vLLM's groups of ranks, as in a server with one."""
    group = SimpleNamespace(rank_in_group=0, world_size=1)
    with mock.patch.multiple(
        parallel_state,
        get_tp_group=lambda: group,
        get_pp_group=lambda: group,
        get_ep_group=lambda: group,
        get_dp_group=lambda: group,
    ):
        yield


if __name__ == "__main__":
    main()
