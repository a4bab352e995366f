"""A /proc with the processes that a test names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

SPAWNED = (
    "python",
    "-c",
    "from multiprocessing.spawn import spawn_main; spawn_main()",
    "--multiprocessing-fork",
)
ENGINE, WORKER = ("VLLM::EngineCore_DP1", ""), ("VLLM::Worker_TP0_EP0", "")


def proc(
    folder: Path, lines: Sequence[Sequence[str]], environment: Mapping[str, str] | None = None
) -> tuple[Path, int]:
    """A /proc in which each command line is the parent of the next one; and the last one's process id.

    The first one has the environment, and works in its own folder.
    """
    for number, arguments in enumerate(lines, start=100):
        process = folder / str(number)
        (process / "cwd").mkdir(parents=True)
        (process / "cmdline").write_bytes(b"".join(part.encode() + b"\0" for part in arguments))
        (process / "status").write_text(f"Name:\tx\nPPid:\t{number - 1 if number > 100 else 1}\nUid:\t0\n")
        variables = (environment or {}) if number == 100 else {}
        (process / "environ").write_bytes(b"".join(f"{k}={v}".encode() + b"\0" for k, v in variables.items()))
    return folder, 99 + len(lines)
