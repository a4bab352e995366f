"""`moescope placement`, as its users run it."""

from __future__ import annotations

import json

from moescope.capture import wire
from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.frames import frame, placement, producer


def _push(service: Service) -> None:
    table = placement([0, 1, 2, 3, 0, 0], [0, 0, 1, 1, 1, 0], layers=1, version=7)
    made = frame({3: [10] * 4}, who=producer(ep_size=2), placement=table)
    assert service.push(made).status_code == 200
    other = frame({3: [10] * 4}, who=producer(server="b\x1b[31m", ep_size=2))
    assert service.push(other).status_code == 200


def test_a_line_for_each_layer(service: Service) -> None:
    _push(service)
    done = run("placement", "--server", "prod", "--url", service.url)
    assert (done.returncode, done.stderr) == (0, "")
    row = next(line for line in done.stdout.splitlines() if line.startswith("    3 "))
    cells = row.split()
    assert cells[:7] == ["3", "4", "6", "3", "1", "1", "7"]


def test_the_copies_of_a_layers_experts(service: Service) -> None:
    _push(service)
    done = run("placement", "--server", "prod", "--layer", "3", "--url", service.url)
    assert done.returncode == 0
    assert "0 (0), 1 (4), 0 (5)" in done.stdout
    assert "version 7 since 2023-11-14" in done.stdout
    assert "EP rank 0 has 2 copies of expert 0: memory for nothing" in done.stdout
    answer = run("placement", "--server", "prod", "--layer", "3", "--json", "--url", service.url)
    assert len(json.loads(answer.stdout)["layers"][0]["copies"]) == 4


def test_what_is_not_known_has_its_reason_and_names_are_harmless(service: Service) -> None:
    _push(service)
    done = run("placement", "--server", "b\x1b[31m", "--url", service.url)
    assert done.returncode == 0
    assert "not known for 1 layers: no worker has told" in done.stdout
    assert "\x1b" not in done.stdout


def test_what_nobody_tells_is_said(service: Service) -> None:
    made = frame(
        {3: [10] * 4},
        who=producer(ep_size=2, dp_size=2),
        placement=placement([0, 1, 2, 3], [0, 0, 1, 1], layers=1),
        uncovered=[wire.UncoveredLayer(4, "monolithic kernel")],
        absent=[wire.UncoveredLayer(5, "not found")],
    )
    assert service.push(made).status_code == 200
    done = run("placement", "--url", service.url)
    assert done.returncode == 0
    for words in (
        "layer 4 is not covered: monolithic kernel",
        "layer 5 is absent: not found",
        "never reported",
    ):
        assert words in " ".join(done.stdout.split())
