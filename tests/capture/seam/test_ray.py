"""What is said where Ray starts the workers, and what vLLM then copies."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from moescope.capture.seam.ray import why_settings_are_lost
from moescope.capture.settings.attachment import carry_through_ray


def config(executor: str, data: str = "mp") -> SimpleNamespace:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(distributed_executor_backend=executor, data_parallel_backend=data)
    )


@pytest.mark.parametrize(("executor", "data"), [("ray", "mp"), ("mp", "ray")])
def test_a_worker_that_ray_started_without_settings_says_so(executor: str, data: str) -> None:
    said = why_settings_are_lost(config(executor, data), {"PATH": "/bin"})
    assert said is not None
    assert "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY=MOESCOPE" in said
    assert why_settings_are_lost(config(executor, data), {"MOESCOPE_SERVER": "prod"}) is None
    assert why_settings_are_lost(config(executor, data), {"MOESCOPE": "1"}) is None


def test_without_ray_nothing_is_said() -> None:
    assert why_settings_are_lost(config("mp"), {}) is None


def test_vllm_copies_what_the_plugin_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """By vLLM's own function, which needs no Ray."""
    from vllm.ray.ray_env import get_env_vars_to_copy

    monkeypatch.delenv("VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY", raising=False)
    wanted = {"MOESCOPE", "MOESCOPE_ENDPOINT"}
    environment = {"MOESCOPE": "1", "MOESCOPE_ENDPOINT": "http://scope"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not wanted & get_env_vars_to_copy()
    carry_through_ray(environment)
    prefixes = environment["VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"]
    monkeypatch.setenv("VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY", prefixes)
    assert wanted <= get_env_vars_to_copy()
