"""What vLLM's internal id of a request says: which prompt of a completion it is of, and which sample."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

# vLLM appends eight hexadecimal digits to the id that its front end gave a request, and puts `<i>_` before it
# for the i-th of several samples (vllm/v1/engine/input_processor.py, parallel_sampling.py). The front end
# numbers the prompts of one completion: `cmpl-<id>-<i>`.
_SUFFIX: Final = re.compile(r"-[0-9a-f]{8}$")
_SAMPLE: Final = re.compile(r"^(\d{1,9})_(?=\D)")
_PROMPT: Final = re.compile(r"^cmpl-.*-(\d{1,9})$", re.DOTALL)


class RequestName(NamedTuple):
    """An internal id taken apart.

    Attributes:
        outer: the front end's id, without sample and suffix.
        prompt: which prompt of its completion it is of; 0 where prompts have no number.
        sample: which of several samples (``n`` > 1) it is; None: the only one.
    """

    outer: str
    prompt: int
    sample: int | None

    @classmethod
    def of(cls, request_id: str) -> RequestName:
        """That of vLLM's internal id."""
        sample = _SAMPLE.match(request_id)
        outer = request_id if sample is None else request_id[sample.end() :]
        outer = _SUFFIX.sub("", outer) or outer
        prompt = _PROMPT.match(outer)
        return cls(outer, int(prompt[1]) if prompt else 0, int(sample[1]) if sample else None)
