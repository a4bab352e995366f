"""Steps that vLLM runs without asking its worker: capture is off then, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.host_share import one_rank
from moescope.capture.seam.runner import UNASKED
from moescope.capture.session import CaptureSession
from moescope.capture.settings.environment import CaptureSettings
from tests.capture.scheduler import Scheduling, full_attention, model_config
from tests.capture.seam.runners import in_layers, runner


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[CaptureSession, SimpleNamespace]]:
    """A session that has not begun to serve, and vLLM's runner, whose requests tests put in."""
    settings = CaptureSettings.read({"MOESCOPE_ENDPOINT": "http://127.0.0.1:9"})[0]
    model_runner = SimpleNamespace(requests={})
    with one_rank():
        config = Scheduling(model_config(tmp_path), [full_attention(16)], 64, v2=True, max_num_seqs=4).config
        session = CaptureSession(in_layers(runner(0)), config, torch.device("cpu"), settings, model_runner)
        yield session, model_runner
        session.close()


def test_requests_that_come_without_a_step_turn_capture_off(
    opened: tuple[CaptureSession, SimpleNamespace],
) -> None:
    session, model_runner = opened
    session.serving_begins()
    session._look_for_unasked_steps()
    assert session.capturer.disabled_reason is None
    model_runner.requests["a"] = object()
    session._look_for_unasked_steps()
    assert session.capturer.disabled_reason == UNASKED


def test_requests_from_before_capture_was_opened_do_not(
    opened: tuple[CaptureSession, SimpleNamespace],
) -> None:
    session, model_runner = opened
    model_runner.requests["a"] = object()  # it has ended; the runner forgets it in its next step
    session.serving_begins()
    session._look_for_unasked_steps()
    assert session.capturer.disabled_reason is None
