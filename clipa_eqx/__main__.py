"""`python -m clipa_eqx` is the `clipa` command."""

import sys

from .cli import main


sys.exit(main())
