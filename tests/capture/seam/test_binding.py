"""The single callback slot of a router: callbacks are chained, taken back, given back, and count once."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from moescope.capture.seam.binding import RouterBinding
from moescope.capture.seam.coverage import CaptureFn, RoutedLayer
from moescope.capture.wire import MoeLayer
from tests.capture.seam.runners import runner


class Calls:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def record(self, ordinal: int, topk_ids: torch.Tensor) -> None:
        self.seen.append((ordinal, len(topk_ids)))


def routers(number: int) -> tuple[list[CPURouter], tuple[RoutedLayer, ...]]:
    made = [CPURouter(top_k=2, global_num_experts=4) for _ in range(number)]
    return made, tuple(RoutedLayer(MoeLayer(i, 4, 2), router) for i, router in enumerate(made))


def route(router: CPURouter, rows: int) -> None:
    router.select_experts(torch.zeros(rows, 1), torch.rand(rows, 4))


def test_each_layer_records_under_its_ordinal() -> None:
    made, layers = routers(3)
    calls = Calls()
    assert RouterBinding(layers, calls).bind() == 3
    for rows, router in enumerate(made, start=1):
        route(router, rows)
    assert calls.seen == [(0, 1), (1, 2), (2, 3)]


def test_an_earlier_callback_is_called_too_and_given_back() -> None:
    (router,), layers = routers(1)
    earlier: list[int] = []
    callback: CaptureFn = lambda ids: earlier.append(len(ids))  # noqa: E731
    router.set_capture_fn(callback)
    calls = Calls()
    binding = RouterBinding(layers, calls)
    binding.bind()
    route(router, 5)
    assert (earlier, calls.seen) == ([5], [(0, 5)])
    binding.unbind()
    assert router.capture_fn is callback
    route(router, 6)
    assert (earlier, calls.seen) == ([5, 6], [(0, 5)])


def test_a_slot_taken_after_binding_is_taken_back_and_chained() -> None:
    # As `--enable-return-routed-experts` does during KV-cache set-up.
    (router,), layers = routers(1)
    calls, later = Calls(), list[int]()
    binding = RouterBinding(layers, calls)
    binding.bind()
    router.set_capture_fn(lambda ids: later.append(len(ids)))
    assert binding.bind() == 1
    route(router, 4)
    assert (later, calls.seen) == ([4], [(0, 4)])
    assert binding.bind() == 0


def test_a_callback_that_chains_ours_does_not_make_it_count_twice() -> None:
    (router,), layers = routers(1)
    calls = Calls()
    binding = RouterBinding(layers, calls)
    binding.bind()
    ours = router.capture_fn
    assert ours is not None
    router.set_capture_fn(lambda ids: ours(ids))
    binding.bind()
    route(router, 4)
    assert calls.seen == [(0, 4)]


def test_unbinding_leaves_a_slot_alone_that_somebody_else_took() -> None:
    (router,), layers = routers(1)
    calls = Calls()
    binding = RouterBinding(layers, calls)
    binding.bind()
    ours = router.capture_fn
    assert ours is not None
    theirs: CaptureFn = lambda ids: ours(ids)  # noqa: E731
    router.set_capture_fn(theirs)
    binding.unbind()
    assert router.capture_fn is theirs
    route(router, 3)
    assert calls.seen == []


def test_a_kernel_made_anew_behind_the_same_router_is_no_other_router_but_another_router_is() -> None:
    module = runner(0)
    binding = RouterBinding((RoutedLayer(MoeLayer(0, 8, 2), module.router, module),), Calls())
    assert not binding.looks_left()
    module.routed_experts.quant_method.moe_kernel = SimpleNamespace(
        impl=SimpleNamespace(fused_experts=object())
    )
    assert not binding.looks_left()
    assert not binding.looks_left()
    module.routed_experts.quant_method.moe_kernel = None
    assert not binding.looks_left()
    module.router = runner(0).router
    assert binding.looks_left()
    binding.renew()
    assert not binding.looks_left()
