"""The device of a thread that isn't vLLM's."""

from __future__ import annotations

import torch


def use_device(device: torch.device) -> None:
    """Have the calling thread use this device, before it asks anything of CUDA.

    A new thread's is device 0: there even the query of another device's event may make a context, of hundreds
    of MB in each worker, which the server's memory has no room for. vLLM does the same in its own threads.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
