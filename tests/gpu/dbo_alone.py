"""Whether vLLM itself gets through the deployments of `test_dbo`, without capture, on two GPUs.

`python -m tests.gpu.dbo_alone FOLDER` runs all of them at once, with the same requests, and says which ended.
Logs go to the folder; a worker that still runs after `SHOWN_AFTER_S` writes there where its threads are.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Final

from devkit.gpu_models import write_model
from devkit.processes import ProcessGroup
from tests.gpu.parallel_child import generate
from tests.gpu.runs import BETWEEN
from tests.gpu.scenario import LLM
from tests.gpu.split_deployments import SCENARIOS

LIMIT_S: Final = 160


def main(folder: Path) -> None:
    """Run all scenarios, each in a folder of its own, and print what came of them."""
    groups = {}
    for name, scenario in SCENARIOS.items():
        own = folder / name.replace(", ", "-")
        llm = LLM | scenario.llm | {"model": str(write_model(own, scenario.config))}
        spec = {"llm": llm, "requests": scenario.requests, "worker": "tests.gpu.dbo_worker.DboWorkerAlone"}
        (own / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, "-m", "tests.gpu.dbo_alone", str(own), "child"]
        groups[name] = ProcessGroup(command, own / "log", os.environ | scenario.environment)
        time.sleep(BETWEEN)
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and any(group.exit_code() is None for group in groups.values()):
        time.sleep(0.5)
    for name, group in groups.items():
        print(f"{name}: {'ended' if group.exit_code() == 0 else 'did not end'}", flush=True)
    for group in groups.values():
        group.stop()


async def child(folder: Path) -> None:
    """One deployment, until its requests are done."""
    await generate(json.loads((folder / "spec.json").read_text()))


if __name__ == "__main__":
    if sys.argv[2:] == ["child"]:
        asyncio.run(child(Path(sys.argv[1])))
        os._exit(0)  # vLLM's own shutdown is not what is tested here
    main(Path(sys.argv[1]))
