"""What both ends of the wire agree on before they read a byte of it: its version, paths and content type.

It imports the standard library only, so that a worker reports even where msgspec or numpy can't be imported.
"""

from __future__ import annotations

from typing import Final

WIRE_MAJOR: Final = 1
WIRE_MINOR: Final = 7

CONTENT_TYPE: Final = "application/vnd.moescope.frame+msgpack"
INGEST_PATH: Final = "/v1/ingest"
TRACES_PATH: Final = "/v1/traces"

MAX_NAME: Final = 256
"""Characters of a deployment's, a pool's or a model's name, at most."""
MAX_TEXT: Final = 1024
"""Characters of a reason or of a host's name, at most."""
