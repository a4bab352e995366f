"""Where vLLM resolves the name of its worker class, so that the class can be extended there.

vLLM documents ``--worker-cls`` (one class) and ``--worker-extension-cls`` (adds methods, overrides none). It
has no hook that extends the class which those or the platform name. So one name is replaced in one module of
vLLM: ``resolve_obj_by_qualname`` in ``vllm.v1.worker.worker_base``, by a function that calls it. The module
has been like that from vLLM 0.20 to 0.33. vLLM loads plugins in the very function that then resolves the
class: a plugin that acts there is in time in every process with a worker.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from moescope.capture.seam.platform import is_worker

logger = logging.getLogger("vllm.moescope")

Extend = Callable[[type[Any]], type[Any]]
"""From the worker class that vLLM resolved to the one that it gets."""

_MODULE: Final = "vllm.v1.worker.worker_base"
_NAME: Final = "resolve_obj_by_qualname"
_MARK: Final = "_moescope"


def extend_workers(extend: Extend) -> None:
    """Have vLLM's workers in this process extended; calls after the first do nothing.

    A process that never imports vLLM's workers has none: there nothing but a look at imports is left behind.
    """
    module = sys.modules.get(_MODULE)
    if module is not None:
        _replace(module, extend)
    elif not any(isinstance(finder, _Once) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Once(lambda loaded: _replace(loaded, extend)))


def _replace(module: ModuleType, extend: Extend) -> None:
    resolve = getattr(module, _NAME, None)
    if not callable(resolve):
        logger.error(
            "moescope: capture is off: this vLLM resolves its worker class elsewhere. Use --worker-cls "
            "moescope.capture.worker.RoutingWorker in place of MOESCOPE=1."
        )
    elif not hasattr(resolve, _MARK):
        setattr(module, _NAME, _resolving(resolve, extend))


def _resolving(resolve: Callable[[str], Any], extend: Extend) -> Callable[[str], Any]:
    def resolve_and_extend(qualname: str) -> Any:
        found = resolve(qualname)
        if not is_worker(found):
            return found
        try:
            return extend(found)
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            logger.error("moescope: capture is off: %s can't be extended: %r", qualname, error)
            return found

    setattr(resolve_and_extend, _MARK, True)
    return resolve_and_extend


class _Once(importlib.abc.MetaPathFinder):
    """Calls `loaded` with the module once it is imported, and leaves no trace then."""

    def __init__(self, loaded: Callable[[ModuleType], None]) -> None:
        self._loaded = loaded

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - Python's interface
        target: ModuleType | None = None,  # noqa: ARG002 - as above
    ) -> ModuleSpec | None:
        """The module's own spec, whose loader tells when the module has run; None for all other modules."""
        if fullname != _MODULE or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            run = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                self._loaded(module)

            loader.exec_module = exec_module
        return spec
