"""What a steady decode step costs the thread that enqueues it: calls, instructions and microseconds.

    python -m benchmarks.host_share

A whole capture session of a worker, with the outputs of vLLM's own scheduler: all requests decode one token
in each step, none begins or ends, and one in sixteen gets a block of the KV cache. What is measured is what
the session does when a step begins, ends and is returned. It counts as on a GPU, by one kernel a step within
vLLM's CUDA graphs, which nothing launches here; the driver's calls that write the step's word are played by C
functions that do nothing (`benchmarks.gpu_word` measures the real ones). The modes take turns by step:
capture alone, and with traces that are only taken of requests which ask for them, and none does.

Calls of functions, those of C included, and instructions of Python are counted by the interpreter, and are
the same on each machine with this version of Python. They are those of a step at whose end no snapshot is
due: the fewest. The times are medians, and differ between machines: compare them within one run. "us" is
right after vLLM's scheduler, which leaves nothing of the session in the processor's caches, the less the
more requests there are; "us again" is the same step once more, right after it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final
from unittest import mock

import torch
from vllm.distributed import parallel_state

from benchmarks.results_file import keep, parser_of
from moescope.capture.counting import capturer
from moescope.capture.counting.word_writer import StreamWriter
from moescope.capture.session import CaptureSession
from moescope.capture.settings.environment import CaptureSettings
from tests.capture.scheduler import Scheduling, full_attention, model_config
from tests.capture.seam.runners import in_layers, runner

UNSENT: Final = {"MOESCOPE_ENDPOINT": "http://127.0.0.1:9", "MOESCOPE_INTERVAL": "60"}
"""Frames reach nobody, and so seldom that at the end of a step none is due, however slow the machine is."""
BATCHES: Final = (1, 8, 64, 256, 1024)
LAYERS: Final = 48
BLOCK: Final = 16
WARM_UP: Final = 60
STEPS: Final = 200
RESULTS: Final = Path(__file__).with_name("results") / "host_share.json"
MODES: Final = {"capture": {}, "traces on, of no request": {"MOESCOPE_TRACE_OPT_IN": "1"}}


def main() -> None:
    """Print the table, and write it."""
    options = parser_of(__doc__, RESULTS, STEPS).parse_args()
    rows = []
    print(f"{'batch':>5}  {'mode':<26} {'calls':>6} {'instructions':>13} {'us':>7} {'us again':>9}")
    for batch in BATCHES:
        for row in measure(batch, options.runs):
            rows.append(row)
            print(
                f"{row['batch']:>5}  {row['mode']:<26} {row['calls']:>6} {row['instructions']:>13} "
                f"{row['us']:>7.2f} {row['us_again']:>9.2f}"
            )
    keep(options, rows)


def measure(batch: int, steps: int) -> Iterator[dict[str, Any]]:
    """Calls, instructions and times of a step of so many requests, by mode; each mode gets so many steps."""
    with tempfile.TemporaryDirectory() as folder, one_rank(), as_on_a_gpu():
        scheduling = Scheduling(
            model_config(Path(folder)),
            [full_attention(BLOCK)],
            64 * batch + BLOCK,
            v2=True,
            max_num_seqs=batch,
            max_num_batched_tokens=max(64, 4 * batch),
        )
        for number in range(batch):
            prompt = [number % 50 + 1, *range(number % BLOCK + 1)]
            scheduling.add(f"cmpl-{number:06d}-0-1a2b3c4d", prompt, tokens=480)
        requests = SimpleNamespace(kv_cache_config=scheduling.cache, decode_query_len=1)
        sessions = {mode: session_of(scheduling.config, variables) for mode, variables in MODES.items()}
        found: dict[str, dict[str, list[int]]] = {
            mode: {name: [] for name in ("calls", "instructions", "us", "us_again")} for mode in MODES
        }
        try:
            for number in range(WARM_UP + len(MODES) * steps):
                output = scheduling.schedule()
                in_caches(output)
                for place, (mode, session) in enumerate(sessions.items()):
                    step = partial(run, session, output, requests)
                    if number < WARM_UP:
                        step()
                    elif number % len(sessions) == place:
                        take(step, number // len(sessions), found[mode])
                scheduling.finish(output)
        finally:
            for session in sessions.values():
                session.close()
    for mode, values in found.items():
        counted = {name: min(values[name]) for name in ("calls", "instructions")}
        times = {name: round(statistics.median(values[name]) / 1000, 2) for name in ("us", "us_again")}
        yield {"batch": batch, "mode": mode, **counted, **times}


def take(step: Callable[[], None], number: int, found: dict[str, list[int]]) -> None:
    """Take one of the measures of a step; the number of the step says which."""
    if number % 10 == 9:
        found["calls"].append(calls_of(step))
    elif number % 10 == 4:
        found["instructions"].append(instructions_of(step))
    else:
        found["us"].append(time_of(step))
        found["us_again"].append(time_of(step))


def in_caches(output: Any) -> None:
    """Look at the output's objects, as a worker has that has just received them."""
    cached = output.scheduled_cached_reqs
    for part in (output.num_scheduled_tokens.items(), cached.req_ids, cached.num_computed_tokens):
        hash(tuple(part))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Sessions count by one kernel a step, and write the step's word by the stream; nothing is launched."""
    kernels: Any = ModuleType("moescope.capture.counting.launch")
    kernels.supports, kernels.launch_step, kernels.launch_layer = bool, None, None
    with mock.patch.dict(sys.modules, {kernels.__name__: kernels}):
        sys.modules.pop("moescope.capture.counting.per_step", None)
        per_step = importlib.import_module("moescope.capture.counting.per_step")  # forgotten at once

    def strategies(buffers: Any, kept_ids_bytes: int) -> tuple[Any, Any]:
        return per_step.KernelPerStep(buffers, kept_ids_bytes), per_step.KernelPerLayer(buffers)

    with mock.patch.multiple(capturer, choose_strategy=strategies, choose_writer=played_writer):
        yield


def played_writer(word: torch.Tensor) -> StreamWriter:
    """A writer whose driver does nothing. The stream is a device's default one, as vLLM's is."""
    call = ctypes.CDLL(None).labs  # of 0, the stream, it is 0: no error
    call.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint)
    device = word.get_device()
    driver: Any = SimpleNamespace(write_value=call)
    return StreamWriter(word, driver, {device: 0}.__getitem__, partial(int, device))


def session_of(config: Any, variables: dict[str, str]) -> CaptureSession:
    """A session that has begun to serve, whose frames reach nobody."""
    settings = CaptureSettings.read({**UNSENT, **variables})[0]
    model = in_layers(*(runner(layer) for layer in range(LAYERS)))
    with mock.patch.dict(os.environ, {"VLLM_USE_V2_MODEL_RUNNER": "1"}):
        session = CaptureSession(model, config, torch.device("cpu"), settings)
    session.serving_begins()
    return session


def run(session: CaptureSession, output: Any, model_runner: Any) -> None:
    """What the worker's class does around a step of vLLM's."""
    session.step_begins(output, model_runner)
    session.step_ends()
    if session.hears_returned:
        session.step_returned(output)
    if session.hears_sampled:
        session.step_sampled(output)
    if session.hears_returned:
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


def instructions_of(step: Callable[[], None]) -> int:
    """Instructions of Python within it, in this thread."""
    count = 0

    def note(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return note

    earlier = sys.gettrace()
    sys.settrace(note)
    try:
        step()
    finally:
        sys.settrace(earlier)
    return count


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
