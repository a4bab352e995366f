"""Which part of a request's work an instance computes, where prefill and decode have their own instances."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

_ROLES: Final = {"kv_producer": "prefill", "kv_consumer": "decode"}


def read_role(vllm_config: Any) -> str:
    """``prefill``, ``decode``, or nothing: both, or vLLM's configuration doesn't say. Nothing raises.

    vLLM's ``kv_role`` tells it. ``kv_both`` tells nothing: with NIXL both kinds are run with it. A connector
    made of several (``MultiConnector``) may say ``kv_both``, and its parts more; parts that disagree tell
    nothing.
    """
    with contextlib.suppress(Exception):
        config = vllm_config.kv_transfer_config
        if config is not None and config.kv_connector is not None:
            said = {str(config.kv_role)} & _ROLES.keys() or {*_parts(config.kv_connector_extra_config)}
            found = {_ROLES[role] for role in said if role in _ROLES}
            return found.pop() if len(found) == 1 else ""
    return ""


def _parts(extra: Any) -> Iterator[str]:
    """The roles of the connectors that one is made of."""
    connectors = extra.get("connectors") if isinstance(extra, Mapping) else None
    for connector in connectors if isinstance(connectors, list) else []:
        if isinstance(connector, Mapping):
            yield str(connector.get("kv_role"))
            yield from _parts(connector.get("kv_connector_extra_config"))
