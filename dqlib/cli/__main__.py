"""``python -m dqlib.cli``."""

import sys

from dqlib.cli import main

sys.exit(main())
