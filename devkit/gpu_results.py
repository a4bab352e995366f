"""JUnit files of the GPU suite to the results that are checked in, and to a table.

A test says its scenarios in JUnit properties, each ``runner;GPUs;name`` (see ``tests/gpu/conftest.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.etree import ElementTree

LONGEST: Final = 300
"""Characters of a message."""


class Scenario(NamedTuple):
    """A real vLLM that a test looked at; `runner` is empty where vLLM chose it."""

    runner: str
    gpus: int
    name: str


class Test(NamedTuple):
    """What came of one test: ``passed``, ``failed`` or ``skipped``, with the first line of why."""

    outcome: str
    message: str
    seconds: float
    scenarios: tuple[Scenario, ...]
    printed: tuple[str, ...]


def read_junit(paths: Iterable[Path]) -> dict[str, Test]:
    """The tests of some JUnit files by their pytest ids; a later file's replace those of earlier ones."""
    found: dict[str, Test] = {}
    for path in paths:
        for case in ElementTree.parse(path).getroot().iter("testcase"):  # noqa: S314 - pytest's own output
            module, name = case.get("classname", ""), case.get("name", "")
            test_id = f"{module.replace('.', '/')}.py::{name}" if module else name
            found[test_id] = _of_case(case)
    return found


def _of_case(case: ElementTree.Element) -> Test:
    outcome, message = "passed", ""
    for kind, meaning in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
        node = case.find(kind)
        if node is not None:
            lines = (node.get("message") or node.text or "").strip().splitlines()
            outcome, message = meaning, lines[0][:LONGEST] if lines else ""
    told = [node.get("value", "") for node in case.iter("property") if node.get("name") == "scenario"]
    parts = [value.split(";", 2) for value in told]
    output = (case.findtext("system-out") or "").splitlines()
    return Test(
        outcome,
        message,
        float(case.get("time") or 0),
        tuple(Scenario(runner, int(gpus), name) for runner, gpus, name in parts),
        tuple(line for line in output if line.strip() and not line.startswith("---")),
    )


def _counts(tests: Iterable[Test]) -> dict[str, int]:
    outcomes = [test.outcome for test in tests]
    return {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")}


def _scenarios(tests: Sequence[Test]) -> list[dict[str, Any]]:
    """Each scenario that the tests name, in the order of its first test."""
    rows = []
    for one in dict.fromkeys(scenario for test in tests for scenario in test.scenarios):
        mine = [test for test in tests if one in test.scenarios]
        counts = _counts(mine)
        never = counts["skipped"] == len(mine)
        rows.append({"name": one.name, "runner": one.runner, "gpus": one.gpus} | counts)
        rows[-1]["not_run"] = mine[0].message if never else ""
    return rows


def summarise(
    facts: Mapping[str, Any],
    what: Mapping[str, str],
    groups: Mapping[str, Mapping[str, Test]],
    ended: Mapping[str, str],
) -> dict[str, Any]:
    """The results of a suite.

    Args:
        facts: ``vllm``, ``torch``, ``triton``, ``python``, ``gpus``, ``commit``, ``date``.
        what: for each group what its tests are about.
        groups: the tests that were run; a group without any is left out.
        ended: for a group why its run did not end, which counts as a failed test; empty if it ended.
    """
    ran = {name: tests for name, tests in groups.items() if tests}
    tests = {test_id: test for each in ran.values() for test_id, test in each.items()}
    for name, why in ended.items():
        if why:
            tests[f"group {name}"] = Test("failed", why, 0.0, (), ())
    rows = [
        {"name": name, "what": what[name], "seconds": round(sum(test.seconds for test in mine.values()))}
        | _counts(mine.values())
        for name, mine in ran.items()
    ]
    return {
        **facts,
        **_counts(tests.values()),
        "seconds": sum(row["seconds"] for row in rows),
        "groups": rows,
        "scenarios": _scenarios(list(tests.values())),
        "failures": [
            {"test": test_id, "message": test.message}
            for test_id, test in tests.items()
            if test.outcome == "failed"
        ],
        "skips": [
            {"test": test_id, "reason": test.message}
            for test_id, test in tests.items()
            if test.outcome == "skipped"
        ],
        "printed": [line for test in tests.values() for line in test.printed],
    }


def table(results: Mapping[str, Any]) -> str:
    """The results for people: what tests printed, groups, scenarios, and what failed or was skipped."""
    lines = [*results["printed"], ""]
    on = ", ".join(results["gpus"]) or "no GPU"
    lines.append(f"vLLM {results['vllm']}, torch {results['torch']}, Triton {results['triton']}; {on}")
    for title, rows in (("group", results["groups"]), ("scenario", results["scenarios"])):
        lines.append(f"{title:<36} passed failed skipped")
        lines += [f"{row['name']:<36} {row['passed']:6} {row['failed']:6} {row['skipped']:7}" for row in rows]
    lines += [f"SKIPPED {skip['test']}: {skip['reason']}" for skip in results["skips"]]
    lines += [f"FAILED {failure['test']}: {failure['message']}" for failure in results["failures"]]
    lines.append(f"{results['passed']} passed, {results['failed']} failed, {results['skipped']} skipped")
    return "\n".join(lines)
