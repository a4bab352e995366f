"""Large arrays that are freed leave the process, in whatever order and thread they came and went."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Freeing 24 MiB raises glibc's own limit: 20 MiB are then of the heap, kept in use by what lies behind them.
PROGRAM = """
import os, sys
import numpy as np
if sys.argv[1] == "set":
    from moescope.service.serving.allocator import return_large_arrays
    assert return_large_arrays()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

np.ones(3 << 20)
before = resident()
large = np.ones(5 << 19)
small = np.ones(15_000)
del large
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed arrays")
def test_freed_arrays_leave_the_process() -> None:
    left = {
        way: int(subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, check=True).stdout)
        for way in ("set", "not")
    }
    assert left["set"] < 8
    assert left["not"] > 8, "glibc gives them back by itself: the setting is not needed any more"


# A few small objects that live on, in the heaps of threads that have ended.
SMALL = """
import os, sys, threading, time
from contextlib import nullcontext
from moescope.service.serving.allocator import trimming

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

kept = []
def answer():
    made = [bytes(600 + i % 2000) for i in range(20_000)]
    kept.extend(made[::200])

before = resident()
with trimming(0.02) if sys.argv[1] == "set" else nullcontext():
    for _ in range(4):
        threads = [threading.Thread(target=answer) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    until = time.monotonic() + (60 if sys.argv[1] == "set" else 0)
    while resident() - before > 24 and time.monotonic() < until:
        time.sleep(0.02)
    print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_what_many_small_objects_took_leaves_the_process() -> None:
    left = {
        way: int(subprocess.run([sys.executable, "-c", SMALL, way], capture_output=True, check=True).stdout)
        for way in ("set", "not")
    }
    assert left["set"] <= 24
    assert left["not"] > 24, "glibc gives it back by itself: the thread is not needed any more"
