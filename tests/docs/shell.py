"""What the documents tell a reader to type: the lines of their blocks called ``sh``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = (
    "README.md",
    "docs/install.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("tutorial-*.md")),
)


def typed(document: str) -> list[str]:
    """A document's lines for the shell, in order, without comments; those that go on below are one."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*$", "", line).strip() for line in lines if line.strip()]


def words_of(line: str) -> tuple[dict[str, str], list[str]]:
    """The variables that a line sets, and the words of its command."""
    words = shlex.split(line)
    count = next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
    return dict(word.split("=", 1) for word in words[:count]), words[count:]
