"""What /v1/ranks should answer."""

from __future__ import annotations

from typing import Any

from tests.oracle.deployment import Deployment
from tests.oracle.layout import Layer, Worker
from tests.oracle.window import Window


def ranks(deployment: Deployment) -> dict[str, Any]:
    """All DP ranks and their workers, since the start."""
    window = Window(deployment, None, None)
    fleet = deployment.fleet
    return {
        "deployments": [
            {
                "server": fleet.server,
                "model": fleet.model,
                "dp_size": fleet.dp,
                "ep_size": fleet.ep,
                "missing_dp_ranks": deployment.missing_dp_ranks,
                "dp_ranks": [_rank(deployment, window, dp) for dp in deployment.dp_ranks],
            }
        ]
    }


def _rank(deployment: Deployment, window: Window, dp: int) -> dict[str, Any]:
    tokens, steps = window.figures(dp, "tokens"), window.figures(dp, "steps")
    phases = {
        "prefill_tokens": tokens["prefill"],
        "decode_tokens": tokens["decode"],
        "prefill_steps": steps["prefill"],
        "decode_steps": steps["decode"],
        "mixed_steps": steps["mixed"],
    }
    return {
        "dp_rank": dp,
        "tokens": tokens["all"],
        "steps": steps["all"],
        "idle_steps": window.idle_steps(dp),
        "phases": None if tokens["unknown"] or steps["unknown"] else phases,
        "unseen_layers": [layer.index for layer in unseen_layers(deployment, dp)],
        "producers": [_producer(deployment, worker) for worker in deployment.workers_of(dp)],
    }


def covered_layers(deployment: Deployment, dp: int) -> list[Layer]:
    """The layers that some worker of the DP rank counts."""
    found = {
        layer for worker in deployment.workers_of(dp) for layer in deployment.ledgers[worker].newest.layers
    }
    return sorted(found, key=lambda layer: layer.index)


def unseen_layers(deployment: Deployment, dp: int) -> list[Layer]:
    """Covered layers that show no row in the newest frames of all TP workers, which all tell of tokens."""
    return [layer for layer in covered_layers(deployment, dp) if _is_unseen(deployment, dp, layer)]


def _is_unseen(deployment: Deployment, dp: int, layer: Layer) -> bool:
    stage = [Worker(dp, layer.stage, tp) for tp in range(deployment.fleet.tp)]
    if any(worker not in deployment.ledgers for worker in stage):
        return False
    newest = [deployment.ledgers[worker].newest.totals for worker in stage]
    return all(totals.tokens and not totals.rows.get(layer.index) for totals in newest)


def _producer(deployment: Deployment, worker: Worker) -> dict[str, Any]:
    ledger, fleet = deployment.ledgers[worker], deployment.fleet
    newest = ledger.newest
    return {
        "tp_rank": worker.tp,
        "pp_rank": worker.pp,
        "ep_rank": (worker.dp * fleet.tp + worker.tp) % fleet.ep,
        "state": "stale" if deployment.is_stale(worker) else "counting",
        "age_seconds": deployment.now - ledger.newest_at,
        "epoch": newest.epoch,
        "seq": newest.seq,
        "restarts": len(ledger.latest) - 1,
        "placement_version": None if newest.placement is None else newest.version,
        "layers": [layer.index for layer in newest.layers],
        "uncovered": [{"layer": layer.index} for layer in fleet.not_covered(worker)],
    }


def broken_slots(deployment: Deployment, worker: Worker) -> list[dict[str, Any]]:
    """Layers whose slots are not rows x top-k in the worker's newest epoch, as ``mismatches`` has them."""
    newest = deployment.ledgers[worker].newest
    broken = []
    for layer in newest.layers:
        expected, got = newest.totals.rows[layer.index] * layer.top_k, sum(newest.totals.slots[layer.index])
        if expected != got:
            broken.append({"layer": layer.index, "law": "slots", "expected": expected, "got": got})
    return broken
