"""`python -m nbsnn`."""

import sys

from nbsnn.cli import main

sys.exit(main())
