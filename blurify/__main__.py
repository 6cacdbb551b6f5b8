"""`python -m blurify`."""

import sys

from blurify.cli import main

if __name__ == "__main__":
    sys.exit(main())
