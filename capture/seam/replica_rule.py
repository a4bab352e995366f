"""Which copy of a replicated expert a token's slot goes to: the rule of the installed vLLM.

vLLM maps logical experts to physical ones in `base_router.eplb_map_to_physical_and_record`, after the
router's callback. Which copy it takes depends on where in the router's tensor the slot is, not on the token.
The rule is found out by asking that function, not by asking for a version: ids whose experts have 1 to 32
copies go through it once, and the answer must be that of a rule known here, in each slot.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

import torch

MULTIPLIER: Final = 2654435769
"""Knuth's multiplicative hash, the floor of 2**32 over the golden ratio, as vLLM's kernel has it."""
_COPIES: Final = 32
_ROWS: Final = 1 << 16
_TOP_K: Final = 3


class ReplicaRule(IntEnum):
    """How a slot's copy follows from its row and column in the router's tensor of ids [n, top_k]."""

    ONE_COPY = 1
    """There are no replicas: each expert's only copy."""
    ROW_HASH = 2
    """``(row * MULTIPLIER mod 2**32) mod copies`` (vLLM 0.20 to 0.33): one for all columns of a row."""
    FLAT_SLOT = 3
    """``(row * top_k + column) mod copies`` (before vLLM 0.20)."""


def replicas(rule: ReplicaRule, rows: torch.Tensor, top_k: int, copies: torch.Tensor) -> torch.Tensor:
    """The copy of each slot, int64 [n, top_k], from 0.

    Args:
        rule: the rule.
        rows: int64 [n], the rows' places in the router's tensor.
        top_k: slots of a row.
        copies: int64 [n, top_k], how many copies each slot's expert has.
    """
    if rule is ReplicaRule.ROW_HASH:
        return (rows * MULTIPLIER & 0xFFFFFFFF).unsqueeze(1) % copies.clamp(min=1)
    if rule is ReplicaRule.FLAT_SLOT:
        columns = torch.arange(top_k, device=rows.device)
        return (rows.unsqueeze(1) * top_k + columns) % copies.clamp(min=1)
    return torch.zeros_like(copies)


def find_rule(
    device: torch.device, map_to_physical: Callable[..., torch.Tensor] | None = None
) -> ReplicaRule:
    """The rule by which vLLM takes a copy; asks its own function once, on the device, and waits for it.

    Args:
        device: the worker's.
        map_to_physical: vLLM's function; None: the one that its routers call.

    Raises:
        LookupError: it is none of the rules known here, or vLLM has no such function.
    """
    ask: Any = _function() if map_to_physical is None else map_to_physical
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, _COPIES, (_ROWS, _TOP_K), generator=generator)
    copies = torch.arange(1, _COPIES + 1)
    physical_of = torch.arange(_COPIES * _COPIES).view(_COPIES, _COPIES)
    answer = ask(
        topk_ids=ids.to(device, torch.int32),
        expert_load_view=torch.zeros(_COPIES * _COPIES, dtype=torch.int32, device=device),
        logical_to_physical_map=physical_of.to(device),
        logical_replica_count=copies.to(device),
        record_enabled=torch.zeros((), dtype=torch.bool, device=device),
    )
    found, rows = answer.cpu().to(torch.int64), torch.arange(_ROWS)
    for rule in (ReplicaRule.ROW_HASH, ReplicaRule.FLAT_SLOT):
        expected = physical_of[ids, replicas(rule, rows, _TOP_K, copies[ids])]
        if found.shape == expected.shape and torch.equal(found, expected):
            return rule
    raise LookupError(
        "this vLLM spreads slots over the copies of an expert by a rule that moescope doesn't know"
    )


def _function() -> Any:
    from vllm.model_executor.layers.fused_moe.router import base_router

    found = getattr(base_router, "eplb_map_to_physical_and_record", None)
    if found is None:
        raise LookupError("this vLLM has no eplb_map_to_physical_and_record")
    return found
