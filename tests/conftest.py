"""For all tests."""

import os
import signal
import tempfile

# A shell that starts tests in the background ignores SIGINT for them and for all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A service that is told no store keeps one in the user's data folder: no test may write there.
_DATA = tempfile.TemporaryDirectory(prefix="moescope-test-data-")
os.environ["XDG_DATA_HOME"] = _DATA.name
