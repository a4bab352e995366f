"""Worker classes and an extension that are not moescope's, as operators have them."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.model_loader import get_model_loader
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.worker_base import WorkerBase

from moescope.capture.worker import RoutingWorker


class Foreign(CPUWorker):  # type: ignore[misc]
    """Somebody's worker: it overrides what capture extends too, and counts what it was asked."""

    foreign_steps = 0

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        self.foreign_loaded = True

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        assert self.foreign_loaded
        self.foreign_steps += 1
        return super().execute_model(*args, **kwargs)


class Extension:
    """What ``--worker-extension-cls`` names: it adds a method that collective calls reach."""

    def extension_says(self) -> str:
        return f"an extension of {type(self).__name__}"

    def load_some(self: Any) -> None:
        """Load weights as trainers do, piece by piece: those of norms, which no kernel has made anew."""
        loader = get_model_loader(self.vllm_config.load_config)
        weights = loader.get_all_weights(self.vllm_config.model_config, self.model_runner.model)
        for name, weight in list(weights):
            if "layernorm" in name:
                self.model_runner.model.load_weights([(name, weight)])


class Extended(CPUWorker, Extension):  # type: ignore[misc]
    """A worker class that has the extension among its bases already, which vLLM allows."""


class Loner(CPUWorker):  # type: ignore[misc]
    """It runs steps in its own way, and leaves its platform's out."""

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        return self.model_runner.execute_model(scheduler_output, None)


class OwnWarmUp(RoutingWorker):  # type: ignore[misc]
    """It extends moescope's worker, and warms up in its own way, of which moescope hears nothing."""

    def compile_or_warm_up_model(self, *args: Any, **kwargs: Any) -> Any:
        return CPUWorker.compile_or_warm_up_model(self, *args, **kwargs)


class Direct(RoutingWorker):  # type: ignore[misc]
    """Steps go to the runner and not through moescope, as with Ray's old executor."""

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        return self.model_runner.execute_model(scheduler_output, None)


class Odd(RoutingWorker):  # type: ignore[misc]
    """What vLLM says of a step's rows fits none of them."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        asked = self._capture.capturer._step_rows
        self._capture.capturer._step_rows = lambda: asked()._replace(tokens_across_dp=[10**6])


class OddAtStart(Odd):
    """It shows before vLLM serves: a CPU runs no pass of its own then, other platforms do."""

    def compile_or_warm_up_model(self, *args: Any, **kwargs: Any) -> Any:
        self.model_runner._dummy_run(8)
        return super().compile_or_warm_up_model(*args, **kwargs)


class Borrowed(WorkerBase):  # type: ignore[misc]
    """No relation of vLLM's GPU worker: it has one inside."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inner = CPUWorker(*args, **kwargs)


def _borrow(name: str) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._inner, name)(*args, **kwargs)

    return call


for _name in dir(CPUWorker):
    if callable(getattr(CPUWorker, _name)) and not _name.startswith("__"):
        setattr(Borrowed, _name, _borrow(_name))
