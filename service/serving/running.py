"""What a server needs to know of the application that it runs."""

from __future__ import annotations

from dataclasses import dataclass

from moescope.service.auth.book import TokenBook
from moescope.service.settings import Settings


@dataclass(frozen=True, slots=True)
class Running:
    """The application's settings and tokens: ``app.state.running``."""

    settings: Settings
    book: TokenBook
