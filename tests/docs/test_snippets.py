"""The Python of the documents about traces runs, one snippet after the other, against a real service."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moescope.client import ProblemError
from tests.client.service import push
from tests.service.conftest import Service, clock, no_settings_from_outside, start_service
from tests.service.frames import frame
from tests.service.trace_parts import LAYERS, experts_of, part

__all__ = ["clock", "no_settings_from_outside", "start_service"]

DOCS = Path(__file__).parents[2] / "docs"
DEPTH = 5


@pytest.fixture
def service(start_service: Callable[..., Service], tmp_path: Path) -> Service:
    """What the snippets speak of: two requests of a model, and one of which a prefix was cached."""
    now = [1_700_000_100.0]
    made = start_service(lambda: now[0], store=str(tmp_path / "store"))
    counts = {layer.layer: [2] * layer.num_experts for layer in LAYERS}
    who = {"model": "my-model"}
    made.push(frame(counts, rows=[16, 64], tokens=64, decoder_layers=DEPTH, who=part(1, who=who).producer))
    push(
        made,
        part(1, tokens=12, name="my-request", who=who),
        part(2, tokens=8, name="other-request", who=who),
        part(3, tokens=4, name="cached", who=who, runs=[(2, 4)], cached_tokens=2),
    )
    return made


def run(document: str, service: Service) -> dict[str, Any]:
    """The names that a document's snippets leave behind."""
    names: dict[str, Any] = {"__name__": "snippets"}
    snippets = re.findall(r"^```python\n(.*?)^```$", (DOCS / document).read_text(), re.MULTILINE | re.DOTALL)
    assert snippets
    for number, snippet in enumerate(snippets):
        code = snippet.replace("http://localhost:9890", service.url)
        # An export's time is that of the service's clock, which stands still in a test.
        code = code.replace('start="-1d"', "start=0")
        exec(compile(code, f"{document}, snippet {number}", "exec", dont_inherit=True), names)
    return names


def test_a_rollout_is_replayed(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push(service, part(4, tokens=12, name="rollout-7", who={"model": "my-model"}))
    names = run("tutorial-replay.md", service)
    experts = experts_of(4, 12)
    np.testing.assert_array_equal(names["rows"][:, 3], experts[1])
    np.testing.assert_array_equal(names["rows"][:, 1, :2], experts[0])
    assert names["rows"].shape == (12, DEPTH, 4)
    assert "(12, 5, 4) uint8" in capsys.readouterr().out
    with pytest.raises(ValueError, match="rollout-7: 12 rows, 19 wanted"):
        names["routing_of"]("rollout-7", tokens=20)
    with pytest.raises(ProblemError, match="absent"):
        names["routing_of"]("absent", tokens=20, patience_s=0)
    names["client"].close()


def test_traces_in_python(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("traces.md", service)
    names["client"].close()
    first, second = experts_of(1, 12), experts_of(2, 8)
    np.testing.assert_array_equal(names["routers"][1].experts, first[0])
    np.testing.assert_array_equal(names["experts"], first[1])
    assert names["weights"].requires_grad
    batch = names["batch"].numpy()
    assert batch.shape == (2, 24, DEPTH, 4)
    np.testing.assert_array_equal(batch[0, 4:16, 3], first[1])
    np.testing.assert_array_equal(batch[1, 4:12, 1, :2], second[0])
    assert (batch[:, :4] == -1).all()
    assert (batch[0, 16:] == -1).all()
    fields = names["fields"]
    rows = np.frombuffer(fields["data"], fields["dtype"]).reshape(fields["shape"])
    assert (rows.shape, rows[12].any()) == ((13, DEPTH, 4), False)
    np.testing.assert_array_equal(rows[:12, 3], first[1])
    assert names["tokens_of"] == {"my-request": 12, "other-request": 8, "cached": 6}
    slots = np.bincount(np.concatenate([ids[1].reshape(-1) for ids in (first, second, experts_of(3, 4))]))
    assert names["busiest"]["slots"].tolist() == sorted(slots.tolist(), reverse=True)[:10]
    assert int(names["by_phase"].shape[0]) == int(slots.sum())
    assert "my-request 12 ended" in capsys.readouterr().out
