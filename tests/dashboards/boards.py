"""The boards' JSON, by file name."""

from __future__ import annotations

import json

from moescope.dashboards.build import FOLDER

BOARDS = {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
