"""The processes of scenarios, all at once, and what came of them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from devkit.gpu_models import write_model
from devkit.processes import ProcessGroup
from tests.gpu.scenario import LLM, Scenario

TIMEOUT = 360
BETWEEN = 1.0
"""Seconds from one start to the next: each vLLM looks for free ports."""


def start(folder: Path, scenario: Scenario, child: list[str], **spec: Any) -> ProcessGroup:
    """Start the child's module in this folder with ``spec.json`` there; it writes ``result.json``.

    Args:
        child: the module, and what else it is given before the two files.
        spec: what the child reads beside the scenario.
    """
    llm = LLM | scenario.llm | {"model": str(write_model(folder, scenario.config))}
    if scenario.draft is not None:
        llm["speculative_config"] = {
            "model": str(write_model(folder / "draft", scenario.draft)),
            "method": scenario.draft_method,
            "num_speculative_tokens": 2,
            "draft_load_config": {"load_format": "dummy"},
        }
    spec |= {
        "llm": llm,
        "capture": scenario.capture,
        "requests": scenario.requests,
        "turns": scenario.turns,
        "stops": scenario.stops,
        "ep_ranks": scenario.ep_ranks,
        "experts": scenario.config.get("num_experts", scenario.config.get("n_routed_experts")),
        "workers": scenario.gpus,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    environment = os.environ | {"PASS_FOLDER": str(folder)} | scenario.environment
    command = [*child, str(folder / "spec.json"), str(folder / "result.json")]
    return ProcessGroup(command, folder / "log", environment)


def devices() -> list[str]:
    """The GPUs of this process, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def failure(folder: Path, what: str) -> str:
    """What is shown of a process that failed: the end of its log."""
    log = folder / "log"
    return f"{what}\n{log.read_text(errors='replace')[-6000:] if log.exists() else ''}"


class Runs:
    """Runs each scenario in a process of its own; its result, or its failure, is had by its name.

    Args:
        scenarios: those to run, all at once, those of one GPU on each in turn.
        known: all, so that one that wasn't run is skipped with the reason.
        child: see `start`.
        spec: what each child reads beside its scenario.
    """

    def __init__(
        self,
        folder: Path,
        scenarios: Mapping[str, Scenario],
        known: Mapping[str, Scenario],
        child: list[str],
        **spec: Any,
    ) -> None:
        self._known, self._child, self._spec = known, child, spec
        self._results: dict[str, dict[str, Any] | str] = {}
        threads = []
        for index, (name, scenario) in enumerate(scenarios.items()):
            mine = scenario
            if scenario.gpus == 1:
                device = devices()[index % len(devices())]
                mine = scenario._replace(env={**scenario.env, "CUDA_VISIBLE_DEVICES": device})
            threads.append(threading.Thread(target=self._run, args=(name, mine, folder / str(index))))
            threads[-1].start()
            time.sleep(BETWEEN)
        for thread in threads:
            thread.join()

    def _run(self, name: str, scenario: Scenario, folder: Path) -> None:
        began = time.monotonic()
        try:
            self._results[name] = self._outcome(scenario, folder)
        except Exception as error:  # noqa: BLE001 - shown by every test of the scenario
            self._results[name] = failure(folder, repr(error))
        print(f"{name}: {time.monotonic() - began:.0f} s")

    def _outcome(self, scenario: Scenario, folder: Path) -> dict[str, Any] | str:
        group = start(folder, scenario, self._child, **self._spec)
        began = time.monotonic()
        try:
            while (code := group.exit_code()) is None and time.monotonic() < began + TIMEOUT:
                time.sleep(0.2)
        finally:
            group.stop()
        if code != 0:
            return failure(folder, f"status {code}")
        return dict(json.loads((folder / "result.json").read_text()))

    def __getitem__(self, name: str) -> dict[str, Any]:
        if self._known[name].lacking:
            pytest.skip(self._known[name].lacking)
        result = self._results[name]
        if isinstance(result, str):
            pytest.fail(f"{name}: {result}", pytrace=False)
        return result
