"""Engines with one worker class after another: ``python -m tests.e2e.attachment.child MODEL CONNECTION``.

The first engine runs without ``MOESCOPE``. Then vLLM's plugins are loaded anew with ``MOESCOPE=1``. Each name
that comes over the connection, a file descriptor, is a case: an engine with its worker class and extension,
which serves the same requests.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from devkit.frame_sink import FrameSink
from devkit.vllm_server import ENVIRONMENT
from tests.e2e.attachment.weights import serve_while_weights_change
from tests.e2e.small_engine import SMALL_ENGINE
from tests.waiting import wait_until

FOREIGN = "tests.e2e.attachment.foreign"


@dataclass(frozen=True)
class Case:
    """A worker class and an extension by name, how often vLLM's plugins are loaded before, and variables.

    With ``weights_change`` it is served as `serve_while_weights_change` says.
    """

    worker: str = "auto"
    extension: str = ""
    loads: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    weights_change: bool = False


CASES = {
    "vLLM's own": Case(),
    "somebody else's": Case(f"{FOREIGN}.Foreign"),
    "an extension": Case(extension=f"{FOREIGN}.Extension"),
    "both": Case(f"{FOREIGN}.Foreign", f"{FOREIGN}.Extension"),
    "both in one": Case(f"{FOREIGN}.Extended", f"{FOREIGN}.Extension"),
    "moescope's": Case("moescope.capture.worker.RoutingWorker"),
    "moescope's and an extension": Case("moescope.capture.worker.RoutingWorker", f"{FOREIGN}.Extension"),
    "loaded again": Case(loads=3),
    "steps of its own": Case(f"{FOREIGN}.Loner"),
    "warm-up of its own": Case(f"{FOREIGN}.OwnWarmUp"),
    "runner called directly": Case(f"{FOREIGN}.Direct"),
    "no relation": Case(f"{FOREIGN}.Borrowed"),
    "odd at the start": Case(f"{FOREIGN}.OddAtStart"),
    "odd at the start, disable": Case(f"{FOREIGN}.OddAtStart", env={"MOESCOPE_ON_ERROR": "disable"}),
    "odd in traffic": Case(f"{FOREIGN}.Odd"),
    "odd in traffic, raise": Case(f"{FOREIGN}.Odd", env={"MOESCOPE_ON_ERROR": "raise"}),
    "weights that change": Case(
        extension=f"{FOREIGN}.Extension", env={"MOESCOPE_TRACE_RATE": "1"}, weights_change=True
    ),
    "bad settings": Case(env={"MOESCOPE_INTERVAL": "soon", "MOESCOPE_TRACE_RATE": "lots"}),
}


def load_plugins() -> None:
    """Load vLLM's plugins as a process of its own does."""
    from vllm import plugins

    plugins.plugins_loaded = False
    plugins.load_general_plugins()


class Engine:
    """An engine in this process."""

    def __init__(self, model: str, case: Case) -> None:
        from vllm import LLM

        self.llm = LLM(
            model=model,
            worker_cls=case.worker,
            worker_extension_cls=case.extension,
            **SMALL_ENGINE,
        )

    @property
    def worker(self) -> Any:
        """The engine's worker."""
        return self.llm.llm_engine.model_executor.driver_worker.worker

    def serve(self) -> tuple[list[list[int]], int]:
        """The requests' tokens, and how many tokens were computed."""
        from vllm import SamplingParams

        prompts = [f"{index} is the number of this prompt " * (1 + index % 3) for index in range(8)]
        parameters = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
        outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        computed = sum(
            len(output.prompt_token_ids) + len(output.outputs[0].token_ids) - 1 for output in outputs
        )
        return tokens, computed

    def close(self) -> None:
        """End it, so that another can start in this process."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm


def clean_up() -> None:
    """Leave nothing of an engine, also of one that failed."""
    from vllm.distributed import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()


def set_imports_aside() -> None:
    """Have each garbage collection look at engines only: vLLM asks for many, and its modules are large.

    vLLM does the same with what it has at the end of a start, and takes it back at the engine's end.
    """
    gc.collect()
    gc.freeze()
    gc.freeze = gc.unfreeze = lambda: None


def run(model: str, case: Case) -> dict[str, Any]:
    """One case, from the engine's start to its end."""
    sink = FrameSink()
    os.environ.update({"MOESCOPE_ENDPOINT": sink.url, "MOESCOPE_INTERVAL": "0.05", **case.env})
    for _ in range(case.loads):
        load_plugins()
    try:
        return _run(model, case, sink)
    except AssertionError as error:
        time.sleep(0.5)  # nothing more comes
        last = sink.frames[-1]
        return {"ended": str(error), "state": last.state, "reason": last.state_reason}
    finally:
        for name in case.env:
            del os.environ[name]
        clean_up()


def _run(model: str, case: Case, sink: FrameSink) -> dict[str, Any]:
    engine = Engine(model, case)
    if case.weights_change:
        try:
            return serve_while_weights_change(engine, sink, model)
        finally:
            engine.close()
    tokens, computed = engine.serve()

    def told() -> bool:
        return any(frame.state == "disabled" or frame.tokens >= computed for frame in list(sink.frames))

    with contextlib.suppress(AssertionError):
        wait_until(told, "no frame tells of it")
    frame = sink.frames[-1] if sink.frames else None
    worker = engine.worker
    seen = {
        "ended": None,
        "tokens": tokens,
        "computed": computed,
        "classes": [base.__name__ for base in type(worker).__mro__],
        "foreign_steps": getattr(worker, "foreign_steps", 0),
        "says": engine.llm.collective_rpc("extension_says") if case.extension else [],
        "state": frame and frame.state,
        "reason": frame and frame.state_reason,
        "counted": frame and frame.tokens,
        "rows": frame and np.frombuffer(frame.rows, "<i8").tolist(),
        "producers": len({f.producer.key for f in sink.frames}),
        "epochs": len({f.epoch for f in sink.frames}),
    }
    engine.close()
    return seen


def main(model: str, connection: str) -> None:
    os.environ.update(ENVIRONMENT)
    os.environ.pop("MOESCOPE", None)
    engine = Engine(model, CASES["vLLM's own"])
    classes = [base.__name__ for base in type(engine.worker).__mro__]
    plain = engine.serve()[0]
    engine.llm.collective_rpc("reload_weights")
    reloaded = engine.serve()[0]
    engine.close()
    clean_up()
    set_imports_aside()
    os.environ["MOESCOPE"] = "1"
    with Connection(int(connection)) as tests:
        started = {"capture_at_start": "CapturingWorker" in classes, "plain": plain, "reloaded": reloaded}
        tests.send(started)
        with contextlib.suppress(EOFError):
            while True:
                tests.send(run(model, CASES[tests.recv()]))
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
