"""Writing a step's word: the driver's interface as its header has it; a fill wherever streams can't write.

The writes themselves are tested on a GPU (`tests/gpu/test_word_writer.py`). Here the driver is played by C
functions that ctypes makes, so that arguments pass through the declared types.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moescope.capture.counting import word_writer
from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.counting.word_writer import (
    CAN_WRITE_64_BITS,
    LIBRARY,
    TRIAL,
    Driver,
    DriverError,
    StreamWriter,
    choose_writer,
    stream_writer,
)
from moescope.capture.seam.rows import Ranks, StepRows
from moescope.capture.settings.environment import OnError
from moescope.capture.step.word import MAX_PLACES, MAX_TOKENS, Phase, pack_step
from moescope.capture.wire import MoeLayer

INT_POINTER = ctypes.POINTER(ctypes.c_int)
STREAM = 0x7F00_1234_5678
ELSEWHERE = 7
"""A device that is not the word's."""


class Library:
    """A driver whose device has the writes, which the caller's memory gets at once.

    Attributes:
        able: the device's attribute.
        errors: what the next writes return, 0 once it is empty; a write with an error writes nothing.
        asked: the attributes that were asked for, with the device.
        streams: those of the writes that were done.
    """

    def __init__(self, able: int = 1, errors: list[int] | None = None, attribute_error: int = 0) -> None:
        self.able, self.errors, self._attribute_error = able, errors or [], attribute_error
        self.asked: list[tuple[int, int]] = []
        self.streams: list[int] = []
        c_int, c_uint64 = ctypes.c_int, ctypes.c_uint64
        self.cuDeviceGet = ctypes.CFUNCTYPE(c_int, INT_POINTER, c_int)(self._device)
        self.cuDeviceGetAttribute = ctypes.CFUNCTYPE(c_int, INT_POINTER, c_int, c_int)(self._attribute)
        self.cuStreamWriteValue64_v2 = ctypes.CFUNCTYPE(
            c_int, ctypes.c_void_p, c_uint64, c_uint64, ctypes.c_uint
        )(self._write)

    def _device(self, device: Any, ordinal: int) -> int:
        device[0] = 100 + ordinal
        return 0

    def _attribute(self, value: Any, attribute: int, device: int) -> int:
        self.asked.append((attribute, device))
        value[0] = self.able
        return self._attribute_error

    def _write(self, stream: int, address: int, value: int, flags: int) -> int:
        assert flags == 0
        error = self.errors.pop(0) if self.errors else 0
        if error == 0:
            self.streams.append(stream)
            ctypes.c_uint64.from_address(address).value = value
        return error


def driver_of(library: object) -> Driver:
    def load(name: str) -> object:
        assert name == LIBRARY
        return library

    return Driver(load)


def word_of() -> torch.Tensor:
    return torch.full((1,), -1, dtype=torch.int64)


def written_by(word: torch.Tensor, library: Library) -> StreamWriter:
    return stream_writer(word, driver_of(library), lambda _: STREAM, lambda: ELSEWHERE)


def header() -> str:
    triton = pytest.importorskip("triton", reason="the driver's header comes with Triton")
    path = Path(triton.__file__).parent / "backends/nvidia/include/cuda.h"
    return path.read_text(errors="replace")


def test_the_numbers_are_those_of_the_driver_s_header() -> None:
    text = header()
    wanted = {"CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS": CAN_WRITE_64_BITS}
    wanted["CU_STREAM_WRITE_VALUE_DEFAULT"] = word_writer.WRITE_DEFAULT
    for name, value in wanted.items():
        found = re.search(rf"\b{name}\s*=\s*(\w+)", text)
        assert found is not None
        assert int(found[1], 0) == value


def test_the_types_are_those_of_the_driver_s_header() -> None:
    text, library = header(), Library()
    driver_of(library)
    types = {
        "CUstream": ctypes.c_void_p,
        "CUdeviceptr": ctypes.c_uint64,
        "cuuint64_t": ctypes.c_uint64,
        "unsigned int": ctypes.c_uint,
        "int": ctypes.c_int,
        "CUdevice": ctypes.c_int,
        "CUdevice_attribute": ctypes.c_int,
        "int *": INT_POINTER,
        "CUdevice *": INT_POINTER,
    }
    assert re.search(r"typedef int CUdevice_v1;", text)
    assert re.search(r"typedef unsigned long long CUdeviceptr_v2;", text)
    for name in ("cuDeviceGet", "cuDeviceGetAttribute", "cuStreamWriteValue64_v2"):
        found = re.search(rf"CUresult CUDAAPI {name}\(([^)]*)\)", text)
        assert found is not None
        parameters = [re.fullmatch(r"(.*?)\w+", each.strip()) for each in found[1].split(",")]
        declared = [types[each[1].strip()] for each in parameters if each is not None]
        call = getattr(library, name)
        assert list(call.argtypes) == declared, name
        assert call.restype is ctypes.c_int


def test_a_stream_that_can_write_is_tried_and_then_asked() -> None:
    word, library = word_of(), Library()
    writer = written_by(word, library)
    assert int(word) == TRIAL
    assert library.asked == [(CAN_WRITE_64_BITS, 100 + word.get_device())]
    for value in (pack_step(MAX_TOKENS, Phase.MIXED, MAX_PLACES - 1), 1, 0):
        writer.write(value)
        assert int(word) == value
    assert library.streams == [STREAM] * 4
    assert writer.name == "stream-write"


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (Library(able=0), "the device has no such writes"),
        (Library(attribute_error=1), "CUDA error 1"),
        (Library(errors=[801]), "CUDA error 801"),
    ],
    ids=["attribute", "attribute's error", "refused"],
)
def test_a_driver_that_cannot_is_not_used(library: Library, reason: str) -> None:
    word = word_of()
    with pytest.raises(DriverError, match=reason):
        written_by(word, library)
    assert int(word) == -1


def test_a_driver_whose_write_arrives_elsewhere_is_not_used() -> None:
    word, elsewhere = word_of(), word_of()
    library = Library()
    write = library.cuStreamWriteValue64_v2
    library.cuStreamWriteValue64_v2 = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint
    )(lambda stream, _, value, flags: int(write(stream, elsewhere.data_ptr(), value, flags)))
    with pytest.raises(DriverError, match="where 0x5a0123456789abcd was written"):
        written_by(word, library)


def test_a_write_that_is_refused_later_is_filled_and_all_after_it(caplog: pytest.LogCaptureFixture) -> None:
    word, library = word_of(), Library(errors=[0, 0, 900])
    writer = written_by(word, library)
    with caplog.at_level(logging.WARNING, logger="vllm.moescope"):
        for value in (5, 6, 7):
            writer.write(value)
            assert int(word) == value
    assert len(library.streams) == 2  # the trial and the first
    assert writer.name == "fill"
    assert [record.getMessage() for record in caplog.records] == [
        "moescope: CUDA refuses to write a step's word (error 900): it is filled"
    ]


def test_a_write_in_the_default_stream_needs_the_word_s_device_to_be_the_thread_s() -> None:
    """The driver would take the default stream of another device, which has no order with the steps'."""
    word, library = word_of(), Library()
    current = here = word.get_device()
    writer = stream_writer(word, driver_of(library), lambda _: 0, lambda: current)
    assert (int(word), library.streams) == (TRIAL, [None])
    for current, value in ((here, 5), (ELSEWHERE, 6), (here, 7), (ELSEWHERE, 0)):
        library.streams.clear()
        writer.write(value)
        assert (int(word), len(library.streams)) == (value, current == here)
    assert writer.name == "stream-write"


def test_no_trial_in_the_default_stream_of_another_device() -> None:
    word, library = word_of(), Library()
    with pytest.raises(DriverError, match=f"device {word.get_device()}, where the thread's is {ELSEWHERE}"):
        stream_writer(word, driver_of(library), lambda _: 0, lambda: ELSEWHERE)
    assert (int(word), library.streams) == (-1, [])


def without(name: str) -> object:
    library = {each: getattr(Library(), each) for each in ("cuDeviceGet", "cuDeviceGetAttribute")}
    library["cuStreamWriteValue64_v2"] = Library().cuStreamWriteValue64_v2
    del library[name]
    return SimpleNamespace(**library)


def no_library(_: str) -> object:
    raise OSError(f"{LIBRARY}: cannot open shared object file")


@pytest.mark.parametrize("load", [no_library, lambda _: without("cuStreamWriteValue64_v2")])
def test_a_machine_without_the_driver_s_call(load: Callable[[str], object]) -> None:
    with pytest.raises(DriverError, match=r"libcuda|cuStreamWriteValue64_v2"):
        Driver(load)


def test_a_word_on_a_cpu_is_filled_without_asking_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_writer, "Driver", lambda: pytest.fail("the driver was asked"))
    word = word_of()
    writer = choose_writer(word)
    writer.write(7)
    assert (writer.name, int(word)) == ("fill", 7)


def test_a_gpu_whose_streams_cannot_write_has_its_word_filled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(word_writer, "_may_stream", lambda _: True)
    monkeypatch.setattr(word_writer, "Driver", lambda: driver_of(Library(errors=[801])))
    monkeypatch.setattr(word_writer, "current_stream_of", lambda: lambda _: STREAM)
    monkeypatch.setattr(word_writer, "current_device_of", lambda: lambda: ELSEWHERE)
    word = word_of()
    with caplog.at_level(logging.INFO, logger="vllm.moescope"):
        writer = choose_writer(word)
    assert (writer.name, int(word)) == ("fill", 0)
    assert "CUDA's streams can't write it: CUDA error 801" in caplog.text
    writer.write(3)
    assert int(word) == 3


def test_a_capturer_writes_its_words_by_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a step of decode two, of a mixed one three; the device's kernels find each where they run."""
    library = Library()
    monkeypatch.setattr(word_writer, "_may_stream", lambda _: True)
    monkeypatch.setattr(word_writer, "Driver", lambda: driver_of(library))
    monkeypatch.setattr(word_writer, "current_stream_of", lambda: lambda _: STREAM)
    monkeypatch.setattr(word_writer, "current_device_of", lambda: lambda: ELSEWHERE)
    buffers = CountBuffers([MoeLayer(0, 8, 2)], torch.device("cpu"), 16)
    capturer = RoutingCapturer(buffers, Ranks(), lambda: StepRows(None, None))
    assert (capturer.word_writer, int(buffers.step_word)) == ("stream-write", 0)
    library.streams.clear()
    capturer.begin_step(4, 4)
    assert int(buffers.step_word) == pack_step(4, Phase.DECODE)
    capturer.record(0, torch.tensor([[1, 2]] * 4))
    capturer.end_step()
    assert (int(buffers.step_word), len(library.streams)) == (0, 2)
    capturer.begin_step(3, 1)
    capturer.set_phases(torch.tensor([1, 0, 0], dtype=torch.uint8).numpy())
    assert int(buffers.step_word) == pack_step(3, Phase.MIXED)
    capturer.record(0, torch.tensor([[5, 2]] * 3))
    capturer.end_step()
    assert (int(buffers.step_word), len(library.streams)) == (0, 5)
    assert buffers.counts_of(0, Phase.PREFILL).tolist() == [0, 0, 2, 0, 0, 2, 0, 0]
    assert buffers.counts_of(0, Phase.DECODE).tolist() == [0, 4, 5, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("when", ["before the phases", "before the step's word arrives"])
def test_no_word_is_left_of_a_step_in_which_another_thread_ends_counting(when: str) -> None:
    """Its fill may run before the step's own word arrives: another stream has no order with the steps'."""
    buffers = CountBuffers([MoeLayer(0, 8, 2)], torch.device("cpu"), 16)
    capturer = RoutingCapturer(buffers, Ranks(), lambda: StepRows(None, None))
    capturer.begin_step(3, 1)
    word = int(buffers.step_word)
    capturer.disable("for a test")
    if when == "before the phases":
        capturer.set_phases(torch.tensor([1, 0, 0], dtype=torch.uint8).numpy())
        assert int(buffers.step_word) == 0
    else:
        buffers.step_word.fill_(word)
    capturer.end_step()
    assert int(buffers.step_word) == 0
    assert capturer.totals.steps == 0
    capturer.begin_step(3, 1)
    assert int(buffers.step_word) == 0


def test_no_word_is_left_of_a_step_that_an_unknown_layout_ends() -> None:
    buffers = CountBuffers([MoeLayer(0, 8, 2)], torch.device("cpu"), 16)
    rows = StepRows([4, 3], None)
    capturer = RoutingCapturer(buffers, Ranks(0, 2), lambda: rows, OnError.RAISE)
    capturer.begin_step(4, 4)
    with pytest.raises(AssertionError, match="batch of 5 rows"):
        capturer.record(0, torch.zeros((5, 2), dtype=torch.int64))
    capturer.end_step()  # vLLM's call has failed; it may go on with the next one
    assert int(buffers.step_word) == 0
