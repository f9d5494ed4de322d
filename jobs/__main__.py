"""``python -m jobs``, the same as ``fo1``."""

import sys

from jobs.command.command_line import main

if __name__ == "__main__":
    sys.exit(main())
