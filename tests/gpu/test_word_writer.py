"""Words written by the stream: each is there for the work behind it, without a launch and without a wait."""

from __future__ import annotations

import re
import threading
from collections import Counter

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from moescope.capture.counting.word_writer import (
    Driver,
    FillWriter,
    StreamWriter,
    WordWriter,
    choose_writer,
    current_device_of,
    current_stream_of,
)
from moescope.capture.step.word import MAX_PLACES, MAX_TOKENS, Phase, pack_step
from tests.gpu.passes import full_graph, step
from tests.gpu.toy import CUDA, Toy

LARGEST = pack_step(MAX_TOKENS, Phase.MIXED, MAX_PLACES - 1)


def word_of() -> torch.Tensor:
    return torch.full((1,), -1, dtype=torch.int64, device=CUDA)


def writers(word: torch.Tensor) -> list[WordWriter]:
    """A fill, and the stream's write where the device has it."""
    found: list[WordWriter] = [FillWriter(word)]
    if Driver().can_write(0):
        found.append(StreamWriter(word, Driver(), current_stream_of(), current_device_of()))
    return found


def test_the_stream_writes_where_the_device_says_that_it_can() -> None:
    word = word_of()
    expected = "stream-write" if Driver().can_write(0) else "fill"
    assert choose_writer(word).name == expected
    assert int(word) == 0
    assert Toy().capturer.word_writer == expected


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("side", [False, True])
def test_each_word_is_there_for_the_work_behind_it(number: int, side: bool) -> None:
    word = word_of()
    if number == len(writers(word)):
        pytest.skip("the device's streams write no 64 bits")
    writer, seen = writers(word)[number], torch.zeros(300, 1, dtype=torch.int64, device=CUDA)
    values = [LARGEST, *range(298, 0, -1), 0]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream() if side else torch.cuda.current_stream()
    torch.cuda.set_sync_debug_mode("error")
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # about a twentieth of a second
        for value, one in zip(values, seen, strict=True):
            writer.write(value)
            one.copy_(word)
        busy = not stream.query()
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert busy, "the host has waited, or the device was not held for long enough"
    assert seen.flatten().tolist() == values


@pytest.mark.parametrize("number", [0, 1])
def test_steps_and_dummy_steps_in_graphs_count_exactly_without_a_wait(number: int) -> None:
    toy = Toy()
    if number == len(writers(toy.buffers.step_word)):
        pytest.skip("the device's streams write no 64 bits")
    toy.capturer._word = writers(toy.buffers.step_word)[number]
    toy.forward(512)
    replays = [full_graph(toy, rows, None) for rows in (64, 8)]
    for count in range(400):
        rows, replay = ((64, replays[0]), (8, replays[1]))[count % 2]
        step(toy, 1 + count % rows, replay)
        toy.expect(1 + count % rows)
        replay()  # a dummy step
    toy.check()


def test_a_thread_that_has_used_no_device_yet_writes_as_well() -> None:
    word = word_of()
    writer = choose_writer(word)
    thread = threading.Thread(target=lambda: writer.write(9))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert int(word) == 9


def test_a_step_of_one_phase_launches_nothing_for_its_word() -> None:
    toy = Toy()
    for writer, launches in zip(writers(toy.buffers.step_word), (2, 0), strict=False):
        toy.capturer._word = writer
        toy.capturer.begin_step(8, 8)
        toy.capturer.end_step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            torch.zeros(7, device=CUDA).cumsum(0)  # so that there is something to see
            toy.capturer.begin_step(8, 8)
            toy.capturer.end_step()
            torch.cuda.synchronize()
        kernels = Counter(
            event.name()
            for event in profiler.profiler.kineto_results.events()
            if event.device_type() == DeviceType.CUDA
        )
        assert kernels
        fills = sum(count for name, count in kernels.items() if re.search(r"FillFunctor(<long>|Il)", name))
        assert fills == launches, kernels
