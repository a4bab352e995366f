"""The device of the capturer's own threads."""

from __future__ import annotations

import torch


def use_device(device: torch.device) -> None:
    """Have the calling thread use this device, before it asks anything of CUDA.

    A new thread starts on device 0. There even the query of another device's event may create a context,
    which takes hundreds of MB in each worker; the server's memory has no room for that. vLLM sets the device
    in its own threads too.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
