"""Answers like ``child.py``, without an engine: for tests of ``lab.py``.

The fault "hangs" gets no answer, "dies" ends the process, every other one is answered with the process's id.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from multiprocessing.connection import Connection


def main(_model: str, connection: str) -> None:
    with Connection(int(connection)) as tests, contextlib.suppress(EOFError):
        tests.send({"capture_at_start": False, "plain": []})
        while True:
            match tests.recv():
                case "hangs":
                    threading.Event().wait()
                case "dies":
                    print("dying", flush=True)
                    os._exit(1)
                case _:
                    tests.send({"pid": os.getpid()})


if __name__ == "__main__":
    main(*sys.argv[1:])
