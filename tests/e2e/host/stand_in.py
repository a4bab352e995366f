"""Answers like ``child.py``, without an engine: for tests of ``lab.py``.

The fault "hangs" gets no answer and "dies" ends the process. Every other one is answered with the process's
id; "survives" is logged with a traceback before.
"""

from __future__ import annotations

import contextlib
import logging
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
                case "survives":
                    try:
                        raise ValueError("survived")
                    except ValueError:
                        logging.exception("going on")
                    tests.send({"pid": os.getpid()})
                case _:
                    tests.send({"pid": os.getpid()})


if __name__ == "__main__":
    main(*sys.argv[1:])
