"""The kernels find the columns of a table by name: their order is `pointer_tables.Field`'s alone."""

from __future__ import annotations

import itertools
from enum import IntEnum

import pytest
import torch

from tests.kernels.device import DEVICE  # skips first, where there is neither a GPU nor the interpreter

# isort: split
from moescope.capture.counting import kernels, launch, pointer_tables
from moescope.capture.counting.pointer_tables import ENTRY_COLUMNS, Field
from moescope.capture.step.word import Phase
from tests.anew import executed_anew
from tests.kernels.bench import Bench, make_ids, span

NAMES = [field.name for field in Field]


@pytest.mark.parametrize("names", [NAMES[::-1], NAMES[3:] + NAMES[:3], ["SPARE", *NAMES]], ids=str)
def test_columns_may_be_in_any_order(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    changed = IntEnum("Field", {name: column for column, name in enumerate(names)})  # type: ignore[misc]
    monkeypatch.setattr(pointer_tables, "Field", changed)
    monkeypatch.setattr(pointer_tables, "ENTRY_COLUMNS", [changed[field.name] for field in ENTRY_COLUMNS])
    monkeypatch.setattr(launch, "step_kernel", executed_anew(kernels).step_kernel)
    bench = Bench([(60, 4), (7, 3), (128, 8)], 90, Phase.MIXED)
    assert pointer_tables.blank_table(bench.layers).shape == (3, len(names))
    wide = torch.cat([make_ids(100, bench.layers[0], torch.int32, seed) for seed in (1, 2)], 1)
    ids = {0: wide[:, ::2], 1: make_ids(100, bench.layers[1], torch.int32, 3)}
    ids |= {2: make_ids(200, bench.layers[2], torch.int32, 4)[::2]}
    bench.count(ids, {0: span(70, start=10), 1: span(80), 2: span(60, start=5, first_token=12)})
    assert sum(bench.check()) > 0
    assert [int(bench.step.rows_of(i)) for i in ids] == [70, 80, 60]


def test_each_column_has_a_constant_in_the_kernels() -> None:
    for field in Field:
        assert getattr(kernels, f"_{field.name}").value == field
    assert kernels._FIELDS.value == len(Field)
    assert sorted(Field) == list(range(len(Field)))


def test_an_entry_fills_the_columns_that_it_names() -> None:
    bench = Bench([(60, 4), (7, 3)], 90)
    entry = (8, 1000, 5, 4, 6, 2, 9, 1)
    table = bench.table({1: entry})
    assert table.device == DEVICE
    assert [int(table[1, column]) for column in ENTRY_COLUMNS] == list(entry)
    ends = list(itertools.accumulate(layer.num_experts for layer in bench.layers))
    assert table[:, Field.COUNTS_START].tolist() == [0, *ends[:-1]]
    assert table[:, Field.NUM_EXPERTS].tolist() == [60, 7]
    assert int(table[0, Field.ROWS]) == 0
