"""`python -m fusenotify`."""

import sys

from fusenotify.cli import main

if __name__ == "__main__":
    sys.exit(main())
