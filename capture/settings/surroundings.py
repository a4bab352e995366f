"""What others put into the environment of a worker, and what its name rests on where nobody gave it one."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final

LAUNCHED_AS: Final = "MOESCOPE_LAUNCHED_AS"
_MOST_DIGITS: Final = 9
"""Of a rank; Python refuses to read a number of over 4,300."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Variables of launchers; nothing here is set by hand.

    Attributes:
        launched_as: the name of the ``vllm serve`` that started this worker through Ray, from which the
            plugin passes it on; empty without Ray or plugin.
        master: torchrun's address of rank 0, ``host`` and ``port`` (``MASTER_ADDR``, ``MASTER_PORT``).
        rank: this process's number among all that torchrun started (``RANK``), 0 if there is none.
    """

    launched_as: str = ""
    master: tuple[str, str] = ("", "")
    rank: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Surroundings:
        """Read them; what can't be used is left out, since nobody here can mend it."""
        rank = environment.get("RANK", "")
        return cls(
            environment.get(LAUNCHED_AS, ""),
            (environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")),
            int(rank) if rank.isdecimal() and len(rank) <= _MOST_DIGITS else 0,
        )


def pass_on_launch(environment: MutableMapping[str, str], name: str) -> None:
    """Have the processes that this one starts know what they were started by, also through Ray."""
    environment[LAUNCHED_AS] = name
