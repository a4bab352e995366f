"""Services of tests begin and end quickly; hundreds are made, each as in production but for its pauses."""

from __future__ import annotations

import asyncio
import functools
import gzip
import inspect
import sys
from collections.abc import Callable
from types import CodeType, FunctionType, NoneType
from typing import Any, Final

import uvicorn.server
from fastapi.dependencies import utils
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


class SharedSignatures:
    """Reads a function's signature once for all functions of one piece of code, as each application has one.

    Their annotations are text, which is read with what their module names; so it means the same in each.
    """

    def __init__(self, read: Callable[[Any], inspect.Signature]) -> None:
        self._read = read
        self._known: dict[tuple[str, CodeType], tuple[list[object], inspect.Signature]] = {}

    def __call__(self, call: Any) -> inspect.Signature:
        if type(call) is not FunctionType or hasattr(call, "__wrapped__"):
            return self._read(call)
        if not all(isinstance(text, str) for text in call.__annotations__.values()):
            return self._read(call)
        key = call.__module__, call.__code__
        defaults: list[object] = [*(call.__defaults__ or ()), *(call.__kwdefaults__ or {}).values()]
        known, signature = self._known.get(key, (None, None))
        if signature is not None and list(map(id, defaults)) == list(map(id, known or ())):
            return signature
        signature = self._read(call)
        self._known.setdefault(key, (defaults, signature))
        return signature


class SharedParameters:
    """What FastAPI finds out about a parameter, once for the same annotation and the same plain default."""

    def __init__(self, analyze: Callable[..., Any]) -> None:
        self._analyze = analyze
        self._known: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def __call__(self, *, param_name: str, annotation: Any, value: Any, is_path_param: bool) -> Any:
        given = {"param_name": param_name, "value": value, "is_path_param": is_path_param}
        plain = value is inspect.Signature.empty or isinstance(value, NoneType | str | int | float)
        if not plain:
            return self._analyze(annotation=annotation, **given)
        key = param_name, id(annotation), type(value), value, is_path_param
        if key not in self._known:
            # With the annotation itself: none gets its id as long as it is there.
            self._known[key] = annotation, self._analyze(annotation=annotation, **given)
        return self._known[key][1]


def share_parameters() -> None:
    """Have FastAPI look once at the parameters of a route, which all applications of this process have."""
    if not isinstance(utils._get_signature, SharedSignatures):
        utils._get_signature = SharedSignatures(utils._get_signature)
        utils.analyze_param = SharedParameters(utils.analyze_param)  # type: ignore[assignment]


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
    share_parameters()
    pack_once()
    look_often()
