"""Outputs of vLLM's scheduler, with what capture reads of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def output(
    new: dict[str, tuple[int, int]] | None = None,
    cached: dict[str, int] | None = None,
    tokens: dict[str, int] | None = None,
    **others: Any,
) -> SimpleNamespace:
    """A scheduler's output: new requests' prompt and computed tokens, other requests' computed tokens."""
    new, cached, tokens = new or {}, cached or {}, tokens or {}
    extra = others.pop("extra", {})
    made = [
        SimpleNamespace(
            req_id=name,
            prompt_token_ids=[0] * prompt,
            num_computed_tokens=computed,
            sampling_params=SimpleNamespace(extra_args=extra.get(name)),
        )
        for name, (prompt, computed) in new.items()
    ]
    known = SimpleNamespace(
        req_ids=list(cached),
        num_computed_tokens=list(cached.values()),
        resumed_req_ids=others.pop("resumed", set()),
    )
    return SimpleNamespace(
        scheduled_new_reqs=made,
        scheduled_cached_reqs=known,
        finished_req_ids=others.pop("finished", set()),
        num_scheduled_tokens=tokens,
        scheduled_spec_decode_tokens=others.pop("drafts", {}),
        total_num_scheduled_tokens=sum(tokens.values()),
    )
