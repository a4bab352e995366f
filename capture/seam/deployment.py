"""What a deployment is called where the operator gave it no name.

A name must be the same in all workers of one deployment on however many hosts, another in every other
deployment, and the same after a restart. So it is made of what vLLM was told where it was started:

- workers of one start on one host: the host's name, and the port of the API (else the first device);
- processes that find each other by an address: that address and port, and the role, since the port is a
  default that two deployments may have in common;
- workers that Ray starts: what the plugin passes on from where vLLM was started, else Ray's own address.

Nothing here raises: what can't be told makes a plainer name. It imports neither the wire nor torch.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from moescope.capture.protocol import MAX_NAME
from moescope.capture.seam.launch import Launch, find_launch, started_with
from moescope.capture.seam.role import read_role
from moescope.capture.settings.access import encodable, read_text
from moescope.capture.settings.environment import CaptureSettings

NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where Kubernetes tells a pod its namespace; pods of two namespaces may have one host name."""
_UUID_LETTERS: Final = 12
"""As much of a device's UUID as tells the devices of a host apart: ``GPU-`` or ``MIG-`` and 8 digits."""


class DeploymentName(NamedTuple):
    """A name, and in words what it was made of."""

    name: str
    origin: str


class Place(NamedTuple):
    """Where a worker runs: its host's name, and the process that vLLM was started as, or None."""

    host: str
    launch: Launch | None


class Facts(NamedTuple):
    """What a name is made of: vLLM's configuration, which may be broken, the settings, the place."""

    vllm_config: Any
    settings: CaptureSettings
    place: Place

    @property
    def parallel(self) -> Any:
        """The configuration's parallel part."""
        return self.vllm_config.parallel_config


Maker = Callable[[Facts], DeploymentName | None]


def name_deployment(
    vllm_config: Any, settings: CaptureSettings, place: Place | None = None
) -> DeploymentName:
    """The deployment's name: the operator's, else the first that can be made.

    Args:
        vllm_config: the worker's; anything, where that is broken.
        settings: the capturer's.
        place: where the worker runs; this process, if it is None.
    """
    if settings.server:
        return DeploymentName(settings.server[:MAX_NAME], "MOESCOPE_SERVER")
    facts = Facts(vllm_config, settings, place or this_place())
    for make in (_of_address, _of_launch):
        with contextlib.suppress(Exception):
            found = make(facts)
            if found is not None and found.name:
                return DeploymentName(encodable(found.name)[:MAX_NAME], found.origin)
    return DeploymentName(facts.place.host[:MAX_NAME], "the host's name")


def this_place() -> Place:
    """Where this process runs."""
    return Place(this_host(), find_launch(os.getpid()))


def this_host(namespace_file: Path = NAMESPACE_FILE) -> str:
    """This host's name; in a pod of Kubernetes, that and the namespace."""
    host = ""
    with contextlib.suppress(OSError):
        host = encodable(socket.gethostname())
    host = host or "localhost"
    with contextlib.suppress(OSError, ValueError):
        namespace = read_text(namespace_file).strip()
        return f"{host}.{namespace}" if namespace else host
    return host


def name_of_server(place: Place) -> str | None:
    """The name of what an API server of vLLM starts on one host, or None where it is another program."""
    launch = place.launch
    address = launch.address() if launch is not None and launch.is_server else None
    return None if address is None else f"{place.host}:{address}"[:MAX_NAME]


def _of_address(facts: Facts) -> DeploymentName | None:
    """Of the address by which processes find each other, where vLLM was started more than once."""
    launched_as = facts.settings.surroundings.launched_as
    if launched_as and _through_ray(facts.parallel) and not _is_part(facts.parallel):
        return DeploymentName(launched_as, "the host and the API's port, through Ray")
    makers: tuple[Maker, ...] = (_of_ray, _of_torchrun, _of_nodes, _of_data_parallel)
    for make in makers:
        found = make(facts)
        if found is not None:
            role = facts.settings.role or read_role(facts.vllm_config)
            return DeploymentName(f"{found.name}:{role}", f"{found.origin}, and the role") if role else found
    return None


def _through_ray(parallel: Any) -> bool:
    through = (parallel.distributed_executor_backend, getattr(parallel, "data_parallel_backend", None))
    return "ray" in map(str, through) or bool(getattr(parallel, "use_ray", False))


def _is_part(parallel: Any) -> bool:
    """Whether DP ranks of other starts step with these, so that where this one was started means nothing."""
    if parallel.data_parallel_size == 1:
        return False
    balanced = (f"data_parallel_{mode}_lb" for mode in ("external", "hybrid"))
    if any(getattr(parallel, name, False) for name in balanced):
        return True
    whole = parallel.data_parallel_size_local == parallel.data_parallel_size
    return not whole and str(getattr(parallel, "data_parallel_backend", None)) != "ray"  # that has one start


def _of_ray(facts: Facts) -> DeploymentName | None:
    """Ray's workers are no children of vLLM's, and Ray chooses their devices."""
    if not _through_ray(facts.parallel):
        return None
    if facts.parallel.data_parallel_size > 1:
        return _data_parallel_address(facts)
    with contextlib.suppress(Exception):
        import ray  # type: ignore[import-not-found]

        return DeploymentName(str(ray.get_runtime_context().gcs_address), "the address of Ray's head")
    return DeploymentName(facts.place.host, "the host's name")


def _of_torchrun(facts: Facts) -> DeploymentName | None:
    """An external launcher's processes: those of one engine have consecutive numbers."""
    address, port = facts.settings.surroundings.master
    if str(facts.parallel.distributed_executor_backend) != "external_launcher" or not port:
        return None
    # With this launcher vLLM's world size is that over DP.
    engine = facts.settings.surroundings.rank // facts.parallel.world_size
    name = _joined(address, port, facts.place)
    return DeploymentName(f"{name}#{engine}" if engine else name, "torchrun's MASTER_ADDR and MASTER_PORT")


def _of_nodes(facts: Facts) -> DeploymentName | None:
    if getattr(facts.parallel, "nnodes", 1) == 1:
        return None
    name = _joined(facts.parallel.master_addr, facts.parallel.master_port, facts.place)
    return DeploymentName(name, "vLLM's master address")


def _of_data_parallel(facts: Facts) -> DeploymentName | None:
    """DP ranks of several starts: external and hybrid load balancing, headless nodes, offline scripts."""
    parallel = facts.parallel
    if parallel.data_parallel_size == 1:
        return None
    with contextlib.suppress(Exception):
        import vllm.envs as envs

        if parallel.data_parallel_size == envs.VLLM_DP_SIZE and envs.VLLM_DP_MASTER_PORT:
            name = _joined(envs.VLLM_DP_MASTER_IP, envs.VLLM_DP_MASTER_PORT, facts.place)
            return DeploymentName(name, "VLLM_DP_MASTER_IP and VLLM_DP_MASTER_PORT")
    whole = parallel.data_parallel_size_local == parallel.data_parallel_size
    if whole and not getattr(parallel, "enable_elastic_ep", False) and not _is_headless(facts.place.launch):
        return None  # all ranks are of this start, which then listens on no such port
    return _data_parallel_address(facts)


def _data_parallel_address(facts: Facts) -> DeploymentName:
    parallel = facts.parallel
    name = _joined(parallel.data_parallel_master_ip, parallel.data_parallel_rpc_port, facts.place)
    return DeploymentName(name, "vLLM's data parallel address")


def _is_headless(launch: Launch | None) -> bool:
    """Whether another node serves what this one computes; then this one's API port means nothing."""
    return launch is not None and launch.is_server and "headless" in launch.options()


def _of_launch(facts: Facts) -> DeploymentName | None:
    """Of the one process that started all workers, which are on this host."""
    place = facts.place
    name = name_of_server(place)
    if name is not None:
        return DeploymentName(_alone(name, facts), "the host and the API's port")
    # Another program may have several engines, and say nothing of a port.
    port = None if place.launch is None else place.launch.address()
    device = None
    with contextlib.suppress(Exception):
        device = _first_device(facts.parallel, place.launch)
    parts = {"the host's name": place.host, "port": port, "first device": device}
    known = {word: part for word, part in parts.items() if part}
    return DeploymentName(_alone(":".join(known.values()), facts), ", ".join(known))


def _alone(name: str, facts: Facts) -> str:
    """The DP ranks of a model without experts compute alone: vLLM makes each of them one of one."""
    with contextlib.suppress(Exception):
        if facts.parallel.data_parallel_index != facts.parallel.data_parallel_rank:
            return f"{name}#{facts.parallel.data_parallel_index}"
    return name


def _first_device(parallel: Any, launch: Launch | None) -> str | None:
    """The first device of the deployment, such as ``cuda2``, the same in each of its workers."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return None
    visible = current_platform.device_control_env_var
    if parallel.data_parallel_size == 1:
        try:
            first = str(current_platform.device_id_to_physical_device_id(0))
        except Exception:  # noqa: BLE001 - a UUID that this platform can't look up
            first = _first(started_with(os.getpid(), visible))
    else:  # earlier releases give each DP rank devices of its own
        first = _first(None if launch is None else started_with(launch.pid, visible))
    return f"{current_platform.device_type}{first}" if first.isdecimal() else first[:_UUID_LETTERS]


def _first(visible: str | None) -> str:
    return (visible or "0").split(",")[0].strip()


def _joined(address: Any, port: Any, place: Place) -> str:
    """Address and port; an address that means this host is replaced by the host's name."""
    text = str(address or "").strip().strip("[]")
    with contextlib.suppress(ValueError):
        number = ipaddress.ip_address(text)
        if number.is_loopback or number.is_unspecified:
            text = ""
    if not text or text == "localhost" or text.startswith("localhost."):
        text = place.host
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
