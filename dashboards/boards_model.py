"""The board Model: one deployment, its DP ranks side by side."""

from __future__ import annotations

from typing import Final

from moescope.dashboards import boards_model_experts as experts
from moescope.dashboards import boards_model_ranks as ranks
from moescope.dashboards.boards_model_now import NOW
from moescope.dashboards.spec import MODEL, ONE_MODEL_VARIABLES, RANK_VARIABLE, Board

MODEL_BOARD: Final = Board(
    "moescope-model",
    "moescope / Model",
    "One deployment: its DP ranks side by side, its EP ranks, its layers.",
    (*ONE_MODEL_VARIABLES, RANK_VARIABLE),
    (
        NOW,
        ranks.DP_RANKS,
        ranks.PHASES,
        ranks.STRAGGLERS,
        ranks.EP_RANKS,
        experts.BALANCE,
        experts.DRIFT,
    ),
    MODEL,
)
