"""What a server needs to know of the application that it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moescope.service.auth.book import TokenBook
from moescope.service.settings import Settings


@dataclass(frozen=True, slots=True)
class Running:
    """The application's settings and tokens: ``app.state.running``.

    ``end_soon`` is called when the server begins to end.
    """

    settings: Settings
    book: TokenBook
    end_soon: Callable[[], None] = lambda: None
