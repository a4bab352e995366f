"""For all tests."""

import signal

# A shell that starts tests in the background ignores SIGINT for them and for all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
