"""DP ranks of a benchmark, a process and a GPU each: all run the same blocks of the same requests in step."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from devkit.processes import ProcessGroup, free_port

ENDING_S: Final = 60
"""How long the leader waits for the others' results."""


def environment_of(rank: int, size: int, port: int) -> dict[str, str]:
    """What vLLM needs to be one rank of several, each in a process that holds its engine itself.

    Args:
        rank: also the GPU, among those of this machine.
        port: where rank 0 listens; vLLM takes the next one too.
    """
    return {
        "VLLM_DP_RANK": str(rank),
        "VLLM_DP_RANK_LOCAL": "0",  # each sees its own GPU only
        "VLLM_DP_SIZE": str(size),
        "VLLM_DP_MASTER_IP": "127.0.0.1",
        "VLLM_DP_MASTER_PORT": str(port),
        "CUDA_VISIBLE_DEVICES": str(rank),
    }


class Followers:
    """The ranks after this one, which run the same command; to be entered before CUDA is used.

    Args:
        module: what they run, with these arguments and ``--rank``, ``--endpoint`` and ``--out``.
        size: of the deployment; nobody follows where it is 1.
        endpoint: where their frames go.
        logs: a folder for their output.
    """

    def __init__(self, module: str, arguments: Sequence[str], size: int, endpoint: str, logs: Path) -> None:
        self._command = [sys.executable, "-m", module, *arguments, "--endpoint", endpoint]
        self._size, self._logs = size, logs
        self._folder = tempfile.TemporaryDirectory()
        self._groups: dict[int, ProcessGroup] = {}

    def __enter__(self) -> Followers:
        if self._size > 1:
            port = free_port()
            for rank in range(1, self._size):
                own = ["--rank", str(rank), "--out", str(self._result(rank))]
                environment = os.environ | environment_of(rank, self._size, port)
                self._groups[rank] = ProcessGroup([*self._command, *own], self._log(rank), environment)
            os.environ.update(environment_of(0, self._size, port))
        return self

    def _result(self, rank: int) -> Path:
        return Path(self._folder.name) / f"{rank}.json"

    def _log(self, rank: int) -> Path:
        return self._logs / f"dp-rank-{rank}.log"

    def results(self) -> dict[int, dict[str, Any]]:
        """What each rank wrote, once all have ended.

        Raises:
            RuntimeError: one failed, or doesn't end.
        """
        found = {}
        for rank, group in self._groups.items():
            deadline = time.monotonic() + ENDING_S
            while (code := group.exit_code()) is None and time.monotonic() < deadline:
                time.sleep(0.1)
            if code != 0:
                raise RuntimeError(f"DP rank {rank} failed: {self._log(rank).read_text()[-4000:]}")
            found[rank] = json.loads(self._result(rank).read_text())
        return found

    def __exit__(self, kind: object, *_: object) -> None:
        for rank, group in self._groups.items():
            if kind is not None:
                print(f"DP rank {rank}:", self._log(rank).read_text()[-4000:], flush=True)
            group.stop()
        self._folder.cleanup()
