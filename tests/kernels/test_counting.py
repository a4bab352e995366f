"""The Triton kernels against the torch reference, over shapes, types and numbers of valid tokens."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.device import DEVICE, INTERPRETED  # skips first, where kernels can't run

# isort: split
from moescope.capture.counting import load_ring
from moescope.capture.counting.launch import launch_layer, launch_step
from moescope.capture.counting.pointer_tables import table_entry
from moescope.capture.counting.reference import count_rows
from moescope.capture.seam.replica_rule import ReplicaRule
from moescope.capture.step.word import MAX_TOKENS, Phase
from moescope.capture.wire import MoeLayer
from tests.kernels.bench import MODELS, Bench, make_ids, span

# The interpreter takes seconds for what a GPU does in microseconds.
DTYPES = [torch.int64, torch.int32, torch.uint8] + [torch.int16, torch.int8] * (not INTERPRETED)
ROWS = [257] + [1, 3, 64, 5000] * (not INTERPRETED)
EP_SIZES = [3, 72] + [0, 2, 16, 64, 320] * (not INTERPRETED)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", ROWS)
def test_equals_the_reference(name: str, dtype: torch.dtype, rows: int) -> None:
    bench = Bench(MODELS[name], num_valid=rows - rows // 3)
    for repeat, phase in enumerate(Phase):
        bench.phase = phase
        ids = {i: make_ids(rows, layer, dtype, 100 * repeat + i) for i, layer in enumerate(bench.layers)}
        bench.count(ids, {i: span(rows) for i in ids})
    expected = bench.check()
    assert sum(expected) > 0
    rows_by_phase = [int(bench.step.rows_of(0, phase)) for phase in (Phase.PREFILL, Phase.DECODE)]
    assert sum(rows_by_phase) == 3 * (rows - rows // 3)
    assert min(rows_by_phase) >= rows - rows // 3


@pytest.mark.parametrize("ep_size", EP_SIZES)
@pytest.mark.parametrize("name", ["qwen3-30b", "kimi-k2", "ragged", "more experts than bins"])
@pytest.mark.parametrize("phase", Phase)
def test_loads_by_ep_rank_for_any_number_of_ranks(name: str, ep_size: int, phase: Phase) -> None:
    bench = Bench(MODELS[name], 300, phase, ep_size)
    for repeat in range(3):
        ids = {i: make_ids(333, layer, torch.int32, 7 * repeat + i) for i, layer in enumerate(bench.layers)}
        bench.count(ids, {i: span(333) for i in ids})
    bench.check()


def test_the_ring_goes_round_and_each_place_is_emptied_before_its_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load_ring, "MIN_PLACES", 3)
    monkeypatch.setattr(load_ring, "RING_BYTES", 5 * 3 * 8 * 4)
    bench = Bench([(60, 4)] * 3, 20)
    assert bench.step.ring is not None
    assert bench.step.ring.capacity == 4
    for repeat in range(23):
        there = (
            (0, 1, 2) if repeat % 3 else (0, 2)
        )  # a layer that doesn't run leaves nothing of earlier rounds
        ids = {i: make_ids(20, bench.layers[i], torch.int32, 7 * repeat + i) for i in there}
        bench.count(ids, {i: span(20) for i in ids})
        for buffers in bench.all:  # a dummy step, whose kernels run too
            buffers.step_word.zero_()
        table = bench.table({i: table_entry(ids[i], span(20)) for i in ids})
        launch_step(table, bench.step, bench.step.flat, torch.int32, 80)
        bench.check()


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("parts", [[(0, 1), (2, 3)], [(0,), (1,), (2,), (3,)], [(0, 1, 2), (3,)]], ids=str)
def test_launches_that_come_early_in_a_step_count_as_one(parts: list[tuple[int, ...]], phase: Phase) -> None:
    """Each launch of a step counts some of its layers, and each empties the next step's place in the ring."""
    bench = Bench([(60, 4)] * 4, 70, phase)
    for repeat in range(3):
        ids = {i: make_ids(90, layer, torch.int32, 7 * repeat + i) for i, layer in enumerate(bench.layers)}
        bench.count_in_parts(ids, {i: span(90) for i in ids}, parts)
        bench.check()


def test_a_launch_without_rows_of_this_worker_still_empties_the_next_place() -> None:
    bench = Bench([(60, 4)] * 2, 20)
    ring = bench.step.ring
    assert ring is not None
    ring.loads[1].fill_(7)
    ids = make_ids(20, bench.layers[0], torch.int32, 0)
    bench.begin()
    launch_step(bench.table({0: table_entry(ids, span(0))}), bench.step, bench.step.flat, torch.int32, 0)
    assert int(ring.loads.sum()) == 0


@pytest.mark.parametrize("num_valid", [0, 1, 4, 5, 39, 40, 41, 1000, 2**31, MAX_TOKENS])
@pytest.mark.parametrize("phase", Phase)
def test_rows_beyond_the_valid_tokens_are_padding_without_overflow(num_valid: int, phase: Phase) -> None:
    bench = Bench([(160, 6), (60, 4)], num_valid, phase)
    ids = {i: make_ids(50, layer, torch.int32, i) for i, layer in enumerate(bench.layers)}
    spans = {0: span(36, start=7), 1: span(36, start=14, first_token=4)}
    bench.count(ids, spans)
    bench.check()
    assert int(bench.step.rows_of(1)) == min(36, max(0, num_valid - 4))


def test_no_valid_tokens_count_nothing_and_read_no_address() -> None:
    bench = Bench([(128, 8)], 0)
    wild = bench.table({0: (8, 1000, 0, 8, 8, 1, 0, 0)})
    launch_step(wild, bench.step, bench.step.flat, torch.int32, 8000)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    assert sum(bench.check()) == 0


@pytest.mark.parametrize("phase", Phase)
def test_columns_of_a_wider_tensor_and_strided_rows(phase: Phase) -> None:
    bench = Bench([(128, 8), (128, 8), (128, 8)], 90, phase)
    wide = make_ids(200, MoeLayer(0, 128, 16), torch.int32, 5)
    ids = {0: wide[:, 4:12], 1: wide[::2, :8], 2: wide[:, ::2]}
    assert not any(tensor.is_contiguous() for tensor in ids.values())
    bench.count(ids, {i: span(60, start=10) for i in ids})
    assert sum(bench.check()) > 0


def test_a_layer_that_did_not_run_counts_nothing() -> None:
    bench = Bench([(16, 2)] * 3, 10)
    first = {i: make_ids(10, layer, torch.int32, i) for i, layer in enumerate(bench.layers)}
    bench.count(first, {i: span(10) for i in first})
    second = {i: make_ids(10, bench.layers[i], torch.int32, i) for i in (0, 2)}
    bench.count(second, {i: span(10) for i in second})
    bench.check()
    assert [int(bench.step.rows_of(i)) for i in range(3)] == [20, 10, 20]


def test_counts_beyond_int32() -> None:
    bench = Bench([(2, 1)], 3, ep_size=0)
    for buffers in bench.all:
        buffers.flat.fill_(2**31 - 1)
    bench.count({0: torch.zeros(3, 1, dtype=torch.int32, device=DEVICE)}, {0: span(3)})
    most = 2**31 - 1
    assert bench.check() == [most + 3, most, most, most, most + 3, most]


def test_ids_that_all_go_to_one_expert() -> None:
    bench = Bench([(128, 8)] * 2, 16384)
    ids = {i: torch.full((16384, 8), 127 * i, dtype=torch.int32, device=DEVICE) for i in range(2)}
    bench.count(ids, {i: span(16384) for i in ids})
    bench.check()
    assert int(bench.step.counts_of(1)[127].item()) == 16384 * 8


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(("ep_size", "rule"), [(0, None), (8, None), (8, ReplicaRule.ROW_HASH)])
def test_microbatches_have_loads_of_their_own(phase: Phase, ep_size: int, rule: ReplicaRule | None) -> None:
    """Their launches come in turns, some early; a step that isn't split leaves the others' places empty.

    Where an expert has several copies, the row within the microbatch's own tensor tells which one is taken.
    """
    bench = Bench([(60, 4)] * 3, 70, phase, ep_size, rule=rule, microbatches=3)
    turns = [(0, (0, 1)), (1, (0, 1, 2)), (0, (2,)), (2, (0,)), (2, (1, 2))]
    for repeat in range(4):
        split = repeat % 2 == 0
        bench.begin()
        for microbatch, ordinals in turns if split else [(0, (0, 1, 2))]:
            rows = 25 if split else 80  # the third one has 20 true tokens
            ids = {i: make_ids(rows, bench.layers[i], torch.int32, 9 * repeat + i) for i in ordinals}
            mine = span(rows, first_token=rows * microbatch, microbatch=microbatch)
            table = bench.table({i: table_entry(of_layer, mine) for i, of_layer in ids.items()})
            launch_step(table, bench.step, bench.step.flat, torch.int32, rows * 4)
            for i, of_layer in ids.items():
                launch_layer(of_layer, mine, bench.layer, i, bench.layer.flat)
                count_rows(bench.reference, i, of_layer, mine, bench.reference.flat)
        bench.check()
        if bench.step.ring is not None:
            latest = bench.step.ring.loads[repeat].sum(dim=(1, 2))
            assert (latest > 0).tolist() == [True, split, split]
