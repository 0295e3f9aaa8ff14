"""The exit codes of the command line: what a supervisor of the process, or a script, is told."""

from __future__ import annotations

OK, FAILED = 0, 1
USAGE = 2
"""The arguments cannot be used, as `argparse` says it."""
EX_CUT = 75
"""A node left, and something that it had begun was cut. Source: sysexits.h, EX_TEMPFAIL: no real error."""
EX_CONFIG = 78
"""A setting cannot be used, so that starting again does not help. Source: sysexits.h."""
