"""A short form of the gate of searched bodies."""

from __future__ import annotations

import random

import pytest

from devkit.soak import hunt
from devkit.soak.genes import FRAME, TRACE, changed, crossed, frame_of, part_of, random_genes
from moescope.capture import wire
from moescope.capture.wire.traces import decode_part


def test_a_few_searched_bodies_take_no_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devkit.soak.genes.MOST_BYTES", 64 << 10)
    found = hunt.hunt(tries=15, seed=3)
    assert {item.kind for item in found} == {"frame", "trace"}
    assert any(item.verdict == "accepted" for item in found)
    for item in found:
        assert item.per_byte <= hunt.MOST_PER_BYTE, item.told()


@pytest.mark.parametrize("kind", ["frame", "trace"])
def test_genes_are_bodies_of_the_schema(kind: str) -> None:
    """Some are accepted, so the search is not among refusals only."""
    bounds, body_of, decode = {
        "frame": (FRAME, frame_of, wire.decode_frame),
        "trace": (TRACE, part_of, decode_part),
    }[kind]
    rng, taken = random.Random(1), 0
    genes = random_genes(bounds, rng)
    for _ in range(120):
        genes = changed(crossed(genes, random_genes(bounds, rng), rng), bounds, rng)
        assert all(0 <= genes[name] <= most for name, most in bounds.items())
        body = body_of(genes, 1)  # type: ignore[operator]
        if body is None:
            continue
        try:
            decode(body)  # type: ignore[operator]
        except wire.WireError:
            continue
        taken += 1
    assert taken
