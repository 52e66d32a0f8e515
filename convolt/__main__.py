"""`python -m convolt` is the command `convolt`."""

import sys

from convolt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
