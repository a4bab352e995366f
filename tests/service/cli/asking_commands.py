"""The commands that ask a service, with the arguments that they need."""

from __future__ import annotations

COMMANDS = [
    ["ranks"],
    ["balance"],
    ["balance", "--pool", "one"],
    ["pools"],
    ["pools", "one"],
    ["stragglers"],
    ["verdict"],
    ["top"],
    [],
    ["placement"],
    ["advise"],
    ["advise", "--rearrangements"],
    ["drift"],
    ["baseline", "list"],
    ["baseline", "pin", "one"],
    ["baseline", "remove", "one"],
    ["report"],
    ["requests", "unusual"],
    ["requests", "concentrated"],
    ["requests", "similar", "one"],
    ["traces", "list"],
    ["traces", "show", "one"],
    ["traces", "export", "one", "one.json"],
    ["simulate", "--duration", "0", "--interval", "0.05", "--ranks", "1"],
]
