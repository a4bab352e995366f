"""Why a process ended, from its log: the line that a person has to read first."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from devkit.processes import tail

LONGEST: Final = 400
"""Characters of an exception that are shown; vLLM prints whole configurations in some."""
_BEGIN: Final = "Traceback (most recent call last):"
_LINKS: Final = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
# What vLLM writes before a line: the process and, if it comes from a logger, level, time and place.
_PREFIX: Final = re.compile(r"^(?:\((?P<process>\S+ pid=\d+)\) )?(?:\w+ \d\d-\d\d [\d:]+ \[\S+\] ?)?")
# vLLM only warns that it can't load its own library, and fails later for want of what is in it.
_LOADER: Final = re.compile(r"(\w*Error)\W+([^'\"\n]*: cannot open shared object file[^'\"\n]*)")
_COMPILER: Final = re.compile(r"[^\s:]+:\d+:\d+: (?:fatal )?error: .+")
_USAGE: Final = re.compile(r"^\S[^:\n]*: error: .+", re.MULTILINE)
_ELSEWHERE: Final = "See root cause above"


def root_cause(log: str) -> list[str]:
    """What went wrong first, without vLLM's prefixes, and what that led to; nothing if the log doesn't say.

    A shared library that could not be loaded, or what a compiler says, is first. Then comes the innermost
    exception of the last traceback, or of the log's first if the last only says that another process failed.
    Without any it is an error in the command line.
    """
    below = [_short(f"{found[1]}: {found[2]}") for found in _LOADER.finditer(log)][:1]
    below = below or [_short(found) for found in _COMPILER.findall(log)][:1]
    chains = _chains(log)
    if chains:
        refers = _ELSEWHERE in chains[-1][-1]
        chain = [_short(exception) for exception in chains[0 if refers else -1]]
        return below + [exception for exception in chain if exception not in below]
    return below or [_short(line) for line in _USAGE.findall(log)[-1:]]


def explain(log: Path, what: str, since: int = 0) -> str:
    """A message about a process that failed: its root cause first, or what its log ends with.

    Args:
        log: its output.
        what: what became of it, such as "vLLM ended with status 1".
        since: how many bytes of the log to leave out, because the process has survived what they tell.
    """
    text = log.read_bytes()[since:].decode(errors="replace")
    first, *then = root_cause(text) or [""]
    if not first:
        return f"{what}; its log, {log}, ends with:\n{tail(text)}"
    return "\n".join([first, *(f"then {exception}" for exception in then), f"{what}; its log: {log}"])


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def _chains(log: str) -> list[list[str]]:
    """The exceptions of each traceback, the innermost first; the tracebacks in the order of their begins."""
    by_process: dict[str, list[tuple[int, str]]] = {}
    for number, line in enumerate(log.splitlines()):
        prefix = _PREFIX.match(line)
        process = (prefix and prefix["process"]) or ""
        by_process.setdefault(process, []).append((number, line[prefix.end() if prefix else 0 :]))
    begun = [chain for lines in by_process.values() for chain in _chains_of(lines)]
    return [exceptions for _, exceptions in sorted(begun) if exceptions]


def _chains_of(lines: Iterable[tuple[int, str]]) -> list[tuple[int, list[str]]]:
    """The number of each traceback's first line, and its exceptions, from one process's numbered lines."""
    chains: list[tuple[int, list[str]]] = []
    in_frames = in_message = linked = False
    for number, line in lines:
        indented = line[:1].isspace()
        if line == _BEGIN:
            if not (linked and chains):
                chains.append((number, []))
            in_frames, in_message, linked = True, False, False
        elif in_frames and line and not indented:
            chains[-1][1].append(line)
            in_frames, in_message = False, True
        elif in_message and indented and line.strip():
            chains[-1][1][-1] += f" {line.strip()}"
        elif not in_frames and line.strip():
            in_message, linked = False, line in _LINKS
        else:
            in_message = False
    return chains
