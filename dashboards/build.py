"""Writes the boards' JSON: ``python -m moescope.dashboards.build``.

The boards use the metrics themselves and no recording rules. So they work without the rules, at any scrape
interval.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from moescope.dashboards.boards_fleet import FLEET_BOARD
from moescope.dashboards.boards_health import HEALTH_BOARD
from moescope.dashboards.boards_layer import LAYER_BOARD
from moescope.dashboards.boards_model import MODEL_BOARD
from moescope.dashboards.boards_pools import POOLS_BOARD
from moescope.dashboards.render import render

BOARDS: Final = (FLEET_BOARD, POOLS_BOARD, MODEL_BOARD, LAYER_BOARD, HEALTH_BOARD)
FOLDER: Final = Path(__file__).parent / "boards"


def documents() -> dict[str, str]:
    """File name to JSON."""
    return {f"{board.uid}.json": render(board) for board in BOARDS}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text)
