"""The command line of `python -m onp.attack`."""

import sys

from onp.attack import main

sys.exit(main())
