"""How much memory there is."""

from __future__ import annotations

import os
from pathlib import Path

from moescope.service.live.memory import available_bytes


def test_a_containers_limit_counts_where_it_is_lower(tmp_path: Path) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("12345678\n")
    (tmp_path / "huge").write_text(str(1 << 62))
    assert available_bytes([tmp_path / "none", tmp_path / "max", tmp_path / "huge"]) == machine
    assert available_bytes([tmp_path / "max", tmp_path / "limit"]) == 12345678
