"""``python -m fleetlm`` runs the same command line as ``fleetlm``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; SIGTERM counts before its modules are imported. Returns the exit code."""
    if sys.argv[1:2] != ["health"]:  # It ends at once, and is run too often for the import of `signal`.
        from fleetlm.cli.early import end_on_sigterm  # noqa: PLC0415

        end_on_sigterm()
    from fleetlm.cli.main import main as run  # noqa: PLC0415

    return run()


if __name__ == "__main__":
    sys.exit(main())
