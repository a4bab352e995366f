"""`moescope traces`, as its users run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, encode_part
from tests.service.cli.running import Done, run
from tests.service.conftest import Service
from tests.service.trace_parts import experts_of, part


@pytest.fixture
def service(start_service: Callable[..., Service], tmp_path: Path) -> Service:
    """A service with traces x1 (two positions were cached) and x2."""
    made = start_service(store=tmp_path / "store")
    for trace in (part(1, tokens=4, runs=[(2, 4)], cached_tokens=2), part(2, tokens=7)):
        headers = {"content-type": TRACE_CONTENT_TYPE}
        assert made.client.post("/v1/traces", content=encode_part(trace), headers=headers).status_code == 200
    return made


def traces(service: Service, *arguments: str) -> Done:
    return run("traces", *arguments, "--url", service.url, columns=140)


def test_list(service: Service) -> None:
    done = traces(service, "list")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "ended" in line and "x" in line.split()[1]]
    assert [line.split()[1] for line in lines] == ["x2", "x1"]
    assert "more than 1" in traces(service, "list", "--limit", "1").stdout
    assert "No traces." in traces(service, "list", "--min-tokens", "8").stdout


def test_show(service: Service) -> None:
    done = traces(service, "show", "cmpl-x1", "--layer", "3", "--end", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not computed") == 2
    for row in experts_of(1, 4)[1][:2]:
        assert " ".join(str(expert) for expert in row) in done.stdout
    assert "layer 1 " not in done.stdout


def test_export(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "x2.npz"
    assert traces(service, "export", "x2", str(file), "--layer", "1").returncode == 0
    np.testing.assert_array_equal(np.load(file)["routed_experts"][:, 0], experts_of(2, 7)[0])


def test_mistakes_are_explained(service: Service, tmp_path: Path) -> None:
    unknown = traces(service, "show", "nobody")
    assert unknown.returncode == 2
    assert "'nobody': it wasn't sampled (MOESCOPE_TRACE_RATE)" in unknown.stderr
    bad = traces(service, "export", "x1", str(tmp_path / "x1.txt"))
    assert bad.returncode == 2
    assert ".npz" in bad.stderr


def listed_and_shown(service: Service, name: str) -> list[str]:
    """What the commands print of a trace with this id."""
    headers = {"content-type": TRACE_CONTENT_TYPE}
    made = encode_part(part(3, name=name))
    assert service.client.post("/v1/traces", content=made, headers=headers).status_code == 200
    texts = []
    for arguments in (["list"], ["show", name]):
        done = traces(service, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        texts.append(done.stdout)
    return texts


def test_ids_that_look_like_markup_stand_as_they_are(service: Service) -> None:
    name = "[/red]:smile:[bold]"
    assert all(name in text for text in listed_and_shown(service, name))


def test_ids_give_a_terminal_no_orders(service: Service) -> None:
    for text in listed_and_shown(service, "a\x1b[2Jb"):
        assert "\x1b" not in text
        assert "a\ufffd[2Jb" in text
