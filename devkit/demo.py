"""``make demo``: a real vLLM with two data-parallel ranks and expert parallelism on this machine's CPUs,
observed by moescope.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from rich.console import Console

from devkit.demo_tables import ConservationError, Readings, Service, check_conservation, render
from devkit.processes import ProcessGroup, free_port, port_is_free
from devkit.root_cause import explain
from devkit.screen import Show, starting, watching
from devkit.simulated import start_simulation, watch_simulation
from devkit.traffic import Traffic, TrafficError
from devkit.vllm_server import VllmOptions, VllmServer, VllmStartError

FOLDER: Final = Path(".demo")
SERVER: Final = "demo"
DEFAULT_PORT: Final = 9890
INTERVAL: Final = 0.5
REFRESH: Final = 1.0


class DemoError(RuntimeError):
    """What a user can read and act on."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make demo ARGS=...",
        description="Serve a tiny random MoE model with a real vLLM on CPUs (two data-parallel ranks, expert "
        "parallelism), send it completions and show how balanced its experts are.",
    )
    add = parser.add_argument
    add("--requests", type=_positive, default=200, metavar="N", help="completions (default: %(default)s)")
    add("--exit", action="store_true", help="check and end after them, instead of trickling on until Ctrl-C")
    add("--concurrency", type=_positive, default=8, metavar="N", help="at a time (default: %(default)s)")
    add("--max-tokens", type=_positive, default=32, metavar="N", help="longest answer (default: %(default)s)")
    add("--port", type=int, default=0, help=f"of the side service (default: {DEFAULT_PORT}, or a free one)")
    add("--vllm-port", type=int, default=0, help="of vLLM (default: a free one)")
    add("--simulate", action="store_true", help="no vLLM: 32 simulated ranks, 58 layers of 256 experts")
    add("--keep-logs", action="store_true", help=f"keep {FOLDER}/*.log (always kept after an error)")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def choose_port(asked: int, preferred: int, flag: str) -> int:
    """The port asked for, else the preferred one if it is free, else a free one."""
    if asked and not port_is_free(asked):
        raise DemoError(
            f"port {asked} is taken: choose another with {flag}, or leave it out to get a free one"
        )
    if asked:
        return asked
    return preferred if preferred and port_is_free(preferred) else free_port()


def run(options: argparse.Namespace, console: Console) -> None:
    """The demo, from the checkpoint to the last table; everything is stopped when it returns or raises."""
    port = choose_port(options.port, DEFAULT_PORT, "--port")
    if options.simulate:
        run_simulated(options, port, console)
        return
    # Not at the top of the file: this needs torch, which the environment of a simulation hasn't.
    from devkit.tiny_moe import ensure_checkpoint

    vllm_port = choose_port(options.vllm_port, 0, "--vllm-port")
    model = ensure_checkpoint(FOLDER / "model")
    running = ExitStack()
    try:
        service = start_service(running, port, console)
        vllm = start_vllm(running, model, vllm_port, service.url, console)
        show_addresses(service, console)
        console.print(f"  {'vLLM':9}{vllm.url}/docs")
        traffic = Traffic(vllm.url, concurrency=options.concurrency, max_tokens=options.max_tokens)
        running.callback(traffic.close)
        drive(options, traffic, service, vllm, console)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # nothing shall interrupt the clean-up half-way
            signal.signal(number, signal.SIG_IGN)
        console.print("stopping vLLM and the side service")
        running.close()


def run_simulated(options: argparse.Namespace, port: int, console: Console) -> None:
    """The demo without vLLM: frames of a simulated fleet; ends by itself only with ``--exit``."""
    with ExitStack() as running:
        store = running.enter_context(TemporaryDirectory(prefix="moescope-demo-"))
        service = start_service(running, port, console, ("--store", store))
        simulation = start_simulation(service.url, SERVER, FOLDER / "simulate.log")
        running.callback(simulation.stop)
        show_addresses(service, console)
        if not watch_simulation(service, simulation, console, seconds=10.0 if options.exit else None):
            raise DemoError(explain(simulation.log, "the simulation ended"))


def start_service(
    stack: ExitStack, port: int, console: Console, flags: Sequence[str] = ("--no-store",)
) -> Service:
    """``moescope serve`` as a process of its own, ready."""
    log = FOLDER / "service.log"
    command = [str(Path(sys.executable).with_name("moescope")), "serve", "--port", str(port), *flags]
    group = ProcessGroup(command, log, os.environ)
    stack.callback(group.stop)
    service = Service(f"http://127.0.0.1:{port}", SERVER)
    stack.callback(service.close)
    begin = time.monotonic()
    while not service.healthy():
        if group.exit_code() is not None or time.monotonic() - begin > 30:
            raise DemoError(explain(log, "the side service did not start"))
        time.sleep(0.1)
    console.print(f"side service ready after {time.monotonic() - begin:.1f} s")
    return service


def start_vllm(stack: ExitStack, model: Path, port: int, endpoint: str, console: Console) -> VllmServer:
    """A real ``vllm serve`` with moescope's worker class, ready."""
    options = VllmOptions(
        model=model,
        port=port,
        data_parallel_size=2,
        expert_parallel=True,
        worker_class="moescope.capture.worker.RoutingWorker",
        extra_args=("--enable-prompt-tokens-details",),
        env={
            "MOESCOPE_ENDPOINT": endpoint,
            "MOESCOPE_INTERVAL": str(INTERVAL),
            "MOESCOPE_SERVER": SERVER,
        },
    )
    with starting(console) as on_progress:
        vllm = VllmServer(options, log=FOLDER / "vllm.log", on_progress=on_progress)
        stack.callback(vllm.stop)
        vllm.start()
    console.print(f"vLLM ready after {vllm.started_after:.1f} s (2 data-parallel ranks, expert parallelism)")
    return vllm


def show_addresses(service: Service, console: Console) -> None:
    """What to open, the page first."""
    console.print(f"open {service.url}/ in a browser: the page fills as tokens are computed")
    for name, path in (("page", "/"), ("metrics", "/metrics"), ("HTTP API", "/docs")):
        if service.serves(path):
            console.print(f"  {name:9}{service.url}{path}")


def drive(
    options: argparse.Namespace, traffic: Traffic, service: Service, vllm: VllmServer, console: Console
) -> None:
    """Send the requests, show the table while they run, then check and end, or trickle on."""
    begin = time.monotonic()
    traffic.submit(options.requests)
    try:
        with watching(console) as show:
            while pending := traffic.pending():
                show(service.read(), options.requests - pending, options.requests)
                time.sleep(0.2 if pending < options.concurrency else REFRESH)
            seconds = time.monotonic() - begin
            if not options.exit:
                trickle(traffic, service, show)
    except TrafficError as error:
        state = "is running" if vllm.exit_code() is None else f"ended with status {vllm.exit_code()}"
        raise DemoError(explain(vllm.log, f"{error}\nvLLM {state}")) from error
    readings = settled(service, traffic.tally().computed_tokens)
    console.print(render(readings))
    console.print(f"{options.requests} completions in {seconds:.1f} s")
    for line in check_conservation(readings, traffic.tally().computed_tokens):
        console.print(line, highlight=False)


def trickle(traffic: Traffic, service: Service, show: Show) -> None:
    """A request a second until Ctrl-C."""
    while True:
        if not traffic.pending():
            traffic.submit()
        show(service.read(), traffic.tally().requests, None)
        time.sleep(REFRESH)


def settled(service: Service, computed_tokens: int) -> Readings:
    """The readings once the last snapshot has come in, or those after ten seconds."""
    deadline = time.monotonic() + 10
    while True:
        readings = service.read()
        if readings is not None and readings.histogram["tokens"] >= computed_tokens:
            return readings
        if time.monotonic() > deadline:
            if readings is None:
                raise DemoError("the service has no counts: see the logs")
            return readings
        time.sleep(INTERVAL / 2)


def main() -> int:
    """Run; the exit status."""
    options = parse()
    console = Console(width=None if sys.stdout.isatty() else 110)
    FOLDER.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(options, console)
    except KeyboardInterrupt:
        console.print("stopped")
    except (DemoError, VllmStartError, ConservationError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    if not options.keep_logs:
        for log in FOLDER.glob("*.log"):
            log.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
