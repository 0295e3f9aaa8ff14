"""``python -m fleetlm`` runs the same command line as ``fleetlm``."""

from __future__ import annotations

import sys

from fleetlm.cli.main import main

sys.exit(main())
