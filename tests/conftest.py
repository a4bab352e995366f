"""For all tests."""

import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import certifi

# What is imported stays. Nobody looks through it for cycles of garbage, neither while it is made nor in any
# test: that took a sixth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    """All is imported."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """At its end the interpreter looks through everything; libraries complain of what is left."""
    gc.unfreeze()
    gc.enable()


# A shell that starts tests in the background ignores SIGINT for them and for all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A service that is told no store keeps one in the user's data folder: no test may write there.
_DATA = tempfile.TemporaryDirectory(prefix="moescope-test-data-")
os.environ["XDG_DATA_HOME"] = _DATA.name

# A client of httpx reads the certificates of all public authorities, which takes longer than ten requests.
# Here it reads one: no test asks an address that a public authority vouches for.
_END = "-----END CERTIFICATE-----\n"
_AUTHORITY = Path(_DATA.name) / "authority.pem"
_AUTHORITY.write_text(Path(certifi.where()).read_text().partition(_END)[0] + _END)
os.environ["SSL_CERT_FILE"] = str(_AUTHORITY)

# Torch's threads of one operation wait for each other by spinning, on cores that others need: parts of
# `make test` run side by side, and servers beside them. It is read when torch is imported, which is later.
# Machines with GPUs have cores enough.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
