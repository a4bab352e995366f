"""Pretended EP ranks take the place of what capture reads of vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

from devkit.fake_placement import pretend_ep_ranks
from moescope.capture import session as capture_session
from moescope.capture.seam import survey as capture_survey
from moescope.capture.wire import MoeLayer, unpack_ids

session: Any = capture_session  # they export none of what is replaced in them
survey: Any = capture_survey


def test_experts_are_spread_linearly_over_the_pretended_ranks() -> None:
    sizes = {0: 6, 1: 4, 2: 6}
    layers: list[Any] = [SimpleNamespace(spec=MoeLayer(layer, sizes[layer], 2)) for layer in sizes]
    read = session.read_producer
    try:
        pretend_ep_ranks(3)
        placement = survey.read_placement(layers, None)
        assert session.read_producer is not read
    finally:
        mock.patch.stopall()
    assert placement is not None
    assert placement.table_of_layer == [1, 0, 1]
    ranks = [unpack_ids(table.physical_to_ep_rank).tolist() for table in placement.tables]
    assert ranks == [[0, 0, 1, 2], [0, 0, 1, 1, 2, 2]]
    assert session.read_producer is read
