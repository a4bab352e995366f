"""``python -m moescope.service`` is ``moescope``."""

import sys

from moescope.service.cli import main

sys.exit(main())
