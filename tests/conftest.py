"""For all tests."""

import os
import shutil
import signal

# A shell that starts tests in the background ignores SIGINT for them and for all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Torch's threads of one operation wait for each other by spinning, on cores that others need: two parts of
# `make test` run at a time, and servers beside them. It is read when torch is imported, which is later.
# Machines with GPUs have cores enough.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
