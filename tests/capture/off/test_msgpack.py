"""Our msgpack, read by msgspec's."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.capture.off.msgpack import pack

LEAVES = st.text() | st.binary() | st.integers(0, 2**64 - 1)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(VALUES)
def test_what_is_packed_is_read(value: Any) -> None:
    assert msgspec.msgpack.decode(pack(value)) == value


def test_what_utf_8_cannot_carry_is_replaced() -> None:
    assert msgspec.msgpack.decode(pack("a\udc80b")) == "a?b"


@pytest.mark.parametrize(("value", "error"), [(1.5, TypeError), (None, TypeError), (-1, struct.error)])
def test_other_values_are_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        pack(value)
