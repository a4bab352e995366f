"""Run the gates that take long: ``python -m devkit.soak``, or ``make soak``.

Prints a table and writes it into docs/gates.md. Rows of gates that were not run stay as they are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Final

from devkit.soak import attacks, bad_input, faults, giving_up, hunt, load, memory, network, services, stall
from devkit.soak.document import write
from devkit.soak.gate import FIRST_SEED, HISTORIES, Gate, Options, Outcome

GATES: Final = (
    Gate(
        "load",
        "0 lost, ingest p99 <= 50 ms, scrape p99 <= 250 ms, memory <= +1 MiB/min",
        load.load,
    ),
    Gate("ranks", "256 ranks at 1 Hz: half a core, 500 MiB", load.large),
    Gate("kill", "50 x kill -9: nothing lost or doubled, ready in 5 s", faults.kills),
    Gate("damage", "100 damaged files: starts, says what is lost, ready in 5 s", faults.damage),
    Gate(
        "services",
        f"{HISTORIES:,} histories of three services on one ClickHouse: alike and true, also after all are "
        "killed",
        services.services,
    ),
    Gate("disk-full", "says so, serves on, recovers", faults.full_disk),
    Gate("shutdown", "ends within 5 s under load, nothing lost", faults.shutdown),
    Gate("slow-clients", "an honest scrape within 1 s among 500 half-open connections", faults.slow_clients),
    Gate(
        "giving-up",
        f"clients who don't wait for answers of {giving_up.RANKS} ranks: at most {giving_up.MOST_MIB} MiB, "
        f"{giving_up.GROWTH_MIB} kept; an honest scrape within {giving_up.HONEST_S:g} s",
        giving_up.giving_up,
    ),
    Gate(
        "stall",
        f"beside any one request /healthz within {stall.HEALTH_MS:.0f} ms, ingest of others within "
        f"{stall.INGEST_MS:.0f} ms",
        stall.stall,
    ),
    Gate(
        "memory",
        f"{memory.CLIENTS} questions and downloads at once: at most {memory.OVER_MIB} MiB over the idle "
        f"service, {memory.BACK_MIB} after a minute",
        memory.memory,
    ),
    Gate(
        "hunt",
        f"no searched body takes over {hunt.MOST_PER_BYTE:.0f} bytes for each byte sent, beyond "
        f"{hunt.ALLOWANCE >> 20} MiB, nor {hunt.MOST_CPU_S:g} s",
        hunt.search,
    ),
    Gate("attacks", "expensive bodies beside a feeder, and kill -9 in each: 0 lost", attacks.attacks),
    Gate(
        "network",
        "a step's hooks never wait: p99 <= 1 ms in every fault; counts and drops exact; "
        "at most 4 of 16 come back within any 250 ms after 60 s of partition and a refusal, 5 after 6 s",
        network.faults,
    ),
    Gate(
        "bad-input",
        ">= 10,000 cases: no 500, bounded memory, every refusal names its field",
        bad_input.generated,
    ),
    Gate("openapi", "schemathesis finds nothing", bad_input.schema),
    Gate("decoder", "atheris finds nothing", bad_input.decoder),
)


def main() -> int:
    """Run gates; returns 1 if one fell short, else 0."""
    parser = argparse.ArgumentParser(
        prog="devkit.soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = ", ".join(gate.name for gate in GATES)
    parser.add_argument("gates", nargs="*", help=f"which ones, all if absent: {names}")
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the gate of load [600]")
    parser.add_argument(
        "--histories",
        type=int,
        default=HISTORIES,
        help=f"length of the gate of several services [{HISTORIES}]",
    )
    parser.add_argument(
        "--first-seed",
        type=int,
        default=FIRST_SEED,
        help="seed with which the gate of several services begins, to play one again or to go\n"
        f"on from it; each seed makes {services.TOGETHER} histories [{FIRST_SEED}]",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, and nothing is written")
    arguments = parser.parse_args()
    unknown = set(arguments.gates) - {gate.name for gate in GATES}
    if unknown:
        parser.error(f"no such gate: {', '.join(sorted(unknown))}; there are {names}")
    seconds = min(arguments.seconds, 30.0) if arguments.quick else arguments.seconds
    outcomes: list[tuple[Gate, Outcome]] = []
    with tempfile.TemporaryDirectory(prefix="moescope-soak-") as folder:
        for gate in GATES:
            if arguments.gates and gate.name not in arguments.gates:
                continue
            place = Path(folder) / gate.name
            place.mkdir()
            print(f"== {gate.name}: {gate.ask}", flush=True)
            began = time.monotonic()
            try:
                outcome = gate.run(
                    Options(seconds, arguments.quick, place, arguments.histories, arguments.first_seed)
                )
            except Exception as error:  # noqa: BLE001 one gate's failure is its outcome
                traceback.print_exc()
                outcome = Outcome(False, f"failed: {error!r}"[:500])
            verdict = "reached" if outcome.passed else "NOT REACHED"
            print(f"   {verdict} ({time.monotonic() - began:.0f} s): {outcome.figures}", flush=True)
            outcomes.append((gate, outcome))
    if not arguments.quick:
        write(outcomes)
    return 0 if all(outcome.passed for _, outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
