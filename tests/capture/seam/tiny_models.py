"""vLLM's own model classes, instantiated without memory (on the meta device) from tiny configs.

Each config has the fields that the family's config.json has, with small sizes and four layers. What is left
out takes the default of the config's class.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from transformers import CONFIG_MAPPING
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import registry
from vllm.transformers_utils.config import _CONFIG_REGISTRY

from tests.capture.seam.tiny_deepseek import DEEPSEEK_LIKE
from tests.capture.seam.tiny_others import DENSE, MIXTRAL_LIKE, OF_THEIR_OWN
from tests.capture.seam.tiny_qwen import QWEN_LIKE

MODELS: Final = QWEN_LIKE | DEEPSEEK_LIKE | MIXTRAL_LIKE | OF_THEIR_OWN | DENSE

_REMOTE: Final = """from transformers import PreTrainedConfig
class TinyConfig(PreTrainedConfig):
    model_type = {kind!r}
    def __init__(self, **fields):
        fields.setdefault("rope_parameters", dict(rope_type="default", rope_theta=1e4))
        super().__init__(**fields)
"""


@contextmanager
def one_rank(store: Path) -> Iterator[None]:
    """vLLM's groups with one rank, while models are made; `store` is a file that isn't there yet."""
    from vllm.config import VllmConfig

    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
        initialize_model_parallel(1, 1)
        try:
            yield
        finally:
            destroy_model_parallel()
            destroy_distributed_environment()


def build(config: dict[str, Any], folder: Path) -> tuple[torch.nn.Module, Any]:
    """The model that vLLM makes of this config.json, without memory, and vLLM's configuration.

    Args:
        config: see `MODELS`.
        folder: an empty one, for the config.
    """
    kind = config["model_type"]
    if kind not in CONFIG_MAPPING and kind not in _CONFIG_REGISTRY:
        (folder / "configuration_tiny.py").write_text(_REMOTE.format(kind=kind))
        config = {**config, "auto_map": {"AutoConfig": "configuration_tiny.TinyConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    arguments = EngineArgs(
        model=str(folder),
        tokenizer=str(folder),
        skip_tokenizer_init=True,
        trust_remote_code="auto_map" in config,
        dtype="bfloat16",
        enforce_eager=True,
        load_format="dummy",
        max_model_len=128,
        max_num_batched_tokens=128,
    )
    # vLLM looks at a model's class in a process of its own, which takes seconds.
    with mock.patch.object(registry, "_run_in_subprocess", lambda look: look()):
        vllm_config = arguments.create_engine_config()
        with set_current_vllm_config(vllm_config), torch.device("meta"):
            return initialize_model(vllm_config), vllm_config
