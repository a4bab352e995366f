"""Which launches get into a CUDA graph whose capture vLLM interrupts to run a part eagerly."""

from __future__ import annotations

from tests.capture.counting.noted_launches import Bench


def captured_with_a_break(bench: Bench, *parts: tuple[bool, list[int]]) -> None:
    """A pass whose graph vLLM interrupts: each part is captured or runs eagerly."""
    bench.breakable = True
    for captured, ordinals in parts:
        bench.capturing = captured
        bench.call(*ordinals)
    bench.breakable = bench.capturing = False


def test_a_part_that_runs_eagerly_within_a_capture_costs_no_layer_its_launch(bench: Bench) -> None:
    bench.make(layers=6)
    bench.call(*range(6))
    bench.launches.clear()
    captured_with_a_break(bench, (True, [0, 1, 2]), (False, [3, 4, 5]))
    assert bench.launches == [("graph", [0]), ("graph", [1]), ("graph", [2])]
    bench.launches.clear()
    bench.strategy.begin_step()  # a replay: only the eager part calls back
    bench.call(3, 4, 5)
    bench.strategy.end_step()
    assert bench.launches == [("now", [3, 4, 5])]


def test_a_part_in_the_middle_runs_eagerly_within_a_capture(bench: Bench) -> None:
    bench.make(layers=4)
    captured_with_a_break(bench, (True, [0]), (False, [1, 2]), (True, [3]))
    captured_with_a_break(bench, (True, [0]), (False, [1, 2]), (True, [3]))
    assert bench.launches == [("graph", [0]), ("graph", [3])] * 2
    bench.launches.clear()
    bench.strategy.begin_step()
    bench.call(1, 2)
    bench.strategy.end_step()
    assert bench.launches == [("now", [1, 2])]


def test_captures_whose_eager_parts_do_not_route_soon_get_one_launch(bench: Bench) -> None:
    captured_with_a_break(bench, (True, [0, 1, 2]))
    captured_with_a_break(bench, (True, [0, 1, 2]))
    assert bench.launches == [("graph", [0]), ("graph", [1]), ("graph", [2]), ("graph", [0, 1, 2])]


def test_an_eager_part_that_shows_late_leaves_the_rest_of_its_graph_whole(bench: Bench) -> None:
    captured_with_a_break(bench, (True, [0, 1, 2]))
    bench.launches.clear()
    captured_with_a_break(bench, (True, [0]), (False, [1]), (True, [2]))
    assert bench.launches == [("graph", [0, 2])]
    captured_with_a_break(bench, (True, [0]), (False, [1]), (True, [2]))
    assert bench.launches[1:] == [("graph", [0]), ("graph", [2])]
    bench.strategy.begin_step()
