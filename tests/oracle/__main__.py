"""Many fleets: ``python -m tests.oracle --fleets 500 --seed 1`` compares the service with the oracle."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.oracle.checking import Check
from tests.oracle.delivery import make_story
from tests.oracle.driving import running_box
from tests.oracle.report import repro
from tests.oracle.traffic import BEGIN_S


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--fleets", type=int, default=40, help="how many fleets (default 40)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first fleet; the others' follow it (default 0)"
    )
    arguments = parser.parse_args()
    begun, compared, wrong = time.monotonic(), 0, Counter[int]()
    for seed in range(arguments.seed, arguments.seed + arguments.fleets):
        story = make_story(seed)
        if not story.arrivals:
            continue
        with running_box(BEGIN_S) as box:
            check = Check(story, box)
            check.run()
        compared += check.compared
        if check.found:
            wrong[seed] = len(check.found)
            print(repro(story, check.found))
        if (seed - arguments.seed + 1) % 10 == 0:
            print(
                f"{seed - arguments.seed + 1} fleets, {compared} answers, {len(wrong)} fleets differ",
                flush=True,
            )
    print(f"{arguments.fleets} fleets, {compared} answers compared in {time.monotonic() - begun:.0f} s")
    print(f"fleets that differ: {dict(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
