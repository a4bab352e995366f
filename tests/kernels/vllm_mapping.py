"""vLLM's own function that maps logical to physical experts, on GPUs and, interpreted, on CPUs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
import triton.language as tl

from tests.kernels.device import INTERPRETED

RECORDING = "tl.atomic_add(out_ptr + safe_physical_id, 1, mask=valid)"
MODULE = "vllm.model_executor.layers.fused_moe.router.base_router"


def vllm_mapping(folder: Path) -> Any:
    """`eplb_map_to_physical_and_record` of the installed vLLM; `folder` is for a copy of its module.

    On CPUs vLLM defines a stand-in in its place. There its module is read once more, under another name, as
    if the platform was a GPU: its kernel is vLLM's, and Triton interprets it. Only the recording of loads
    after the mapping is left out, as the interpreter refuses the mask of that atomic operation.
    """
    import vllm.platforms
    import vllm.triton_utils

    spec = importlib.util.find_spec(MODULE)
    assert spec is not None
    if not INTERPRETED:
        return importlib.import_module(MODULE).eplb_map_to_physical_and_record
    __import__(MODULE)  # what it imports has to be there before the platform is another
    kept = vllm.platforms.current_platform, vllm.triton_utils.tl, vllm.triton_utils.triton
    gpu: Any = SimpleNamespace(is_cuda_alike=lambda: True, is_xpu=lambda: False)
    vllm.platforms.current_platform, vllm.triton_utils.tl, vllm.triton_utils.triton = gpu, tl, triton
    try:
        source = Path(str(spec.origin)).read_text()
        assert RECORDING in source
        copy = folder / "base_router_of_gpus.py"
        copy.write_text(source.replace(RECORDING, "pass"))
        again = importlib.util.spec_from_file_location(copy.stem, copy)
        assert again is not None
        assert again.loader is not None
        module = importlib.util.module_from_spec(again)
        sys.modules[again.name] = module
        again.loader.exec_module(module)
    finally:
        vllm.platforms.current_platform, vllm.triton_utils.tl, vllm.triton_utils.triton = kept
    return module.eplb_map_to_physical_and_record
