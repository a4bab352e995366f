"""Which layers `breaking_worker` breaks; tests that name them need not import vLLM."""

from __future__ import annotations

from typing import Final

DROPPED_LAYER: Final = 2
"""TP rank 1 drops this layer's rows while there is a file ``drop``."""
BYPASSED_LAYER: Final = 3
"""Steps of decode tokens only go round this layer's callback while there is a file ``bypass``."""
