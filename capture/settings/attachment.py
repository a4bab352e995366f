"""Whether vLLM's workers are extended without ``--worker-cls``: read in every process that vLLM starts.

It imports next to nothing: most of those processes have no worker, and most servers no moescope.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Final

ATTACHMENT: Final = "MOESCOPE"
_RAY_PREFIXES: Final = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"


def parse_flag(text: str) -> bool:
    """``0``, ``1``, ``false`` or ``true``.

    Raises:
        ValueError: it is something else.
    """
    text = text.strip().lower()
    if text not in ("0", "1", "false", "true"):
        raise ValueError(f"{text!r} is neither 0 nor 1")
    return text in ("1", "true")


def attachment_wanted(environment: Mapping[str, str]) -> bool:
    """Whether ``MOESCOPE`` asks for capture in whatever worker vLLM has.

    A value that can't be used is taken for a wish too: the worker then reports what is wrong with it.
    """
    try:
        return parse_flag(environment.get(ATTACHMENT) or "0")
    except ValueError:
        return True


def carry_through_ray(environment: MutableMapping[str, str]) -> None:
    """Have vLLM copy ``MOESCOPE`` and ``MOESCOPE_*`` to the actors that it starts through Ray.

    vLLM copies the variables with the prefixes of a variable of its own; ours is added to them.
    """
    prefixes = [text.strip() for text in environment.get(_RAY_PREFIXES, "").split(",") if text.strip()]
    if not any(ATTACHMENT.startswith(prefix) for prefix in prefixes):
        environment[_RAY_PREFIXES] = ",".join([*prefixes, ATTACHMENT])


def set_here(environment: Mapping[str, str]) -> bool:
    """Whether this process has any of the capturer's variables."""
    return any(name == ATTACHMENT or name.startswith(f"{ATTACHMENT}_") for name in environment)
