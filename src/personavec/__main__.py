"""`python -m personavec`."""

import sys

from personavec.cli.main import main

sys.exit(main())
