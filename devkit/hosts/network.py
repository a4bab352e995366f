"""Hosts with names and networks of their own on this machine, by Linux namespaces; needs root.

with Network(["gpu-0", "gpu-1"]) as network:
    ProcessGroup(network.on("gpu-0", ["vllm", "serve", ...]), log, environment | network.environment("gpu-0"))
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

_PREFIX, _BLOCK = 13, 8
_BLOCKS: Final = 2 ** (32 - _PREFIX) // _BLOCK
_RENAMED: Final = 'echo "$1" > /proc/sys/kernel/hostname; shift; exec "$@"'


class NoNamespacesError(RuntimeError):
    """This machine makes no namespaces; the message says what failed."""


class Network:
    """Hosts on one switch, to which this machine is connected too.

    Attributes:
        gateway: this machine's address there, from which and to which all hosts have a way.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        # Names and addresses of this process's own: it may have one network at a time.
        self._switch = f"moe{os.getpid()}"
        block = ipaddress.ip_network(f"10.200.0.0/{_PREFIX}").network_address
        self.gateway, *addresses = (
            str(block + os.getpid() % _BLOCKS * _BLOCK + number) for number in range(1, _BLOCK - 1)
        )
        self._addresses = dict(zip(hosts, addresses, strict=False))
        self._spaces = {host: f"{self._switch}-{index}" for index, host in enumerate(hosts)}
        if len(self._addresses) < len(hosts):
            raise ValueError(f"{len(hosts)} hosts, at most {len(addresses)} fit")

    def __enter__(self) -> Self:
        try:
            _ip("link", "add", self._switch, "type", "bridge")
            _ip("addr", "add", f"{self.gateway}/29", "dev", self._switch)
            _ip("link", "set", self._switch, "up")
            for index, host in enumerate(self._addresses):
                self._add(index, host)
        except NoNamespacesError:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take everything away; what runs in it goes on, without a network."""
        for delete in (
            *(("netns", "del", space) for space in self._spaces.values()),
            ("link", "del", self._switch),
        ):
            with contextlib.suppress(NoNamespacesError):
                _ip(*delete)

    def address(self, host: str) -> str:
        """The host's address."""
        return self._addresses[host]

    def on(self, host: str, command: Sequence[str]) -> list[str]:
        """The command line that runs a command on a host."""
        inside = ["unshare", "--uts", "sh", "-c", _RENAMED, "sh", host, *command]
        return ["ip", "netns", "exec", self._spaces[host], *inside]

    def environment(self, host: str) -> dict[str, str]:
        """What torch and vLLM need there, since no name service knows the host's name."""
        return {"GLOO_SOCKET_IFNAME": "eth0", "VLLM_HOST_IP": self._addresses[host]}

    def _add(self, index: int, host: str) -> None:
        space, cable = self._spaces[host], f"{self._switch}p{index}"
        _ip("netns", "add", space)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", cable, "master", self._switch, "up")
        _ip("-n", space, "addr", "add", f"{self._addresses[host]}/29", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", space, "link", "set", device, "up")


def why_no_namespaces() -> str | None:
    """Why this machine can't have such hosts, or None."""
    try:
        with Network(["probe"]) as network:
            probe = network.on("probe", ["uname", "-n"])
            done = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=60)
    except NoNamespacesError as error:
        return str(error)
    return None if done.stdout.strip() == "probe" else f"a host has no name of its own: {done.stderr.strip()}"


def _ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True, timeout=60)
    except FileNotFoundError:
        raise NoNamespacesError("there is no command ip (Debian's package iproute2)") from None
    except subprocess.CalledProcessError as error:
        raise NoNamespacesError(f"ip {' '.join(arguments)}: {error.stderr.strip()}") from None
