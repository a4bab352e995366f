"""docs/versions.md is made from the results of the matrix; a run replaces the rows of what it ran only."""

from __future__ import annotations

from pathlib import Path

from devkit.matrix.document import NOTHING, PAGE, README, gpu_runs, in_short, render, with_table
from devkit.matrix.record import CPU_RESULTS, Record, merge, read, write
from moescope.capture.seam.versions import TESTED, series


def record(version: str, layout: str = "one rank", **fields: object) -> Record:
    made: dict[str, object] = {"on": "2 cores", "ran": "12 requests", "date": "2026-11-28"}
    return Record(version=version, layout=layout, **(made | fields))  # type: ignore[arg-type]


def test_the_page_is_up_to_date() -> None:
    page = render(read(CPU_RESULTS), gpu_runs())
    assert page == PAGE.read_text(), "run `python -m devkit.matrix.document`"


def test_the_table_of_the_readme_is_up_to_date() -> None:
    text, table = README.read_text(), in_short(read(CPU_RESULTS), gpu_runs())
    assert table in text, "run `python -m devkit.matrix.document`"
    assert with_table(text, table) == text


def test_the_table_in_short_tells_what_fails() -> None:
    bad = record("0.31.0", checks={"counts": "5 for 6"}, failed=("counts",))
    table = in_short([record("0.30.0"), bad], [])
    assert "| 0.30 to 0.31 | CPUs | a real `vllm serve`, one rank | 1 of 2 releases pass |" in table


def test_the_series_that_the_log_calls_tested_are_those_of_which_all_rows_pass() -> None:
    ended = [(series(one.version), bool(one.failed)) for one in read(CPU_RESULTS)]
    ended += [(series(run["vllm"]), bool(run["failed"])) for run in gpu_runs()]
    failed = {release for release, fails in ended if fails}
    assert {release for release, _ in ended} - failed == set(TESTED)


def test_a_run_replaces_the_rows_of_its_versions() -> None:
    old = [record("0.31.0"), record("0.31.0", "DP=2 EP=2"), record("0.9.0"), record("0.32.0")]
    merged = merge(old, [record("0.31.0", date="2027-01-01"), record("0.24.0")])
    assert [(one.version, one.layout) for one in merged] == [
        ("0.9.0", "one rank"),
        ("0.24.0", "one rank"),
        ("0.31.0", "one rank"),
        ("0.32.0", "one rank"),
    ]
    assert merged[2].date == "2027-01-01"


def test_records_come_back(tmp_path: Path) -> None:
    records = [
        record("0.30.0", checks={"counts": "5 for 6"}, failed=("counts",), unavailable={"traces": "why"})
    ]
    write(tmp_path / "results", records)
    assert read(tmp_path / "results") == records
    assert read(tmp_path / "absent") == []


def test_a_row_says_what_failed_and_what_cannot_be_told() -> None:
    bad = record("0.30.0", checks={"starts": "in 9 s", "counts": "5 | 6"}, failed=("counts",))
    good = record(
        "0.31.0", checks={"starts": "in 8 s", "texts": "equal"}, unavailable={"traces": "no\norder"}
    )
    lines = render([bad, good], []).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| vLLM |"))
    assert lines[head] == (
        "| vLLM | layout | on | result | starts | counts | texts | unavailable | run | date |"
    )
    assert lines[head + 2].startswith(
        "| 0.30.0 | one rank | 2 cores | **fails: counts** | in 9 s | 5 / 6 |  |"
    )
    assert "| equal | traces: no order | 12 requests |" in lines[head + 3]
    assert NOTHING in lines


def test_a_run_on_gpus_says_what_passed_what_failed_and_what_was_not_run() -> None:
    common = {"runner": "V2", "gpus": 2, "skipped": 0}
    scenarios = [
        {"name": "DP=2", "passed": 6, "failed": 0, "not_run": "", **common},
        {"name": "TP=2", "passed": 3, "failed": 1, "not_run": "", **common},
        {"name": "PP=2", "passed": 0, "failed": 0, "not_run": "no such kernel", **common},
    ]
    facts = {"vllm": "0.40.1", "torch": "3.0", "gpus": ["H200", "H200"], "date": "2027-01-01"}
    page = render([], [facts | {"passed": 9, "failed": 1, "skipped": 2, "scenarios": scenarios}])
    assert "- vLLM 0.40.1, torch 3.0, 2 x H200, 2027-01-01: 9 tests passed, 1 failed, 2 were skipped." in page
    assert "| 0.40.1 | DP=2 | V2 | 2 | passes (6 tests) |" in page
    assert "| 0.40.1 | TP=2 | V2 | 2 | **1 of 4 tests fail** |" in page
    assert "| 0.40.1 | PP=2 | V2 | 2 | not run: no such kernel |" in page
