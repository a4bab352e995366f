"""A worker of a vLLM that lacks what phases, traces, placement and loads of steps need, but no counts."""

from __future__ import annotations

from typing import Any

from vllm import envs
from vllm.model_executor.layers.fused_moe import expert_map_manager

from moescope.capture.worker import RoutingWorker


class _Lacking:
    """vLLM's configuration without the name of its model runner."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        if name == "use_v2_model_runner":
            raise AttributeError(name)
        return getattr(self._config, name)


class LackingWorker(RoutingWorker):  # type: ignore[misc]
    """Takes them away when capture asks for the model, which vLLM has loaded by then."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        placed, variables = expert_map_manager.determine_expert_map, dict(envs.environment_variables)
        try:
            super().load_model(*args, **kwargs)
        finally:
            expert_map_manager.determine_expert_map = placed
            envs.environment_variables.update(variables)
            self.vllm_config = self.vllm_config._config

    def get_model(self) -> Any:
        if not isinstance(self.vllm_config, _Lacking):
            self.vllm_config = _Lacking(self.vllm_config)
            envs.environment_variables.pop("VLLM_USE_V2_MODEL_RUNNER", None)
            del expert_map_manager.determine_expert_map
        return super().get_model()
