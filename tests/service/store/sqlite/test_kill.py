"""kill -9 of the real service at random moments: what it acknowledged is there, once."""

from __future__ import annotations

from pathlib import Path

from tests.service.store.sqlite.kills import kill_and_check

KILLS = 20


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    kill_and_check(tmp_path, KILLS)
