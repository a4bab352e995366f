"""Layouts of vLLM over hosts: how each is started, and which workers are one deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MODEL: Final = "tiny-moe"
HEAD: Final = "{gpu-0}"
"""Replaced by the address of the host gpu-0."""


@dataclass(frozen=True)
class Start:
    """One command ``vllm serve``.

    Attributes:
        host: where.
        arguments: after those that all have.
        workers: the workers that it starts, as (DP rank, TP rank), by the name of their deployment. In a
            name ``{gpu-0}`` stands for that host's address.
        environment: more variables.
    """

    host: str
    arguments: tuple[str, ...]
    workers: Mapping[str, tuple[tuple[int, int], ...]]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """What runs side by side."""

    name: str
    starts: tuple[Start, ...]


def _start(host: str, text: str, name: str, *dp_ranks: int, port: int | None = 8000) -> Start:
    arguments = (*text.split(), *(() if port is None else ("--port", str(port))))
    return Start(host, arguments, {name: tuple((rank, 0) for rank in dp_ranks)})


_DP2 = "--data-parallel-size 2 --enable-expert-parallel"
_DP4 = "--data-parallel-size 4 --data-parallel-size-local 2 --enable-expert-parallel"
_AT_HEAD = f"--data-parallel-address {HEAD}"
_NODES = f"--tensor-parallel-size 2 --nnodes 2 --master-addr {HEAD} --distributed-executor-backend mp"
_CONNECTOR = '{"kv_connector":"ExampleConnector","kv_role":"%s"}'

TEST: Final = Layout(
    "external LB over two hosts, one rank without capture, beside a prefill server",
    (
        _start("gpu-0", f"{_DP2} {_AT_HEAD} --data-parallel-rank 0", f"{HEAD}:29550", 0),
        Start(
            "gpu-1",
            tuple(f"{_DP2} {_AT_HEAD} --data-parallel-rank 1".split()),
            {f"{HEAD}:29550": ((1, 0),)},
            {"MOESCOPE_TRACE_RATE": "lots"},
        ),
        Start(
            "gpu-1",
            ("--port", "8001", "--kv-transfer-config", _CONNECTOR % "kv_producer"),
            {"gpu-1:8001": ((0, 0),)},
            {"MOESCOPE_POOL": "tiny"},
        ),
    ),
)
"""What `make test` runs."""
LAYOUTS: Final = (
    Layout(
        "two servers on one host, one on another",
        (
            _start("gpu-0", "", "gpu-0:8000", 0),
            _start("gpu-0", "", "gpu-0:8001", 0, port=8001),
            _start("gpu-1", "", "gpu-1:8000", 0, port=None),
        ),
    ),
    Layout("internal LB", (_start("gpu-0", f"{_DP2} --api-server-count 1", "gpu-0:8000", 0, 1),)),
    Layout(
        "TP on one host",
        (
            Start(
                "gpu-0",
                ("--tensor-parallel-size", "2", "--distributed-executor-backend", "mp", "--port", "8003"),
                {"gpu-0:8003": ((0, 0), (0, 1))},
            ),
        ),
    ),
    Layout(
        "external LB over two hosts",
        tuple(
            _start(f"gpu-{rank}", f"{_DP2} {_AT_HEAD} --data-parallel-rank {rank}", f"{HEAD}:29550", rank)
            for rank in (0, 1)
        ),
    ),
    Layout(
        "external LB on one host",
        tuple(
            _start("gpu-0", f"{_DP2} --data-parallel-rank {rank}", "gpu-0:29550", rank, port=8000 + rank)
            for rank in (0, 1)
        ),
    ),
    Layout(
        "multi-port external LB",
        (
            _start(
                "gpu-0",
                f"{_DP2} --data-parallel-size-local 2 --data-parallel-multi-port-external-lb",
                "gpu-0:29550",
                *(0, 1),
            ),
        ),
    ),
    Layout(
        "headless",
        (
            _start("gpu-0", f"{_DP2} {_AT_HEAD} --data-parallel-size-local 1", f"{HEAD}:29550", 0),
            _start(
                "gpu-1",
                f"{_DP2} {_AT_HEAD} --data-parallel-size-local 1 --data-parallel-start-rank 1 --headless",
                f"{HEAD}:29550",
                1,
                port=None,
            ),
        ),
    ),
    Layout(
        "hybrid LB over two hosts",
        tuple(
            _start(
                f"gpu-{node}",
                f"{_DP4} {_AT_HEAD} --data-parallel-start-rank {2 * node} --api-server-count 1",
                f"{HEAD}:29550",
                *(2 * node, 2 * node + 1),
            )
            for node in (0, 1)
        ),
    ),
    Layout(
        "TP over two hosts",
        tuple(
            Start(
                f"gpu-{node}",
                (*f"{_NODES} --node-rank {node} {'--headless' if node else '--port 8000'}".split(),),
                {f"{HEAD}:29501": ((0, node),)},
            )
            for node in (0, 1)
        ),
    ),
    Layout(
        "prefill and decode on one host",
        tuple(
            Start(
                "gpu-0",
                ("--port", str(port), "--kv-transfer-config", _CONNECTOR % role),
                {f"gpu-0:{port}": ((0, 0),)},
            )
            for port, role in ((8000, "kv_producer"), (8001, "kv_consumer"))
        ),
    ),
)
