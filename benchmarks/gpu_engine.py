"""A vLLM engine on a GPU in this process, whose mode of capture can be switched between steps."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from benchmarks.gpu_callbacks import holding, keepers, torch_hook
from benchmarks.gpu_graphs import Graphs, RoutedExperts, capture, install
from devkit.fake_placement import pretend_ep_ranks
from devkit.gpu_models import deepseek_v2, qwen3_moe, write_model
from devkit.vllm_features import routed_experts_need_v2
from moescope.capture.seam.binding import LayerCallback
from moescope.capture.seam.requests import OPT_IN

SHAPES: Final[dict[str, Callable[[], dict[str, Any]]]] = {"qwen3": qwen3_moe, "deepseek": deepseek_v2}
SETS: Final = {"off": 5, "moescope": 5, "vllm": 1, "hooks": 1}
"""Modes, and how many sets of CUDA graphs are captured in each."""
MORE: Final = {
    "default": ("off", "moescope"),
    "references": ("off", "nothing", "references", "moescope"),
    "traces": ("off", "moescope", "traced"),
}
"""By experiment, the modes of which more sets are captured."""
CAPTURING: Final = ("moescope", "traced")
"""Modes in which capture counts."""
MORE_OF: Final = 8
"""The batch size for which more sets are captured, if no other is given."""
EP_RANKS: Final = 8
"""How many EP ranks are pretended, so that capture does all that it does with expert parallelism."""
KV_CACHE_BYTES: Final = 4 << 30
BATCHES: Final = (1, 8, 64, 256)
PREFILL_TOKENS: Final = 16384
BITS_OF_HELD: Final = 7


class Set(NamedTuple):
    """The `number`-th set of CUDA graphs captured in a mode."""

    mode: str
    number: int

    @property
    def held(self) -> int:
        """Small blocks of memory that are held while the set is captured: 0, 64, 32, 96, ... of 128."""
        return int(f"{self.number % (1 << BITS_OF_HELD):0{BITS_OF_HELD}b}"[::-1], 2)


def prepare_environment(endpoint: str) -> None:
    """What an `Engine` that sends to this endpoint needs, before vLLM is imported."""
    os.environ.update(MOESCOPE_ENDPOINT=endpoint, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    if importlib.util.find_spec("flashinfer") is None:
        os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


class Engine:
    """A vLLM engine in this process whose mode can be switched between steps."""

    def __init__(
        self,
        shape: str,
        folder: Path,
        more_sets: int,
        experiment: str,
        more_of: int = MORE_OF,
    ) -> None:
        from vllm import LLM

        pretend_ep_ranks(EP_RANKS)
        self._one_batch, self._more_of = experiment == "references", more_of
        self.config, self._cached = SHAPES[shape](), routed_experts_need_v2()
        self.llm = LLM(
            model=str(write_model(folder, self.config)),
            load_format="dummy",
            skip_tokenizer_init=True,
            worker_cls="moescope.capture.worker.RoutingWorker",
            enable_return_routed_experts=True,
            enable_prefix_caching=self._cached,
            max_model_len=16384,
            max_num_batched_tokens=PREFILL_TOKENS,
            max_num_seqs=max(BATCHES),
            compilation_config={"cudagraph_capture_sizes": list(BATCHES)},
            kv_cache_memory_bytes=KV_CACHE_BYTES // 2 if self._one_batch else KV_CACHE_BYTES,  # for more sets
            gpu_memory_utilization=0.92,
        )
        core: Any = self.llm.llm_engine.engine_core
        self._scheduler = core.engine_core.scheduler
        worker = core.engine_core.model_executor.driver_worker.worker
        self._runner, self._session = worker.model_runner, worker._capture
        self._own = RoutedExperts(self._runner, self._scheduler)
        self._routers = self._session._model._binding._routers
        modes = tuple(SETS) if experiment == "default" else MORE[experiment]
        self._callbacks = {mode: self._callbacks_of(mode) for mode in modes}
        self._graphs: dict[Set, Graphs] = {}
        self._requests, self._traced = 0, False
        self._base_sets = 1 if self._one_batch else SETS["off"]
        for number in range(self._base_sets):
            for mode in modes:
                if number < SETS.get(mode, SETS["off"]):
                    self._capture_graphs(Set(mode, number))
        for number in range(self._base_sets, SETS["off"] + more_sets):
            for mode in MORE[experiment]:
                self._capture_graphs(Set(mode, number), only=more_of)

    def _callbacks_of(self, mode: str) -> list[Any]:
        chained = [router.capture_fn for router in self._routers]
        if mode in CAPTURING:
            return [LayerCallback(i, self._session.capturer, None) for i in range(len(chained))]
        if mode == "vllm":
            return [callback.earlier for callback in chained]
        if mode == "nothing":
            return [lambda _: None] * len(chained)
        if mode == "references":
            return keepers(len(chained))
        if mode == "hooks":
            return [torch_hook(router) for router in self._routers]
        return [None] * len(chained)

    def sets(self, batch: int) -> list[Set]:
        """The sets of graphs that have graphs of their own for decode at this batch size."""
        return [which for which in self._graphs if batch == self._more_of or which.number < self._base_sets]

    def _capture_graphs(self, which: Set, only: int | None = None) -> None:
        """Capture a set; with `only` its decode graph of one size, the rest as in the first set.

        Where tensors lie changes how fast vLLM's own kernels are. So each set holds another number of blocks
        from a pass's first MoE layer to its last, the same in all modes, which moves all that follows.
        """
        self._set_callbacks(holding(self._callbacks[which.mode], which.held))
        self._session._taker.pause()
        first = None if only is None else self._graphs[Set(which.mode, 0)]
        self._graphs[which] = capture(self._runner, only, first)
        self._session._taker.resume()

    def _set_callbacks(self, callbacks: list[Any]) -> None:
        for router, callback in zip(self._routers, callbacks, strict=True):
            router.set_capture_fn(callback)

    def switch(self, which: Set) -> None:
        """From the next step on, run with these graphs in their mode; no request may be under way."""
        torch.cuda.synchronize()
        self._set_callbacks(self._callbacks[which.mode])
        install(self._runner, self._graphs[which])
        self._session._serving = which.mode in CAPTURING
        self._traced = which.mode == "traced"
        self._own.switch(which.mode == "vllm")
        if self._cached and not self.llm.reset_prefix_cache():  # each block has the same prompts
            raise RuntimeError("the prefix cache can't be emptied: a request is under way")

    def add(self, number: int, length: int, max_tokens: int) -> None:
        """Add requests with prompts of this length, the same in every call."""
        from vllm import SamplingParams

        rng = random.Random(0)  # noqa: S311
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args={OPT_IN: 1} if self._traced else None,
        )
        for _ in range(number):
            self._requests += 1
            prompt = [rng.randrange(1, self.config["vocab_size"]) for _ in range(length)]
            self.llm.llm_engine.add_request(str(self._requests), {"prompt_token_ids": prompt}, parameters)

    def step(self) -> float:
        """Run a step; its milliseconds."""
        start = time.perf_counter()
        self.llm.llm_engine.step()
        return (time.perf_counter() - start) * 1000

    def prefilled(self, number: int) -> bool:
        """Whether this many requests run, and all of them decode."""
        running = self._scheduler.running
        return len(running) == number and all(r.num_computed_tokens >= r.num_prompt_tokens for r in running)

    def drain(self) -> None:
        """Abort what is under way."""
        engine = self.llm.llm_engine
        engine.abort_request([str(number) for number in range(1, self._requests + 1)])
        while engine.has_unfinished_requests():
            engine.step()
        torch.cuda.synchronize()

    def memory_of_capture(self) -> dict[str, int]:
        """Bytes on the device: counts, tables, ring, snapshots, and the ids kept in the largest step."""
        capturer, transfers = self._session.capturer, self._session._taker._free
        layers, ring = capturer.buffers.layers, capturer.buffers.ring
        counts = capturer.buffers.flat.numel() * 8
        return {
            "counts and phases": counts + capturer.buffers.phases.numel(),
            "ring of loads": ring.num_bytes,
            "snapshots on their way": len(transfers) * (counts + ring.loads.numel() * 4),
            "tables": capturer.strategy_bytes,
            "ids kept in a step of the largest size": sum(
                PREFILL_TOKENS * layer.top_k * 4 for layer in layers
            ),
        }

    def close(self) -> dict[str, Any]:
        """What the capturer has counted, and whether it is exact."""
        capturer = self._session.capturer
        counts = [int(capturer.buffers.counts_of(i).sum()) for i in range(len(capturer.buffers.layers))]
        exact = all(
            total == capturer.totals.tokens * layer.top_k
            for total, layer in zip(counts, capturer.buffers.layers, strict=True)
        )
        return {
            "tokens": capturer.totals.tokens,
            "exact": exact,
            "decode tokens": capturer.totals.decode_tokens,
            "phases known": capturer.totals.phases_known,
            "steps in the ring": capturer.buffers.ring.computed,
            "strategy": capturer.strategy,
            "disabled": capturer.disabled_reason,
        }
