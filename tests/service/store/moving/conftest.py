"""A database of its own for each test."""

from __future__ import annotations

import uuid

import pytest


@pytest.fixture
def url(clickhouse: str) -> str:
    return f"{clickhouse}/test_{uuid.uuid4().hex}"
