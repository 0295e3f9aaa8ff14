"""`fleetlm cookie`: print a new cookie, which nobody can guess."""

from __future__ import annotations

import secrets

COOKIE_BYTES = 32
"""Random bytes: 256 bits, as much as the keys that are derived from them have."""


def run() -> int:
    """Print a cookie on a line of its own. Returns the exit code."""
    print(secrets.token_urlsafe(COOKIE_BYTES))
    return 0
