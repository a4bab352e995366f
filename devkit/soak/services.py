"""Several services on one ClickHouse: generated histories against the truth."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Final

from devkit.soak.gate import HISTORIES, Options, Outcome
from tests.service.store.clickhouse.histories import play
from tests.service.store.clickhouse.laws import BrokenLawError

TOGETHER: Final = 20
"""Histories that share the services, and what befalls these: each costs less than one alone."""


def services(options: Options) -> Outcome:
    """Histories of workers whose frames come to three services, which are killed and cut off.

    In a third of them the store ages within minutes, in a third half of the workers start up to 14 times.
    """
    command = [sys.executable, "-m", "tests.service.store.clickhouse.server", str(options.folder)]
    plays = max(3, options.cases(options.histories) // TOGETHER)
    seeds = range(options.first_seed, options.first_seed + plays)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"clickhouse://127.0.0.1:{server.stdout.readline().strip()}"
        try:
            began = time.monotonic()
            for number, seed in enumerate(seeds, 1):
                play(url, seed, TOGETHER)
                done, took = f"{number * TOGETHER:,} of {plays * TOGETHER:,}", time.monotonic() - began
                print(f"   seed {seed}: {done} histories in {took:.0f} s", flush=True)
        except BrokenLawError as error:
            return Outcome(False, f"{error} (again: --first-seed {seed} --histories {TOGETHER})")
        finally:
            server.kill()
    played = plays * TOGETHER
    fewer = "" if played >= HISTORIES else f" of the {HISTORIES:,} that are asked for"
    return Outcome(
        played >= HISTORIES or options.quick,
        f"{played} histories (seeds {seeds[0]} to {seeds[-1]}){fewer}: three services said the same, and "
        "what was true, before and after all were killed",
    )
