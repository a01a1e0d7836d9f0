"""`python -m anchornet_ext` is the command `anchornet`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
