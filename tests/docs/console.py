"""The documents' sessions at a shell; ``python -m tests.docs.console`` runs them again, and writes them.

A block of code that is called ``console`` has commands after ``$`` and what each prints. They ask a service
that the last ``moescope simulate`` before the block has fed for twelve minutes: one of a block called ``sh``,
or of a comment ``<!-- of: moescope simulate ... -->``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.docs.fleet import plan_of, serving

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("tutorial-*.md"))]
SECONDS: Final = 720
"""For how long the fleet has run when it is asked."""
SHOWN_URL: Final = "http://127.0.0.1:9890"
_PART: Final = re.compile(
    r"^<!-- of: (?P<of>.*?) -->$|^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Session:
    """A block called ``console``.

    Attributes:
        fleet: the command that feeds the service which it asks.
        code: the block's text.
        begin: where the text begins in its document.
    """

    fleet: str
    code: str
    begin: int

    @property
    def commands(self) -> list[str]:
        """What is asked, in order."""
        return re.findall(r"^\$ (.*)$", self.code, re.MULTILINE)


def sessions(text: str) -> list[Session]:
    """The sessions of a document, in order."""
    found, fleet = [], ""
    for part in _PART.finditer(text):
        if part["of"]:
            fleet = part["of"]
        elif part["language"] == "sh":
            fleet = next(iter(re.findall(r"^moescope simulate .*$", part["code"], re.MULTILINE)[-1:]), fleet)
        elif part["language"] == "console":
            assert fleet, f"no `moescope simulate` before this session:\n{part['code']}"
            found.append(Session(fleet, part["code"], part.start("code")))
    return found


def print_all(fleet: str, commands: Iterable[str]) -> dict[str, str]:
    """What each command prints of this fleet."""
    told = {}
    with serving(plan_of(fleet), SECONDS) as service, TemporaryDirectory() as folder:
        env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MOESCOPE_URL": service.url,
            "TZ": "UTC",
        }
        for command in dict.fromkeys(commands):
            done = subprocess.run(
                ["bash", "-c", command.replace(SHOWN_URL, service.url)],
                cwd=folder,
                env=env,
                check=False,
                capture_output=True,
                text=True,
            )
            assert not done.stderr, done.stderr
            lines = done.stdout.replace(service.url, SHOWN_URL).splitlines()
            told[command] = "".join(f"{line.rstrip()}\n" for line in lines)
    return told


def run(texts: Iterable[str]) -> dict[tuple[str, str], str]:
    """What the commands of documents print, by fleet and command; each fleet runs once."""
    asked: dict[str, list[str]] = {}
    for text in texts:
        for session in sessions(text):
            asked.setdefault(session.fleet, []).extend(session.commands)
    return {
        (fleet, command): said
        for fleet, commands in asked.items()
        for command, said in print_all(fleet, commands).items()
    }


def renewed(text: str, told: Mapping[tuple[str, str], str]) -> str:
    """A document whose sessions print what was told."""
    for session in reversed(sessions(text)):
        code = "".join(f"$ {command}\n{told[session.fleet, command]}" for command in session.commands)
        text = f"{text[: session.begin]}{code}{text[session.begin + len(session.code) :]}"
    return text


def main() -> None:
    """Write the documents anew."""
    texts = {path: path.read_text() for path in DOCUMENTS}
    told = run(texts.values())
    for path, text in texts.items():
        if (changed := renewed(text, told)) != text:
            path.write_text(changed)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
