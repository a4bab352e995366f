"""Changes of weights: which calls are one, how many they are, and what the weights are called then."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moescope.capture.seam.weights import Weights, WeightsWatch


class Model(torch.nn.Module):
    """A model that loads weights, as vLLM's do."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[Any] = []

    def load_weights(self, weights: Any) -> set[str]:
        if weights is None:
            raise RuntimeError("no weights")
        self.loaded.append(weights)
        return {"gate"}


class Watched:
    """A watch, and vLLM's calls as the worker makes them."""

    def __init__(self, **settings: Any) -> None:
        self.model, self.config = Model(), SimpleNamespace(model="first")
        self.told: list[Weights] = []
        self.step = 0
        self.watch = WeightsWatch(
            self.model, self.config, lambda: self.told.append(self.watch.now), lambda: self.step, **settings
        )

    def call(self, way: str, *args: Any, loads: int = 0, **kwargs: Any) -> None:
        self.watch.before()
        for _ in range(loads):
            self.model.load_weights([])
        self.watch.after(way, args, kwargs)

    def runs(self) -> None:
        self.watch.step_begins()
        self.step += 1

    @property
    def version(self) -> int:
        return self.watch.now.version


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_each_reload_is_a_change_and_a_path_names_the_weights(watched: Watched) -> None:
    assert watched.watch.now == (0, "")
    watched.call("reload_weights", loads=3)
    assert watched.watch.now == (1, "")
    watched.call("reload_weights", loads=1, weights_path="step-40")
    assert watched.watch.now == (2, "step-40")
    watched.call("reload_weights", None, "step-41")
    assert watched.watch.now == (3, "step-41")
    watched.config.model = "step-42"  # as update_config sets it
    watched.call("reload_weights")
    assert watched.watch.now == (4, "step-42")
    watched.call("reload_weights", weights_iterator=[("gate", None)])
    assert watched.watch.now == (5, "")
    assert [weights.version for weights in watched.told] == [1, 2, 3, 4, 5]


def test_a_transfer_in_chunks_is_one_change_also_with_steps_in_between(watched: Watched) -> None:
    watched.call("start_weight_update")
    assert watched.version == 0
    watched.call("update_weights", {}, loads=2)
    assert watched.version == 1
    watched.runs()
    watched.call("update_weights", {}, loads=2)
    watched.call("finish_weight_update", loads=1)
    assert watched.version == 1
    watched.call("start_weight_update")
    watched.call("update_weights", {})
    watched.call("finish_weight_update")
    assert watched.version == 2
    watched.call("update_weights", {})
    watched.call("update_weights", {})
    assert watched.version == 4


def test_a_draft_models_update_is_none(watched: Watched) -> None:
    watched.call("start_draft_weight_update")
    watched.call("update_weights", {})
    watched.call("finish_weight_update")
    assert watched.version == 0


def test_what_a_trainers_extension_loads_between_two_steps_is_one_change(watched: Watched) -> None:
    for _ in range(3):
        assert watched.model.load_weights(["bucket"]) == {"gate"}
    assert watched.version == 1
    watched.runs()
    watched.model.load_weights(["bucket"])
    assert watched.version == 2
    assert len(watched.model.loaded) == 4
    watched.call("reload_weights", loads=1)
    watched.model.load_weights(["bucket"])
    assert watched.version == 4


def test_weights_that_fail_to_load_may_be_others_too(watched: Watched) -> None:
    with pytest.raises(RuntimeError, match="no weights"):
        watched.model.load_weights(None)
    assert watched.version == 1
    watched.runs()
    watched.model.load_weights(["bucket"])
    assert watched.version == 2


@pytest.mark.parametrize(
    "discarded", [("sleep", (2,), {}), ("sleep", (), {"level": 2}), ("discard", (("weights",),), {})]
)
def test_weights_that_were_thrown_away_and_loaded_again_are_one_change(
    watched: Watched, discarded: tuple[str, Any, Any]
) -> None:
    way, args, kwargs = discarded
    watched.call(way, *args, **kwargs)
    assert watched.version == 0
    watched.call("reload_weights", loads=1)
    watched.runs()
    assert watched.version == 1
    watched.call(way, *args, **kwargs)
    watched.runs()  # with whatever is in memory
    watched.runs()
    assert watched.version == 2


def test_sleep_that_keeps_the_weights_is_none(watched: Watched) -> None:
    watched.call("sleep")
    watched.call("sleep", level=1)
    watched.call("discard", ("kv_cache",))
    watched.runs()
    on_cpu = Watched(discards=False)
    on_cpu.call("sleep", level=2)
    on_cpu.runs()
    assert (watched.version, on_cpu.version) == (0, 0)


def test_each_step_has_the_version_that_it_ran_with(watched: Watched) -> None:
    watched.runs()
    watched.runs()
    watched.call("reload_weights")
    watched.call("reload_weights")
    watched.runs()
    watched.call("reset_weights")
    found = watched.watch.versions(np.array([0, 1, 2, 3, 9]))
    assert found.tolist() == [0, 0, 2, 3, 3]


def test_the_models_own_method_is_back_at_the_end(watched: Watched) -> None:
    watched.watch.close()
    assert "load_weights" not in watched.model.__dict__
    watched.model.load_weights([])
    assert watched.version == 0
    theirs = Watched()
    theirs.model.__dict__["load_weights"] = len
    theirs.watch.close()
    assert theirs.model.load_weights is len  # somebody else took it meanwhile
    WeightsWatch(torch.nn.Linear(1, 1), None, list, int).close()  # nothing to watch
