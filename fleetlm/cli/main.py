"""The command line: ``fleetlm start | remote | doctor | demo``.

Each command imports what it needs when it runs, so that ``fleetlm remote`` answers at once.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence

DESCRIPTION = """\
Worker processes become one cluster: they find each other by one DNS name.

  fleetlm demo                        watch a cluster form on this machine
  fleetlm start worker:main           run main(node) of worker.py in a node
  fleetlm remote "Node.list()"        ask a running node
  fleetlm doctor                      say why a node is alone, does not start, or flaps
"""
VARIABLES = """\
environment:
  DNS_CLUSTER_QUERY           name that resolves to the peers' addresses; unset: no clustering
  DNS_CLUSTER_NODE_BASENAME   the part of node names before the @ (fleetlm)
  DNS_POLL_INTERVAL_MS        milliseconds between two lookups (5000)
  FLEETLM_NODE_IP             this node's address, where detection is wrong
  FLEETLM_NODE_PORT           the port of every node of the cluster (4370)
  FLEETLM_COOKIE, FLEETLM_COOKIE_FILE
                              the cluster's secret: encrypts, and keeps others out
  FLEETLM_CLUSTER             id of the cluster: nodes of another one are refused
  FLEETLM_NODE_TIMEOUT_MS     silence after which a peer is down (8000)
  FLEETLM_REMOTE              off: no remote shell (on)
  FLEETLM_DEBUG               1: messages that stay on a node go through the codec too (0)
  FLEETLM_DNS_SERVER          ip[:port] of the name server to ask
"""
START = """\
Runs a node in the foreground until SIGTERM or Ctrl-C; then it finishes calls in flight, says goodbye
and exits 0. A second signal ends it at once.

  async def main(node): ...     is the program; the node stops when it returns, exit code 0
  def main(node): ...           sets up (spawns processes, say); the node serves on

MODULE is looked for in the current folder, then on PYTHONPATH. Without it the node only serves.

  fleetlm start
  DNS_CLUSTER_QUERY=worker fleetlm start worker:main

exit codes: 0 left in order, 1 the program raised or the node could not start, 2 no such MODULE:FUNCTION,
78 a setting cannot be used, 130 or 143 a second signal
"""
REMOTE = """\
Evaluates Python inside a node of this machine, and prints what it printed and its result. Awaitables
are awaited, `await` works at the top level, statements work as well. Without EXPR: a shell.

  fleetlm remote "Node.list()"                  connected nodes; also Node.list("known")
  fleetlm remote "Node.info()"                  this node, with its connection table
  fleetlm remote "Node.ping('fleetlm@10.0.0.7')"
  fleetlm remote "Process.list()"
  fleetlm remote --json "Node.info()" | jq .value.peers
  fleetlm remote "await node.call('sessions', 'size')"
  fleetlm remote - < script.py                  the source from stdin
  fleetlm remote                                a shell: history, completion, Ctrl-D leaves

In scope: Node, Process, Supervisor, Group, Registry, node (the fleetlm.Node), fleetlm, asyncio.
EXPR runs on the node's event loop: one that blocks (time.sleep, a long computation) blocks that node
for as long; write `await node.run_blocking(...)` for such work. Only the node's own user and root may
connect.

exit codes: 0 done, 1 it raised (traceback on stderr), 2 usage, or several nodes and no --node, 3 no node
to connect to, or it ended meanwhile, 4 no result in time (the evaluation is cancelled), 5 not allowed
"""
DOCTOR = """\
Checks the settings, the DNS name and what it resolves to, this machine's own address, the port, the
cookie, and each peer; asks the node that runs here, if one does. Says what is wrong and what to do.

  fleetlm doctor
  docker compose exec worker fleetlm doctor
  fleetlm doctor --json

exit codes: 0 nothing fails, 1 something does, 2 several nodes and no --node, 78 a setting cannot be used
"""
DEMO = """\
Starts a DNS server and several nodes on 127.0.0.N of this machine, and shows how they find each other,
send messages, notice a death and survive a DNS outage. Ends by itself, in less than 20 seconds.
"""
DEFAULT_TIMEOUT_S = 10.0


def seconds(text: str) -> float:
    """A positive, finite number of seconds. Raises: argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="fleetlm", description=DESCRIPTION, epilog=VARIABLES, formatter_class=raw
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, brief: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=brief, description=text, formatter_class=raw, allow_abbrev=False
        )

    start = command("start", "run a node in the foreground", START)
    start.add_argument("program", nargs="?", metavar="MODULE:FUNCTION")
    start.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    remote = command("remote", "evaluate Python in a running node, or open a shell in it", REMOTE)
    remote.add_argument("source", nargs="?", metavar="EXPR", help="- reads it from stdin")
    remote.add_argument("--json", action="store_true", help="print one JSON object")
    remote.add_argument("--node", metavar="NAME", help="which, where several run here")
    remote.add_argument(
        "--timeout",
        type=seconds,
        metavar="S",
        help=f"seconds until the evaluation is cancelled ({DEFAULT_TIMEOUT_S:g}; in a shell: none)",
    )
    doctor = command("doctor", "say what is wrong with a cluster, and what to do", DOCTOR)
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument("--node", metavar="NAME", help="which, where several run here")
    command("demo", "watch a cluster form on this machine", DEMO)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; argparse's own exit is 2 for wrong usage."""
    top = parser()
    options = top.parse_args(argv)
    try:
        return _run(top, options)
    except BrokenPipeError:
        # Whoever read our output has enough of it; Python must not complain of that at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _run(top: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.version:
        import fleetlm  # noqa: PLC0415

        print(f"fleetlm {fleetlm.__version__} (Python {sys.version.split()[0]})")
        return 0
    match options.command:
        case "start":
            from fleetlm.cli import start as foreground  # noqa: PLC0415

            return foreground.run(options.program, options.log_level)
        case "remote":
            return _remote(options)
        case "doctor":
            from fleetlm.cli.doctor import gather as doctor  # noqa: PLC0415

            return doctor.main(node=options.node, as_json=options.json)
        case "demo":
            from fleetlm.cli.demo import story as demo  # noqa: PLC0415

            return int(demo.main() or 0)
    top.print_help()
    return 2


def _remote(options: argparse.Namespace) -> int:
    source = options.source
    if source is None and sys.stdin.isatty() and not options.json:
        from fleetlm.remote import shell as shell_ui  # noqa: PLC0415

        return shell_ui.run(node=options.node, timeout_s=options.timeout)
    if source is None or source == "-":
        source = sys.stdin.read()
    if not source.strip():
        print(
            'fleetlm remote: no expression. Give one, as in: fleetlm remote "Node.list()"; for a shell '
            "stdin must be a terminal (docker exec -it)",
            file=sys.stderr,
        )
        return 2
    from fleetlm.remote import client as remote  # noqa: PLC0415

    return remote.run(
        source, node=options.node, timeout_s=options.timeout or DEFAULT_TIMEOUT_S, as_json=options.json
    )
