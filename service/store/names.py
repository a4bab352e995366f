"""Names of requests that are gone, as they are remembered in a folder, and in what was moved out of one."""

from __future__ import annotations

import hashlib


def hash_of(name: str) -> int:
    """64 bits of a name, as a signed integer."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
