"""The whole exposition of one small deployment, and the document of all metrics, as files.

After a wanted change: ``python -m tests.service.metrics.test_golden`` writes both anew; read the difference.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moescope.service.metrics.document import markdown
from moescope.service.metrics.text.writer import Writer
from tests.service.metrics.deployment import registry

GOLDEN = Path(__file__).parent / "golden"
DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
HOW = "is not what the code makes; if that is wanted, run: python -m tests.service.metrics.test_golden"


def expositions() -> dict[str, str]:
    """File name to text; versions, which change for other reasons, are left out."""
    writer, families = Writer(), list(registry().collect())
    texts = {
        "metrics.txt": writer.write(families, openmetrics=False),
        "openmetrics.txt": writer.write(families, openmetrics=True),
    }
    return {
        name: re.sub(r'version="[^"]+",wire="[^"]+"', 'version="...",wire="..."', text.decode())
        for name, text in texts.items()
    }


@pytest.mark.parametrize("name", ["metrics.txt", "openmetrics.txt"])
def test_the_exposition_is_as_it_was(name: str) -> None:
    same = (GOLDEN / name).read_text() == expositions()[name]
    assert same, f"golden/{name} {HOW}"


def test_the_document_is_the_catalogue() -> None:
    same = DOCUMENT.read_text() == markdown()
    assert same, f"docs/metrics.md {HOW}"


if __name__ == "__main__":
    for name, text in expositions().items():
        (GOLDEN / name).write_text(text)
    DOCUMENT.write_text(markdown())
