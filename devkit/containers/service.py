"""What is tried of the service's image, and of the one that adds the plugin to vLLM's."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Final

import httpx

from devkit.containers.engine import Engine
from devkit.processes import free_port

IMAGE: Final = "moescope:0.1.0"
VLLM: Final = "moescope-vllm:0.1.0"
_HARDENED: Final = (
    *("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges"),
    *("--user=10001:10001", "--tmpfs=/tmp"),
)
_SIMULATED: Final = ("--ranks", "4", "--layers", "2", "--experts", "16", "--top-k", "4", "--interval", "0.2")

Result = tuple[str, bool, str]
"""What was tried, whether it was as it should be, and what was seen."""


def service(engine: Engine) -> Iterator[Result]:
    """The service as a user, read-only, without capabilities, with a volume and a token."""
    token, port = secrets.token_hex(16), free_port()
    start = (
        *("run", "--detach", "--name", "service", *_HARDENED, "--volume", "service-data:/data"),
        *("--env", f"MOESCOPE_TOKEN={token}", "--publish", f"127.0.0.1:{port}:9890", IMAGE),
    )
    url = f"http://127.0.0.1:{port}"
    engine.podman(*start)
    took = _ready(engine, url)
    yield "starts read-only, without capabilities, as a user", True, f"ready after {took:.1f} s"
    user = engine.podman("exec", "service", "id", "-u")
    status = engine.podman("exec", "service", "cat", "/proc/1/status")
    bare = "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
    yield "user, capabilities, privileges", user == "10001" and bare, f"uid {user}"
    wrote = engine.call("podman", "exec", "service", "touch", "/x")
    yield "its root can't be written", "Read-only" in wrote.stderr, wrote.stderr.strip()
    codes = [httpx.get(f"{url}{path}", timeout=60).status_code for path in ("/readyz", "/v1/ranks")]
    yield "probes are open, all else needs the token", codes == [200, 401], f"{codes}"
    check = engine.call("podman", "healthcheck", "run", "service")
    yield "HEALTHCHECK of Docker's format", check.returncode == 0, f"exit code {check.returncode}"
    yield from _kept(engine, start, url, token)


def _kept(engine: Engine, start: tuple[str, ...], url: str, token: str) -> Iterator[Result]:
    """Counts survive the container, because they are in the volume."""
    engine.podman(
        *("run", "--rm", "--network", "host", *_HARDENED, "--env", f"MOESCOPE_TOKEN={token}", IMAGE),
        *("simulate", "--url", url, *_SIMULATED, "--duration", "3"),
    )
    before = _tokens(url, token)
    begin = time.monotonic()
    engine.podman("stop", "--time", "20", "service")
    took = time.monotonic() - begin
    code = engine.podman("inspect", "--format", "{{.State.ExitCode}}", "service")
    yield "SIGTERM ends it in order", code == "0", f"exit code {code} after {took:.1f} s"
    engine.podman("rm", "service")
    engine.podman(*start)
    _ready(engine, url)
    after = _tokens(url, token)
    yield "a new container has the counts of the old one", before == after > 0, f"{before} and {after} tokens"
    engine.podman("rm", "--force", "--time", "20", "service")
    engine.podman("volume", "rm", "service-data")


def formats(engine: Engine, oci: str) -> Iterator[Result]:
    """Where a health check is, by the image's format."""
    for name, tag, wanted in (("Docker's", IMAGE, True), ("OCI's", oci, False)):
        found = json.loads(engine.podman("inspect", "--format", "{{json .HealthCheck}}", tag) or "null")
        yield f"{name} format has the HEALTHCHECK: {wanted}", bool(found) is wanted, ""
    port = free_port()
    command = "python -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:9890/readyz\", timeout=2)'"
    engine.podman(
        *("run", "--detach", "--name", "oci", *_HARDENED, "--env", "MOESCOPE_STORE=none"),
        *("--env", f"MOESCOPE_TOKEN={secrets.token_hex(16)}", "--publish", f"127.0.0.1:{port}:9890"),
        *("--health-cmd", command, oci),
    )
    _ready(engine, f"http://127.0.0.1:{port}", "oci")
    check = engine.call("podman", "healthcheck", "run", "oci")
    yield "OCI's format with --health-cmd", check.returncode == 0, f"exit code {check.returncode}"
    engine.podman("rm", "--force", "--time", "5", "oci")


def plugin(engine: Engine) -> Iterator[Result]:
    """What an init container copies, and the image that adds the plugin to vLLM's."""
    ask = (
        "from importlib.metadata import entry_points as e; import moescope.capture as c; "
        "print([p.value for p in e(group='vllm.general_plugins') if p.name == 'moescope'], c.__file__)"
    )
    engine.podman(
        *("run", "--rm", "--read-only", "--user=10001:10001", "--cap-drop=all", "--entrypoint", "cp"),
        *("--volume", "plugin:/plugin:U", IMAGE, "-r", "/opt/moescope-plugin/.", "/plugin/"),
    )
    base = engine.podman(
        *("run", "--rm", "--volume", "plugin:/opt/moescope:ro", "--env", "PYTHONPATH=/opt/moescope"),
        *("--entrypoint", "python3", "plain-vllm", "-c", ask),
    )
    yield "a copied plugin is found in vLLM's image", "['moescope.capture.attach" in base, base
    engine.podman("volume", "rm", "plugin")
    built = engine.podman("run", "--rm", "--entrypoint", "python3", VLLM, "-c", ask)
    yield "Dockerfile.vllm adds the plugin", "['moescope.capture.attach" in built, built


def _ready(engine: Engine, url: str, name: str = "service") -> float:
    """Seconds until it answers."""
    begin = time.monotonic()
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=10).status_code == 200:
                return time.monotonic() - begin
        except httpx.TransportError:
            pass
        if time.monotonic() - begin > 120:
            raise TimeoutError(engine.call("podman", "logs", name).stderr[-2000:])
        time.sleep(0.1)


def _tokens(url: str, token: str) -> int:
    answer = httpx.get(f"{url}/v1/ranks", headers={"Authorization": f"Bearer {token}"}, timeout=60).json()
    return sum(rank["tokens"] for found in answer["deployments"] for rank in found["dp_ranks"])
