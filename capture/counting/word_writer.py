"""How the step's word reaches the device, in the order of the current stream.

A fill is a kernel of its own. CUDA's streams can also write one number themselves (`cuStreamWriteValue64`):
the write waits for what was enqueued before it, and what is enqueued later sees it, as with a fill, but
nothing is launched. Both take the value with the call, so the host may write the next word at once.

A writer is for the thread that enqueues the steps, outside of CUDA graphs: a captured write would repeat the
word of one step in all of them.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch

logger = logging.getLogger("vllm.moescope")

LIBRARY: Final = "libcuda.so.1"
CAN_WRITE_64_BITS: Final = 122
"""CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS, of the second version of these calls (CUDA 11.7)."""
WRITE_DEFAULT: Final = 0
"""CU_STREAM_WRITE_VALUE_DEFAULT: earlier work in the stream is done before the value is written."""
TRIAL: Final = 0x5A01_2345_6789_ABCD
"""Written once at load; each of its bytes is another one."""

StreamOf = Callable[[int], int]
"""The current stream of the thread on a device, by the device's index, as the driver's handle. It is 0 for
the default stream of any device: the driver takes that of the thread's current device for it."""
DeviceOf = Callable[[], int]
"""The index of the thread's current device."""


class DriverError(RuntimeError):
    """The CUDA driver can't be called, or has refused a call."""


class WordWriter(Protocol):
    """Writes the step's word.

    Attributes:
        name: such as ``fill``.
    """

    name: str

    @property
    def write(self) -> Callable[[int], object]:
        """What enqueues the write of a value, from 0 to 2**63 - 1, in the current stream; it never waits."""


class FillWriter:
    """A fill by torch: on any device, and on a GPU a launch.

    Args:
        word: int64 [1].

    Attributes:
        write: see `WordWriter.write`; torch's own function, since each step calls it twice.
    """

    name = "fill"

    def __init__(self, word: torch.Tensor) -> None:
        self.write: Callable[[int], object] = word.fill_


class StreamWriter:
    """A write by the stream itself. If the driver refuses one, a fill does it, and all that follow.

    The driver can't be told of which device the default stream is meant: where the thread's current device is
    another than the word's just then, a fill does that write, for which torch finds the right one.

    Args:
        word: int64 [1] on a CUDA device; not in managed memory, which the driver refuses.
        driver: where the calls go.
        stream_of: tells the stream.
        device_of: tells the current device.
    """

    name = "stream-write"

    def __init__(self, word: torch.Tensor, driver: Driver, stream_of: StreamOf, device_of: DeviceOf) -> None:
        self._call, self._stream_of, self._device_of = driver.write_value, stream_of, device_of
        self._address, self._device = word.data_ptr(), word.get_device()
        self._fill = FillWriter(word)
        self._refused = False

    def write(self, value: int) -> None:
        """See `WordWriter.write`."""
        if not self._refused:
            device = self._device
            stream = self._stream_of(device)
            if stream or self._device_of() == device:
                status = self._call(stream, self._address, value, WRITE_DEFAULT)
                if status == 0:
                    return
                self._refuse(status)
        self._fill.write(value)

    def try_write(self, value: int) -> int:
        """A write that returns the driver's error, or 0, and is not made good by a fill.

        Raises:
            DriverError: the thread's current device is another one, and the stream its default one.
        """
        stream = self._stream_of(self._device)
        if not stream and (current := self._device_of()) != self._device:
            raise DriverError(f"the word is on device {self._device}, where the thread's is {current}")
        return int(self._call(stream, self._address, value, WRITE_DEFAULT))

    def _refuse(self, status: int) -> None:
        self._refused, self.name = True, FillWriter.name
        logger.warning("moescope: CUDA refuses to write a step's word (error %d): it is filled", status)


class Driver:
    """The calls of the CUDA driver that a `StreamWriter` needs.

    Attributes:
        write_value: cuStreamWriteValue64(stream, address, value, flags); its result is 0 if all is well.

    Raises:
        DriverError: there is no driver, or it is one before CUDA 11.7.
    """

    def __init__(self, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        # CDLL lets other threads run Python during a call: one that waits for room in the stream's queue must
        # not keep them, of which one may be what the device waits for.
        try:
            library = load(LIBRARY)
            self._device_get, self._attribute_of = library.cuDeviceGet, library.cuDeviceGetAttribute
            # Without its number the name is that of the first version, which a driver's option turns on.
            self.write_value = library.cuStreamWriteValue64_v2
        except (OSError, AttributeError) as error:
            raise DriverError(str(error)) from error
        pointer = ctypes.POINTER(ctypes.c_int)
        self._device_get.argtypes = (pointer, ctypes.c_int)
        self._attribute_of.argtypes = (pointer, ctypes.c_int, ctypes.c_int)
        self.write_value.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint)
        for call in (self._device_get, self._attribute_of, self.write_value):
            call.restype = ctypes.c_int

    def can_write(self, index: int) -> bool:
        """Whether streams of the device with this index can write 64 bits.

        Raises:
            DriverError: the driver doesn't say.
        """
        device, able = ctypes.c_int(), ctypes.c_int()
        status = self._device_get(device, index)
        status = status or self._attribute_of(able, CAN_WRITE_64_BITS, device)
        if status:
            raise DriverError(f"CUDA error {status}")
        return bool(able.value)


def current_stream_of() -> StreamOf:
    """What tells the current stream's handle: if this torch has it, the call that makes no object for it."""
    raw: StreamOf | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return raw or (lambda index: int(torch.cuda.current_stream(index).cuda_stream))


def current_device_of() -> DeviceOf:
    """What tells the current device: if this torch has it, the call that does nothing else."""
    raw: DeviceOf | None = getattr(torch._C, "_cuda_getDevice", None)
    return raw or torch.cuda.current_device


def choose_writer(word: torch.Tensor) -> WordWriter:
    """A `StreamWriter` where CUDA's streams can write, and have just shown it; else a `FillWriter`.

    Waits for the device once. The word is 0 afterwards.

    Args:
        word: int64 [1].
    """
    fill = FillWriter(word)
    if not _may_stream(word):
        return fill
    chosen: WordWriter = fill
    try:
        chosen = stream_writer(word, Driver(), current_stream_of(), current_device_of())
    except Exception as error:  # noqa: BLE001 - a fill does as well
        logger.info("moescope: a step's word is filled, CUDA's streams can't write it: %s", error)
    fill.write(0)
    return chosen


def _may_stream(word: torch.Tensor) -> bool:
    """Whether the word is on a device of CUDA's; torch calls those of ROCm so as well."""
    return word.is_cuda and torch.version.hip is None


def stream_writer(
    word: torch.Tensor, driver: Driver, stream_of: StreamOf, device_of: DeviceOf
) -> StreamWriter:
    """A writer that has written `TRIAL` to the word; waits for the device.

    Raises:
        DriverError: the driver can't, or refuses, or what was written is not there.
    """
    if not driver.can_write(word.get_device()):
        raise DriverError("the device has no such writes")
    writer = StreamWriter(word, driver, stream_of, device_of)
    status = writer.try_write(TRIAL)
    if status:
        raise DriverError(f"CUDA error {status}")
    found = int(word.item())
    if found != TRIAL:
        raise DriverError(f"it has {found:#x} where {TRIAL:#x} was written")
    return writer
