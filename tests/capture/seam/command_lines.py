"""vLLM's own configuration of a command line, and where a test says that it was started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from moescope.capture.seam.deployment import Place, name_deployment
from moescope.capture.seam.launch import Launch
from moescope.capture.settings.environment import CaptureSettings

NAMELESS = CaptureSettings()
SERVE = ("python", "/usr/bin/vllm", "serve")


class Configure:
    """vLLM's configuration of a command line of ``vllm serve``, for one model."""

    def __init__(self, model: Path) -> None:
        self._model = str(model)
        self._parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())

    def __call__(self, line: str) -> Any:
        """The whole of it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_HUB_OFFLINE", "1")
            words = ["--model", self._model, "--enforce-eager", "--max-model-len", "64", *line.split()]
            arguments, _ = self._parser.parse_known_args(words)  # the rest is the API server's
            engine = AsyncEngineArgs.from_cli_args(arguments)
            return engine.create_engine_config(headless="--headless" in words)

    def name(self, host: str, line: str, settings: CaptureSettings = NAMELESS) -> str:
        """The name of what it starts on a host."""
        return name_deployment(self(line), settings, launched(host, line)).name


def launched(host: str, line: str, program: tuple[str, ...] = SERVE) -> Place:
    """On that host, by that program with these arguments."""
    return Place(host, Launch(1, (*program, *line.split()), Path("/nowhere")))
