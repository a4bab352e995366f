"""Arrays as bytes and back, and the errors that say which version is to be upgraded."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.capture.wire.arrays import (
    WireError,
    WireVersionError,
    pack_counts,
    pack_ids,
    unpack_counts,
    unpack_ids,
)


def test_counts_survive_up_to_the_ends_of_int64() -> None:
    values = np.array([0, 2**53 + 1, 2**63 - 1])
    assert unpack_counts(pack_counts(values)).tolist() == values.tolist()


def test_ids_survive_and_too_large_ones_are_refused() -> None:
    assert unpack_ids(pack_ids([0, 65535])).tolist() == [0, 65535]
    with pytest.raises(ValueError, match=r"0\.\.65535, got -1\.\.3"):
        pack_ids([3, -1])


def test_bytes_are_little_endian_and_in_c_order() -> None:
    assert pack_counts(np.array([[1, 2], [3, 256]])[:, ::-1]) == b"".join(
        value.to_bytes(8, "little") for value in (2, 1, 256, 3)
    )
    assert pack_ids([1, 256]) == b"\1\0\0\1"


def test_what_is_read_can_not_be_written_to() -> None:
    for values in (unpack_counts(bytes(16)), unpack_ids(bytes(4))):
        assert values.shape == (2,)
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1


def test_nothing_is_packed_as_nothing() -> None:
    assert pack_ids([]) == pack_counts(np.zeros(0, np.int64)) == b""
    assert unpack_ids(b"").size == unpack_counts(b"").size == 0


@pytest.mark.parametrize(
    ("got", "advice"), [(1, "upgrade moescope in vLLM's environment"), (3, "upgrade the service")]
)
def test_who_must_be_upgraded(got: int, advice: str) -> None:
    error = WireVersionError("trace", got, 2)
    assert isinstance(error, WireError)
    assert str(error) == f"the trace has wire version {got}, this service reads version 2: {advice}"
    assert error.got == got
