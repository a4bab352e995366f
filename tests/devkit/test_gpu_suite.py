"""The GPU suite's results, from real pytests that need no GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from devkit.gpu_results import read_junit, summarise, table
from devkit.gpu_suite import GROUPS, OF_VLLM, collect, command, note_ends, run
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
FACTS = {"vllm": "0.33.0", "torch": "2", "triton": "3", "gpus": ["a GPU"], "commit": "", "date": ""}
SUITE = """
import os, pytest

@pytest.mark.parametrize("name", ["one, V2", "two"])
def test_a(name, request):
    runner = "V2" if "V2" in name else ""
    request.node.user_properties.append(("scenario", f"{runner};2;{name}"))
    print(f"{name}: a line")
    assert name != "two" or "MENDED" in os.environ, "not mended"

def test_b():
    pytest.skip("no GPU")

@pytest.fixture
def broken():
    raise OSError("no fixture")

def test_c(broken):
    pass
"""


def results(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mended: bool = False, *more: str
) -> dict[str, Any]:
    """The results of the suite above as the group of kernels, after one more run of it."""
    work = folder / "work"
    (work / "junit").mkdir(parents=True, exist_ok=True)
    (folder / "test_suite.py").write_text(SUITE)
    number = len(list((work / "junit").iterdir()))
    junit = work / "junit" / f"kernels.{number}.xml"
    if mended:
        monkeypatch.setenv("MENDED", "1")
    group = GROUPS["kernels"]._replace(paths=(str(folder / "test_suite.py"),))
    each = [*command(group, junit), "-c", "/dev/null", f"--rootdir={folder}", *more]
    ended = note_ends(run({"kernels": each}, work, 60), work)
    return collect(work, folder / "out", FACTS, ended)


def test_results_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(tmp_path, monkeypatch)
    assert json.loads((tmp_path / "out" / "gpu-0.33.json").read_text()) == found
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert [(row["name"], row["passed"], row["failed"]) for row in found["groups"]] == [("kernels", 1, 2)]
    assert found["scenarios"] == [
        {"name": "one, V2", "runner": "V2", "gpus": 2, "passed": 1, "failed": 0, "skipped": 0, "not_run": ""},
        {"name": "two", "runner": "", "gpus": 2, "passed": 0, "failed": 1, "skipped": 0, "not_run": ""},
    ]
    failures = {entry["test"]: entry["message"] for entry in found["failures"]}
    assert failures.keys() == {"test_suite.py::test_a[two]", "test_suite.py::test_c"}
    assert "not mended" in failures["test_suite.py::test_a[two]"]
    assert "no fixture" in failures["test_suite.py::test_c"]
    assert found["skips"] == [{"test": "test_suite.py::test_b", "reason": "no GPU"}]
    assert found["printed"] == ["one, V2: a line", "two: a line"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu-0.33.json", "log.txt", "junit.zip"}
    text = table(found)
    assert "FAILED test_suite.py::test_a[two]" in text
    assert text.endswith("1 passed, 2 failed, 1 skipped")


def test_a_test_that_is_run_again_replaces_its_earlier_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert results(tmp_path, monkeypatch)["failed"] == 2
    found = results(tmp_path, monkeypatch, True, "-k", "two")
    assert (found["passed"], found["failed"], found["skipped"]) == (2, 1, 1)


def test_a_group_that_breaks_or_hangs_is_a_failure(tmp_path: Path) -> None:
    hangs = [sys.executable, "-c", "import time; time.sleep(600)"]
    codes = run({"engines": hangs}, tmp_path, 1)
    codes |= run({"eplb": [sys.executable, "-c", "exit(3)"]}, tmp_path, PATIENCE_S)
    assert codes == {"engines": None, "eplb": 3}
    ended = note_ends(codes, tmp_path)
    found = summarise(FACTS, {}, {}, ended)
    assert found["failed"] == 2
    assert [entry["test"] for entry in found["failures"]] == ["group engines", "group eplb"]
    again = note_ends({"engines": 0}, tmp_path)  # another call: the other group is still broken
    assert [entry["test"] for entry in summarise(FACTS, {}, {}, again)["failures"]] == ["group eplb"]


def test_a_scenario_that_all_tests_skip_was_not_run(tmp_path: Path) -> None:
    junit = tmp_path / "a.xml"
    junit.write_text(
        '<testsuites><testsuite><testcase classname="tests.gpu.test_vllm" name="test_x[s]" time="0.1">'
        '<properties><property name="scenario" value="V2;1;s, with; both"/></properties>'
        '<skipped type="pytest.skip" message="no draft models"/></testcase></testsuite></testsuites>'
    )
    found = summarise(FACTS, {"engines": "engines"}, {"engines": read_junit([junit])}, {})
    [row] = found["scenarios"]
    assert (row["name"], row["not_run"], row["skipped"]) == ("s, with; both", "no draft models", 1)


def test_each_test_module_is_in_one_group() -> None:
    paths = [path for group in GROUPS.values() for path in group.paths if path != "tests/kernels"]
    modules = [str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "gpu").glob("test_*.py")]
    assert sorted(paths) == sorted(modules)
    needing = [path for path in paths if 'importorskip("vllm"' in (ROOT / path).read_text()]
    assert sorted(needing) == sorted(path for group in OF_VLLM.values() for path in group.paths)
