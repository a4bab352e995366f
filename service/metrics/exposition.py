"""The answer to a scrape: format by the Accept header, compressed where the client takes it."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from moescope.service.metrics.writer import Writer

# At 100k series level 6 takes 16 times as long as level 1.
_LEVEL: Final = 1
# Our names are valid in the classic alphabet, so these ways of escaping names change nothing.
_HARMLESS: Final = ("underscores", "allow-utf-8")


@dataclass(frozen=True, slots=True)
class Exposition:
    """A body and its headers."""

    body: bytes
    headers: dict[str, str]


def expose(registry: CollectorRegistry, writer: Writer, accept: str, accept_encoding: str) -> Exposition:
    """Collect and write everything in ``registry``."""
    encode, content_type = choose_encoder(accept)
    escaping = re.search(r"escaping=([\w-]+)", content_type)
    if escaping is None or escaping[1] in _HARMLESS:
        openmetrics = content_type.startswith("application/openmetrics-text")
        body = writer.write(registry.collect(), openmetrics=openmetrics)
    else:
        body = encode(registry)
    headers = {"content-type": content_type, "vary": "accept, accept-encoding"}
    if gzip_accepted(accept_encoding):
        headers["content-encoding"] = "gzip"
        body = gzip.compress(body, _LEVEL, mtime=0)
    return Exposition(body, headers)
