"""The command line: ``fleetlm start | remote | top | drain | health | doctor | cookie | demo``.

Each command imports its modules only when it runs, so that ``fleetlm remote`` starts fast. ``fleetlm health``
runs every few seconds in every container: its arguments are read by hand, since the import of `argparse`
takes as long as the start of Python.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # As `typing` has it; importing that takes longer than the rest of `fleetlm health`.
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; for wrong usage argparse itself exits with 2."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["health"]:
        from fleetlm.cli import health  # noqa: PLC0415

        asked = health.parse(given[1:])
        if asked is not None:
            return health.run(asked)
    return _run_parsed(given)


def _run_parsed(given: list[str]) -> int:
    """Run one command, with its arguments read by `argparse`."""
    from fleetlm.cli.arguments import parser  # noqa: PLC0415
    from fleetlm.cli.early import end_on_sigterm, restore_sigterm  # noqa: PLC0415

    end_on_sigterm()
    top = parser()
    options = top.parse_args(given)
    try:
        return _run(top, options)
    except BrokenPipeError:
        # The reader of stdout has closed it. Without this, Python reports the error once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        restore_sigterm()


def _run(top: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Run the command that was chosen; without one, print the help and return 2."""
    if options.version:
        import fleetlm  # noqa: PLC0415

        print(f"fleetlm {fleetlm.__version__} (Python {sys.version.split()[0]})")
        return 0
    match options.command:
        case "start":
            from fleetlm.cli import start  # noqa: PLC0415

            return start.run(options.program, options.log_level, options.drain)
        case "remote":
            return _run_remote(options)
        case "doctor":
            from fleetlm.cli.doctor import gather  # noqa: PLC0415

            return gather.main(node=options.node, as_json=options.json)
        case "top":
            from fleetlm.cli.top import command  # noqa: PLC0415

            return command.run(
                node=options.node, interval_s=options.interval, once=options.once, as_json=options.json
            )
        case "drain":
            from fleetlm.remote import drain  # noqa: PLC0415

            return drain.drain(
                node=options.node, timeout_s=options.timeout, reason=options.reason, wait=options.wait
            )
        case "undrain":
            from fleetlm.remote import drain  # noqa: PLC0415

            return drain.undrain(node=options.node)
        case "health":  # `health.parse` has left it to argparse: --help, or a mistake.
            top.error("--min-nodes is for --ready")
        case "cookie":
            from fleetlm.cli import cookie  # noqa: PLC0415

            return cookie.run()
        case "demo":
            from fleetlm.cli.demo import story  # noqa: PLC0415

            return story.main()
    top.print_help()
    return 2


def _run_remote(options: argparse.Namespace) -> int:
    """Open a shell if there is neither an expression nor piped input; else evaluate once."""
    source = options.source
    if source is None and sys.stdin.isatty() and not options.json:
        from fleetlm.remote import shell  # noqa: PLC0415

        return shell.run(node=options.node, timeout_s=options.timeout)
    if source is None or source == "-":
        source = sys.stdin.read()
    if not source.strip():
        print(
            'fleetlm remote: no expression. Write for example: fleetlm remote "Node.list()". A shell needs a '
            "terminal as stdin (with Docker: docker exec -it)",
            file=sys.stderr,
        )
        return 2
    from fleetlm.cli.arguments import DEFAULT_TIMEOUT_S  # noqa: PLC0415
    from fleetlm.remote import client  # noqa: PLC0415

    return client.run(
        source, node=options.node, timeout_s=options.timeout or DEFAULT_TIMEOUT_S, as_json=options.json
    )
