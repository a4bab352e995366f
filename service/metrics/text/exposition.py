"""The answer to a scrape: format by the Accept header, compressed where the client takes it."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from moescope.service.metrics.text.writer import Families, Writer, without_created
from moescope.service.serving.garbage import no_search

# At 100k series level 6 takes 16 times as long as level 1.
_LEVEL: Final = 1
# Our names are valid in the classic alphabet, so these ways of escaping names change nothing.
_HARMLESS: Final = ("", "underscores", "allow-utf-8")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The form that a scraper wants; equal forms get the same body.

    A scraper may name any version, and ``content_type`` repeats it. The body does not depend on it.

    Attributes:
        openmetrics: else Prometheus' text format.
        escaping: what the format does to names beyond the classic alphabet; one of four, empty in old text.
        compressed: by gzip.
        content_type: of the answer.
        encode: the library's encoder of it.
    """

    openmetrics: bool
    escaping: str
    compressed: bool
    content_type: str = field(compare=False)
    encode: Callable[[Collector], bytes] = field(compare=False)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        headers = {"content-type": self.content_type, "vary": "accept, accept-encoding"}
        return {**headers, "content-encoding": "gzip"} if self.compressed else headers


def negotiate(accept: str, accept_encoding: str) -> Wanted:
    """The form that a scrape's headers Accept and Accept-Encoding ask for."""
    encode, content_type = choose_encoder(accept)
    escaping = re.search(r"escaping=([\w-]+)$", content_type)
    return Wanted(
        openmetrics=content_type.startswith("application/openmetrics-text"),
        escaping="" if escaping is None else escaping[1],
        compressed=gzip_accepted(accept_encoding),
        content_type=content_type,
        encode=encode,
    )


def expose(registry: CollectorRegistry, writer: Writer, forms: Iterable[Wanted]) -> dict[Wanted, bytes]:
    """Collect everything in ``registry`` once, and write it in each of the forms."""
    with no_search():
        return _exposed(registry, writer, forms)


def _exposed(registry: CollectorRegistry, writer: Writer, forms: Iterable[Wanted]) -> dict[Wanted, bytes]:
    families = list(registry.collect())
    bodies = {}
    for wanted in forms:
        if wanted.escaping in _HARMLESS:
            body = writer.write(families, openmetrics=wanted.openmetrics)
        else:
            shown = families if wanted.openmetrics else map(without_created, families)
            body = wanted.encode(Families(*shown))
        bodies[wanted] = gzip.compress(body, _LEVEL, mtime=0) if wanted.compressed else body
    return bodies
