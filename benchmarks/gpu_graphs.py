"""Sets of CUDA graphs of a running vLLM engine that can be captured again, and exchanged between steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Graphs(NamedTuple):
    """One set: piecewise graphs, and runner V1's full ones, by wrapper; runner V2's full ones by batch."""

    by_wrapper: dict[Any, dict[Any, Any]]
    full: dict[Any, Any]


def wrappers() -> list[Any]:
    """All of vLLM's wrappers that hold CUDA graphs."""
    from vllm.compilation.cuda_graph import CUDAGraphWrapper

    return list(CUDAGraphWrapper._all_instances)


def is_v2(runner: Any) -> bool:
    """Whether this is model runner V2, which keeps full graphs in its manager and not in a wrapper."""
    return hasattr(runner, "cudagraph_manager")


def capture(runner: Any, only: int | None, first: Graphs | None) -> Graphs:
    """Capture a set, in a memory pool of its own.

    Args:
        only: the number of tokens of the one decode graph to capture; all graphs, if None.
        first: the set from which the other graphs are, with `only`.
    """
    pool = torch.cuda.graph_pool_handle()
    for wrapper in wrappers():
        wrapper.concrete_cudagraph_entries, wrapper.graph_pool = {}, pool
    captured = _capture_v2(runner, only, pool) if is_v2(runner) else _capture_v1(runner, only)
    mine = Graphs({one: one.concrete_cudagraph_entries for one in wrappers()}, captured)
    if first is None:
        return mine
    merged = {one: first.by_wrapper.get(one, {}) | entries for one, entries in mine.by_wrapper.items()}
    return Graphs(merged, first.full | mine.full)


def _capture_v1(runner: Any, only: int | None) -> dict[Any, Any]:
    dispatcher = runner.cudagraph_dispatcher
    descriptors = dispatcher.get_capture_descs
    if only is not None:
        dispatcher.get_capture_descs = lambda: [
            (mode, mine)
            for mode, sizes in descriptors()
            if mode.name == "FULL" and (mine := [one for one in sizes if one.num_tokens == only])
        ]
    runner.capture_model()
    dispatcher.get_capture_descs = descriptors
    return {}


def _capture_v2(runner: Any, only: int | None, pool: Any) -> dict[Any, Any]:
    manager = runner.cudagraph_manager
    manager.graphs, manager.pool = {}, pool
    descriptors = manager._capture_descs
    if only is not None:
        manager._capture_descs = {
            mode: mine
            for mode, sizes in descriptors.items()
            if mode.name == "FULL" and (mine := [one for one in sizes if one.num_tokens == only])
        }
    runner.capture_model()
    manager._capture_descs = descriptors
    captured: dict[Any, Any] = manager.graphs
    return captured


def install(runner: Any, graphs: Graphs) -> None:
    """Have the next steps replay these graphs."""
    for wrapper, entries in graphs.by_wrapper.items():
        wrapper.concrete_cudagraph_entries = entries
    if is_v2(runner):
        runner.cudagraph_manager.graphs = graphs.full


class RoutedExperts:
    """vLLM's own return of routed experts, which can be switched off and on between steps."""

    def __init__(self, runner: Any, scheduler: Any) -> None:
        self._runner, self._scheduler = runner, scheduler
        self._connectors = [getattr(each, "aux_output_connector", None) for each in (runner, scheduler)]

    def switch(self, on: bool) -> None:
        """From the next step on."""
        if is_v2(self._runner):
            for each, connector in zip((self._runner, self._scheduler), self._connectors, strict=True):
                each.aux_output_connector = connector if on else None
        else:
            self._runner.routed_experts_initialized = on
            self._scheduler.enable_return_routed_experts = on
