"""A vLLM engine on a GPU in this process, whose mode of capture can be switched between steps."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from benchmarks.gpu_callbacks import holding, keepers, torch_hook
from benchmarks.gpu_graphs import Graphs, RoutedExperts, capture, install, is_v2
from benchmarks.gpu_requests import Requests
from devkit.fake_placement import pretend_ep_ranks
from devkit.gpu_models import deepseek_v2, gpt_oss, qwen3_moe, write_model
from devkit.vllm_features import routed_experts_need_v2
from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.seam.binding import LayerCallback
from moescope.capture.seam.requests import OPT_IN
from moescope.capture.session import CaptureSession

SHAPES: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "qwen3": qwen3_moe,
    "deepseek": deepseek_v2,
    "gpt-oss": gpt_oss,
}
OPTIONS: Final[dict[str, dict[str, Any]]] = {"gpt-oss": {"moe_backend": "marlin"}}
"""What vLLM is told of a shape: the kernels that it takes for gpt-oss on Hopper route inside."""
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
WORKER: Final = "moescope.capture.worker.RoutingWorker"
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


def start_llm(shape: str, folder: Path, **options: Any) -> Any:
    """vLLM's `LLM` of a shape, with dummy weights, and graphs for the batches of the benchmarks.

    Args:
        folder: where its config is written.
        options: of `LLM`, besides.
    """
    from vllm import LLM

    return LLM(
        model=str(write_model(folder, SHAPES[shape]())),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=16384,
        max_num_batched_tokens=PREFILL_TOKENS,
        max_num_seqs=max(BATCHES),
        compilation_config={"cudagraph_capture_sizes": list(BATCHES)},
        gpu_memory_utilization=0.92,
        **{"kv_cache_memory_bytes": KV_CACHE_BYTES, **OPTIONS.get(shape, {}), **options},
    )


def have_steps_counted(session: CaptureSession, on: bool) -> None:
    """From the next step on have steps announced to the capturer, or let them pass as in vLLM's warm-up.

    A session that neither serves nor warms up takes the next step for the end of warm-up, and serves.
    """
    session._serving, session._warming_up = on, not on


class Engine(Requests):
    """A vLLM engine in this process whose mode can be switched between steps.

    Args:
        shape: of `SHAPES`.
        folder: where the model's config is written.
        more_sets: sets that are captured of one decode graph only, in each mode of `MORE`, beyond the rest.
        experiment: of `MORE`.
        more_of: the batch size of that graph.
        without: modes that are left out.
        dp: DP ranks, of which this process is one; with several, experts are spread over them.
    """

    def __init__(
        self,
        shape: str,
        folder: Path,
        more_sets: int,
        experiment: str,
        more_of: int = MORE_OF,
        without: Sequence[str] = (),
        dp: int = 1,
    ) -> None:
        if dp == 1:
            pretend_ep_ranks(EP_RANKS)
        self._one_batch, self._more_of = experiment == "references", more_of
        modes = tuple(SETS) if experiment == "default" else MORE[experiment]
        modes = tuple(mode for mode in modes if mode not in without)
        self._cached = "vllm" in modes and routed_experts_need_v2()
        llm = start_llm(
            shape,
            folder,
            worker_cls=WORKER,
            enable_return_routed_experts="vllm" in modes,
            enable_prefix_caching=self._cached,
            enable_expert_parallel=dp > 1,
            distributed_executor_backend="uni",  # else vLLM starts processes for the workers of several ranks
            kv_cache_memory_bytes=KV_CACHE_BYTES // 2 if self._one_batch else KV_CACHE_BYTES,  # for more sets
        )
        super().__init__(llm, SHAPES[shape]()["vocab_size"])
        worker = self.core.model_executor.driver_worker.worker
        self._runner, self._session = worker.model_runner, worker._capture
        self._own = RoutedExperts(self._runner, self.core.scheduler)
        self._routers = self._session._model._binding._routers
        self._callbacks = {mode: self._callbacks_of(mode) for mode in modes}
        self._graphs: dict[Set, Graphs] = {}
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
        have_steps_counted(self._session, which.mode in CAPTURING)
        self.extra_args = {OPT_IN: 1} if which.mode == "traced" else None
        self._own.switch(which.mode == "vllm")
        if self._cached:
            self.forget_prefixes()

    def any_says(self, mine: bool) -> bool:
        """Whether this is so on any DP rank; each of them must ask."""
        from vllm.config import ParallelConfig

        group = self.llm.llm_engine.dp_group
        return mine if group is None else bool(ParallelConfig.has_unfinished_dp(group, mine))

    def facts(self) -> dict[str, str]:
        """What was measured on."""
        import vllm

        return {
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "model runner": "V2" if is_v2(self._runner) else "V1",
            "step's word": self._session.capturer.word_writer,
        }

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
        return exactness_of(self._session.capturer)


def exactness_of(capturer: RoutingCapturer) -> dict[str, Any]:
    """What a capturer has counted, and whether each layer has all slots of its tokens."""
    buffers, totals = capturer.buffers, capturer.totals
    counts = [int(buffers.counts_of(ordinal).sum()) for ordinal in range(len(buffers.layers))]
    exact = all(
        count == totals.tokens * layer.top_k for count, layer in zip(counts, buffers.layers, strict=True)
    )
    return {
        "tokens": totals.tokens,
        "exact": exact,
        "decode tokens": totals.decode_tokens,
        "phases known": totals.phases_known,
        "steps in the ring": 0 if buffers.ring is None else buffers.ring.computed,
        "strategy": capturer.strategy,
        "disabled": capturer.disabled_reason,
    }
