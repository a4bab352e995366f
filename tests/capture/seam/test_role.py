"""Prefill or decode, from vLLM's own configuration of the transfer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config.kv_transfer import KVTransferConfig

from moescope.capture.seam.role import read_role


def multi(*roles: str, role: str = "kv_both") -> KVTransferConfig:
    connectors = [{"kv_connector": "NixlConnector", "kv_role": part} for part in roles]
    return KVTransferConfig(
        kv_connector="MultiConnector", kv_role=role, kv_connector_extra_config={"connectors": connectors}
    )


@pytest.mark.parametrize(
    ("transfer", "role"),
    [
        (None, ""),
        (KVTransferConfig(), ""),
        (KVTransferConfig(kv_connector="P2pNcclConnector", kv_role="kv_producer"), "prefill"),
        (KVTransferConfig(kv_connector="P2pNcclConnector", kv_role="kv_consumer"), "decode"),
        (KVTransferConfig(kv_connector="NixlConnector", kv_role="kv_both"), ""),
        (multi("kv_both", "kv_both"), ""),
        (multi("kv_producer", "kv_both"), "prefill"),
        (multi("kv_both", "kv_consumer"), "decode"),
        (multi("kv_producer", "kv_consumer"), ""),
        (multi("kv_consumer", role="kv_producer"), "prefill"),
        (multi(), ""),
    ],
)
def test_role(transfer: KVTransferConfig | None, role: str) -> None:
    assert read_role(SimpleNamespace(kv_transfer_config=transfer)) == role


def test_connectors_within_connectors_are_asked_too() -> None:
    inner = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": [{"kv_connector": "N", "kv_role": "kv_consumer"}]},
    }
    transfer = KVTransferConfig(
        kv_connector="MultiConnector", kv_role="kv_both", kv_connector_extra_config={"connectors": [inner]}
    )
    assert read_role(SimpleNamespace(kv_transfer_config=transfer)) == "decode"


@pytest.mark.parametrize(
    "config",
    [
        None,
        object(),
        SimpleNamespace(kv_transfer_config=object()),
        SimpleNamespace(kv_transfer_config=SimpleNamespace(kv_connector="x", kv_role=None)),
        *(
            SimpleNamespace(
                kv_transfer_config=SimpleNamespace(
                    kv_connector="MultiConnector", kv_role="kv_both", kv_connector_extra_config=extra
                )
            )
            for extra in (None, {"connectors": "n"}, {"connectors": [None, {"kv_role": ["kv_producer"]}]})
        ),
    ],
)
def test_what_cannot_be_read_tells_nothing(config: Any) -> None:
    assert read_role(config) == ""
