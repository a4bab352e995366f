"""Services of tests begin and end quickly; hundreds are made, each as in production but for its pauses."""

from __future__ import annotations

import asyncio
import functools
import gzip
import sys
from typing import Any, Final

import uvicorn.server
from fastapi.utils import create_model_field
from pydantic import TypeAdapter

from moescope.service.api.routes import home

_OWN_TO_ONE: Final = ("<locals>", " at 0x")
"""What is in the text of an annotation that names an object of one call, as another's may read."""


class SharedAdapters:
    """Makes what `TypeAdapter` makes, one for all annotations that read alike to the last detail."""

    def __init__(self) -> None:
        self._made: dict[str, TypeAdapter[Any]] = {}

    def __call__(self, annotation: Any, *, config: Any = None) -> TypeAdapter[Any]:
        text = repr(annotation)
        if config is not None or any(mark in text for mark in _OWN_TO_ONE):
            return TypeAdapter(annotation, config=config)
        if text not in self._made:
            self._made[text] = TypeAdapter(annotation)
        return self._made[text]


def share_validators() -> None:
    """Have FastAPI share the validators of all applications of this process."""
    field = create_model_field(name="any", type_=int)
    fields = sys.modules[type(field).__module__]
    assert fields.TypeAdapter is TypeAdapter or isinstance(fields.TypeAdapter, SharedAdapters)
    fields.TypeAdapter = SharedAdapters()  # type: ignore[attr-defined]


class PackedOnce:
    """`gzip`, which packs the same bytes once."""

    compress = staticmethod(functools.cache(gzip.compress))


def pack_once() -> None:
    """Have all applications of this process share the compressed files of the page."""
    home.gzip = PackedOnce()  # type: ignore[assignment]


class Impatient:
    """`asyncio`, whose pauses last a tenth."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        """Wait for a tenth of this."""
        await asyncio.sleep(seconds / 10)


def look_often() -> None:
    """Have uvicorn look every 10 ms, not 100, whether it is to end and whether its connections have."""
    uvicorn.server.asyncio = Impatient()  # type: ignore[attr-defined]


def quick_apps() -> None:
    """All of these."""
    share_validators()
    pack_once()
    look_often()
