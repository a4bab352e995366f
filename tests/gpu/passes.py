"""Steps of a toy model: eager, in full and in piecewise CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.gpu.toy import CUDA, Toy

Replay = Callable[[], None]


def captured(body: Callable[[], None], pool: object = None) -> torch.cuda.CUDAGraph:
    """A CUDA graph of the body."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        body()
    return graph


def full_graph(toy: Toy, rows: int, pool: object, ordinals: list[int] | None = None) -> Replay:
    """A forward pass captured as one graph, as what replays it."""
    toy.forward(rows, ordinals)  # as vLLM does before each capture
    return captured(lambda: toy.forward(rows, ordinals), pool).replay


def piecewise_graphs(toy: Toy, rows: int, pool: object) -> Replay:
    """A forward pass captured as a graph a layer, as what replays them with other work between."""
    toy.forward(rows)
    pieces = []
    for ordinal in range(len(toy.layers)):
        pieces.append(captured(lambda ordinal=ordinal: toy.layer(ordinal, rows), pool))
        torch.empty(rows, 64, device=CUDA).normal_()  # what runs between the pieces, outside of graphs

    def replay() -> None:
        for piece in pieces:
            piece.replay()
            torch.empty(rows, 64, device=CUDA).normal_()

    return replay


def step(toy: Toy, valid: int, run: Replay) -> None:
    """A step with ``valid`` tokens that are counted."""
    toy.new_input()
    toy.begin(valid)
    run()
    toy.capturer.end_step()
