"""A LoRA adapter of the tiny model's attention, in the files that PEFT writes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from devkit.tiny_moe import Shape

RANK = 4


def make_adapter(folder: Path) -> Path:
    """Write an adapter of all layers' queries into a new folder; returns it."""
    shape = Shape()
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    sizes = {"A": (RANK, shape.hidden), "B": (shape.heads * shape.head_dim, RANK)}
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight": torch.randn(
            *size, generator=generator
        )
        for layer in range(shape.layers)
        for part, size in sizes.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
