"""``python -m penstock.replica``: what the process orchestrator starts."""

import sys

from penstock.replica import main

sys.exit(main())
