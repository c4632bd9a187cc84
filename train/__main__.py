"""`python -m train` is the command `twinformer`."""

import sys

from train.cli import main

if __name__ == "__main__":
    sys.exit(main())
