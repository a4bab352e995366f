"""How scenarios are chosen and run; needs neither a GPU nor vLLM."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import deployments, engines, runs
from tests.gpu.scenario import LLM, QWEN, Scenario, is_wanted

V2, V1, ANY = Scenario({}, "V2"), Scenario({}, "V1"), Scenario({})
CHILD = """
import json, os, sys
spec, result = sys.argv[1:]
told = json.load(open(spec))
if told["llm"].get("broken"):
    sys.exit("it broke")
names = ("CUDA_VISIBLE_DEVICES", "VLLM_USE_V2_MODEL_RUNNER")
json.dump(told | {"env": [os.environ.get(name) for name in names]}, open(result, "w"))
"""


def test_names_are_unique_and_runners_come_in_order() -> None:
    names = Counter([*engines.SCENARIOS, *deployments.SCENARIOS, *deployments.PAIR])
    assert set(names.values()) == {1}
    found = [one.runner for one in deployments.SCENARIOS.values()]
    assert found.index("V2") < found.index("V1")


@pytest.mark.parametrize(
    ("mine", "runner", "names", "wanted"),
    [
        ({}, "V1", [], True),
        ({"a": V2}, None, [], True),
        ({"a": V2}, "V1", [], False),
        ({"a": V2, "b": ANY}, "V2", [], True),
        ({"a": V2, "b": V1}, "V2", [], False),
        ({"a": V2, "b": ANY}, None, ["b"], True),
        ({"a": V2}, None, ["b"], False),
        ({}, None, ["b"], False),
    ],
)
def test_what_is_asked_for_runs(
    mine: dict[str, Scenario], runner: str | None, names: list[str], wanted: bool
) -> None:
    assert is_wanted(mine, runner, names) == wanted


def ran(folder: Path, scenarios: dict[str, Scenario]) -> runs.Runs:
    """These scenarios with a child that says what it was told."""
    can_run = {name: one for name, one in scenarios.items() if not one.lacking}
    return runs.Runs(folder, can_run, scenarios, [sys.executable, "-c", CHILD], more=1)


def test_processes_of_scenarios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "BETWEEN", 0.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    both = {"tensor_parallel_size": 2}
    scenarios = {
        "first": V2,
        "second": V1._replace(llm={"max_num_seqs": 3}),
        "third": ANY,
        "both": Scenario(both, "V2", ep_ranks=5, capture=False),
        "broken": Scenario({"broken": True}),
        "lacking": Scenario({}, lacking="no such thing"),
    }
    found = ran(tmp_path, scenarios)
    told: dict[str, dict[str, Any]] = {name: found[name] for name in ("first", "second", "third", "both")}
    assert [told[name]["env"] for name in told] == [["4", "1"], ["7", "0"], ["4", None], ["4,7", "1"]]
    assert told["second"]["llm"] == LLM | {"max_num_seqs": 3, "model": str(tmp_path / "1")}
    assert told["both"]["workers"] == 2
    assert (told["both"]["ep_ranks"], told["both"]["capture"], told["both"]["more"]) == (5, False, 1)
    assert told["first"]["experts"] == QWEN["num_experts"]
    with pytest.raises(pytest.fail.Exception, match=r"broken: status 1\n.*it broke"):
        found["broken"]
    with pytest.raises(pytest.skip.Exception, match="no such thing"):
        found["lacking"]
