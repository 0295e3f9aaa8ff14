"""``python -m fleetlm`` is ``fleetlm``."""

from __future__ import annotations

import sys

from fleetlm.cli.main import main

sys.exit(main())
