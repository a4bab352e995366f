"""A start of vLLM that fails says why in its first line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from devkit.processes import ProcessGroup, free_port
from devkit.root_cause import explain
from devkit.tiny_moe import ensure_checkpoint
from devkit.vllm_server import VllmOptions, VllmStartError
from tests.broken_library import make_broken_library
from tests.e2e.preloaded import quick_server

pytestmark = pytest.mark.e2e


def test_a_bad_flag(tmp_path: Path) -> None:
    options = VllmOptions(model=tmp_path, extra_args=("--no-such-flag",))
    log = tmp_path / "log"
    with pytest.raises(VllmStartError) as error, quick_server(options, log):
        pass
    first, last = str(error.value).splitlines()
    assert first == "vllm: error: unrecognized arguments: --no-such-flag"
    assert last.startswith("vLLM ended with status 2 after ")
    assert last.endswith(f"; its log: {log}")


def test_a_shared_library_that_is_missing(tmp_path: Path) -> None:
    """vLLM's own start, without the look for libraries that comes before it here."""
    make_broken_library(tmp_path, name="libnuma.so.1", lacks="libgone.so.1")
    model = ensure_checkpoint(tmp_path / "model")
    options = VllmOptions(model=model, env={"LD_LIBRARY_PATH": str(tmp_path)})
    group = ProcessGroup(options.command(free_port()), tmp_path / "log", options.environment())
    try:
        deadline = time.monotonic() + 300
        while group.exit_code() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        group.stop()
    first = explain(group.log, "vLLM ended").splitlines()[0]
    said = "libgone.so.1: cannot open shared object file: No such file or directory"
    assert first == f"ImportError: {said}"
