"""A short form of the gate of attacks: the service is killed while it takes an expensive body."""

from __future__ import annotations

from pathlib import Path

from devkit.soak import costly
from devkit.soak.attacks import attack


def test_nothing_is_lost_where_the_service_is_killed_in_an_expensive_frame(tmp_path: Path) -> None:
    [kind] = [kind for kind in costly.BODIES if kind.name == "copies, 1,024 tables"]
    seen, lost = attack(tmp_path, kind, 0.3)
    assert seen.tokens
    assert lost == 0
