"""The arguments of the command line, and its help texts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from fleetlm.cli.health import DEFAULT_TIMEOUT_S as HEALTH_TIMEOUT_S

DESCRIPTION = """\
fleetlm connects worker processes into one cluster: they find each other through one DNS name.

  fleetlm demo                        watch a cluster form on this machine
  fleetlm start worker:main           run main(node) of worker.py inside a node
  fleetlm remote "Node.list()"        evaluate Python inside a running node
  fleetlm top                         watch the cluster live
  fleetlm drain --wait                let a node finish what it has begun, before it is stopped
  fleetlm health --ready              exit 0 if the node here takes work, for probes
  fleetlm doctor                      find out why a node is alone, does not start, or loses connections

Run `fleetlm COMMAND --help` for the options, examples and exit codes of a command.
"""
VARIABLES = """\
environment variables (defaults in parentheses):
  DNS_CLUSTER_QUERY           DNS name that resolves to the addresses of all nodes, or several names with
                              commas between them; one that begins with _ (_fleetlm._tcp.NAME) is asked for
                              SRV records, which have the ports too; unset: no clustering
  DNS_CLUSTER_NODE_BASENAME   the part of a node's name before the @ (fleetlm)
  DNS_POLL_INTERVAL_MS        milliseconds between two DNS lookups (5000)
  FLEETLM_NODE_IP             this node's IP address, or the interface or network to take it from (eth1,
                              10.8.0.0/16); set it where automatic detection is wrong
  FLEETLM_NODE_PORT           TCP port, or a range of which the first free one is taken (4370-4385)
  FLEETLM_NODE_SLOT           fixed place in that range, from 0, such as a rank (the first free port)
  FLEETLM_BIND                where to listen: an address, interface or network of this machine, or * for all
                              (the node's address)
  FLEETLM_COOKIE, FLEETLM_COOKIE_FILE
                              shared secret of the cluster: encrypts traffic and keeps other nodes out; make
                              one with `fleetlm cookie`
  FLEETLM_COOKIE_OLD          a second secret while the cookie is changed, node by node
  FLEETLM_INSECURE            1: start without a cookie even where the Internet may reach the node (0)
  FLEETLM_REQUIRE_COOKIE      1: start nowhere without a cookie (0)
  FLEETLM_CLUSTER             id of the cluster: connections to nodes with another id are refused
  FLEETLM_ALLOWED_NETWORKS    networks with commas between them, outside of which the node has no peers (any)
  FLEETLM_NODE_TIMEOUT_MS     milliseconds of silence after which a peer counts as down (8000)
  FLEETLM_DRAIN_MS            milliseconds for a node that leaves to finish what it has begun (25000)
  FLEETLM_PEERS_MAY           what other nodes may do here: call,spawn,exit,register or none (all of them)
  FLEETLM_REMOTE              off: this node does not serve `fleetlm remote` (on)
  FLEETLM_OPS                 ip:port of health, metrics and a page over HTTP; needs the extra `ops` (off)
  FLEETLM_OPS_TOKEN, FLEETLM_OPS_TOKEN_FILE
                              its secret, which anything but a loopback address needs
  FLEETLM_LOCAL_ROAD          off: messages to nodes of this host use no Unix socket (on)
  FLEETLM_DEBUG               1: messages between processes of one node are encoded and decoded, too (0)
  FLEETLM_DNS_SERVER          ip[:port] of the DNS server to ask (the system's)
  FLEETLM_LOG                 json: `fleetlm start` writes one JSON object per log line (text)
  FLEETLM_PRUNE_AFTER_LOOKUPS disconnect a peer after this many whole lookups without it (never)
"""
START = """\
Run a node in the foreground. SIGTERM or Ctrl-C stops it in order: it takes no new work, finishes what it has
begun (see --drain), tells its peers that it leaves, and exits with code 0 if nothing was cut. The same signal
once more ends it at once; the other one does not, since some platforms send both. A third signal does.
A unit of systemd has Type=notify: the node says when it is ready (`fleetlm health --ready`), that it stops,
and that it needs more time for that.

MODULE:FUNCTION names your program:

  async def main(node): ...     the node runs until this function returns
  def main(node): ...           sets things up, such as processes; the node then runs until a signal

MODULE is looked for in the current folder, then on PYTHONPATH. Without MODULE:FUNCTION the node runs
no program of yours.

  fleetlm start
  DNS_CLUSTER_QUERY=worker fleetlm start worker:main

exit codes:
  0         the program returned, or the node stopped in order, and nothing was cut
  1         the program raised an exception, a root supervisor gave up, an essential process failed, or the
            node could not start
  2         MODULE:FUNCTION does not exist, or cannot be called with a node
  75        the node stopped in order, and something was cut: it was not done within the time of the drain
  78        a setting cannot be used
  130, 143  ended at once by a second Ctrl-C or SIGTERM, or by one while modules were imported
"""
REMOTE = """\
Evaluate Python inside a node that runs on this machine; print its output and the result. Statements and
top-level `await` work; an awaitable result is awaited. Without EXPR, open an interactive shell.

  fleetlm remote "Node.list()"                  connected nodes; also Node.list("known"), Node.list("host")
  fleetlm remote "Node.info()"                  this node and its connection table
  fleetlm remote "Node.ping('fleetlm@10.0.0.7')"
  fleetlm remote "Process.list()"
  fleetlm remote --json "Node.info()" | jq .value.peers
  fleetlm remote "await node.call('sessions', 'size')"
  fleetlm remote - < script.py                  read the source from stdin
  fleetlm remote                                shell with history and completion; Ctrl-D leaves it
  fleetlm remote --node 4371 "Node.info()"      one of several nodes of this machine, by its port; also by its
                                                slot (--node 1) or name (--node fleetlm@10.0.0.7:4371)

Available names: Node, Process, Supervisor, Group, Registry, Entities, node (the running fleetlm.Node),
fleetlm, asyncio. EXPR runs on the node's event loop, so an expression that blocks (time.sleep, a long
computation) blocks the node as well: use `await node.run_blocking(...)` for such work. Only the user
that runs the node, and root, may connect.

exit codes:
  0  done
  1  EXPR raised an exception (traceback on stderr)
  2  wrong usage, or several nodes run here and --node is missing
  3  no node to connect to, or the node ended before there was a result
  4  no result in time; the evaluation was cancelled
  5  permission denied
"""
DOCTOR = """\
Check the settings, the DNS name and its addresses, this machine's address, the ports and who holds them,
the cookie and each peer. If nodes run on this machine, the view of each is checked as well. Each line of the
report says what was checked and what was found, and for every problem what to do.

  fleetlm doctor
  fleetlm doctor --node 4371
  docker compose exec worker fleetlm doctor
  fleetlm doctor --json

exit codes:
  0   no check failed (there may be warnings)
  1   a check failed
  2   several nodes run here that --node may mean
  3   the node that --node names does not run here
  4   the node that --node names does not respond
  5   permission denied
  78  a setting cannot be used
"""
TOP = """\
Show the cluster live, through a node of this machine: nodes, processes, supervision trees, groups, names,
sessions and events. Needs a terminal and the package textual: pip install 'fleetlm[top]'.

  fleetlm top
  fleetlm top --node 4371 --interval 5
  fleetlm top --once                       tables, without textual; also into a pipe
  fleetlm top --json | jq '.nodes[].state'

keys: 1 to 7 or Tab: view · arrows: move · s, S: sort by the next column, the one before · r: other way round
      /: filter · Esc: no filter · Enter: the whole row · Space: pause · d: dark or light · ?: help · q: quit

exit codes: those of `fleetlm remote`
"""
DRAIN = """\
Let a node of this machine finish what it has begun and take no new work, so that it can be stopped without a
failed call. It goes on running, and `fleetlm undrain` takes it back. SIGTERM does the same and then stops it.

  fleetlm drain --wait                     until it is done; prints what is still open, then the report
  fleetlm drain --wait --timeout 120 --reason "new version"
  fleetlm undrain

exit codes:
  0   it drains; with --wait: it has drained, and nothing was cut
  1   the drain was undone meanwhile, or the node stops already
  2   several nodes run here and --node is missing
  3   no node to connect to, or the node ended meanwhile
  4   the node does not respond
  5   permission denied
  75  something was not done in time, and was cut
"""
UNDRAIN = """\
Take back `fleetlm drain`: the node takes work again.

exit codes:
  0  it takes work
  1  it stops already, which cannot be taken back
  2 to 5  as those of `fleetlm drain`
"""
HEALTH = """\
Say whether the node of this container is alive, or ready. Needs neither a folder nor the remote shell, so it
works with a read-only root and with FLEETLM_REMOTE=off, and it takes little longer than the start of Python.

  --live    a process listens on a port of the nodes (FLEETLM_NODE_PORT). The kernel tells, so a node that
            computes and holds the GIL is alive. This is what is looked at by default
  --ready   each node of this container has started, does not drain, is connected to --min-nodes others, and
            passes the program's own checks (Node.add_check). Its event loop answers

  HEALTHCHECK CMD ["fleetlm", "health", "--live"]
  livenessProbe:  {exec: {command: [fleetlm, health, --live]}, timeoutSeconds: 5}
  readinessProbe: {exec: {command: [fleetlm, health, --ready, --min-nodes, "1"]}, timeoutSeconds: 5}

exit codes:
  0   it is
  1   it is not; or a node does not answer in time, or none runs here
  2   wrong usage
  78  a setting cannot be used
"""
COOKIE = """\
Print a new cookie: 256 random bits. All nodes of a cluster have the same one.

  export FLEETLM_COOKIE=$(fleetlm cookie)
  fleetlm cookie > cookie && chmod 0400 cookie        for FLEETLM_COOKIE_FILE
  kubectl create secret generic fleetlm --from-literal=cookie=$(fleetlm cookie)
"""
DEMO = """\
Start a DNS server and six nodes on 127.0.0.N of this machine, and show how they find each other, exchange
messages, detect a crash and survive a DNS outage. The demo ends by itself in less than 20 seconds.

exit codes: 0 everything went as expected, 1 something did not, 130 or 143 interrupted
"""
TOP_INTERVAL_S = 1.0
"""Default of ``--interval``: nodes tell something new twice a second at most."""
DEFAULT_TIMEOUT_S = 10.0
"""Default of ``--timeout`` for one expression; a shell has no time limit."""


def seconds(text: str) -> float:
    """Parse a positive, finite number of seconds. Raises: argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def seconds_or_none(text: str) -> float:
    """Parse a finite number of seconds from 0. Raises: argparse.ArgumentTypeError."""
    try:
        return seconds(text) if float(text) else 0.0
    except (argparse.ArgumentTypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor a positive number of seconds") from None


def count(text: str) -> int:
    """Parse a whole number from 0. Raises: argparse.ArgumentTypeError."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their options."""
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
    start.add_argument(
        "program", nargs="?", metavar="MODULE:FUNCTION", help="function that is called with the node"
    )
    start.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="log messages of this level and above, to stderr (info)",
    )
    start.add_argument(
        "--drain",
        type=seconds_or_none,
        metavar="SECONDS",
        help="finish within this time what was begun, before the node leaves (FLEETLM_DRAIN_MS, 25)",
    )
    remote = command("remote", "evaluate Python inside a running node, or open a shell in it", REMOTE)
    remote.add_argument("source", nargs="?", metavar="EXPR", help="Python source; - reads it from stdin")
    remote.add_argument("--json", action="store_true", help="print one JSON object")
    remote.add_argument(
        "--node", metavar="NAME", help="node to connect to, by name, port or slot, if several run here"
    )
    remote.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help=f"cancel the evaluation after this time ({DEFAULT_TIMEOUT_S:g}; in a shell: never)",
    )
    doctor = command("doctor", "check a node and its cluster, and say how to repair what is wrong", DOCTOR)
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument(
        "--node", metavar="NAME", help="node to check, by name, port or slot (all that run here)"
    )
    _add_top(command)
    _add_leaving(command)
    command("cookie", "print a new cookie for the nodes of a cluster", COOKIE)
    command("demo", "watch a cluster form on this machine", DEMO)
    return top


def _add_top(command: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Add the command that shows the cluster."""
    top = command("top", "show the cluster live, or as tables", TOP)
    top.add_argument("--node", metavar="NAME", help="node to ask, by name, port or slot, if several run here")
    top.add_argument(
        "--interval",
        type=seconds,
        default=TOP_INTERVAL_S,
        metavar="SECONDS",
        help="time between two looks (%(default)g)",
    )
    top.add_argument("--once", action="store_true", help="print tables and exit")
    top.add_argument("--json", action="store_true", help="print one JSON object and exit")


def _add_leaving(command: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Add the commands by which a platform and its operators let a node leave."""
    drain = command("drain", "let a node finish what it has begun, and take no new work", DRAIN)
    drain.add_argument("--wait", action="store_true", help="wait until it has drained")
    drain.add_argument(
        "--timeout",
        type=seconds_or_none,
        metavar="SECONDS",
        help="time for what it has begun (as its FLEETLM_DRAIN_MS says)",
    )
    drain.add_argument("--reason", default="", metavar="TEXT", help="for its log")
    drain.add_argument("--node", metavar="NAME", help="node to drain, by name, port or slot")
    undrain = command("undrain", "let a node that drains take work again", UNDRAIN)
    undrain.add_argument("--node", metavar="NAME", help="node to undrain, by name, port or slot")
    health = command("health", "exit 0 if the node here is alive, or ready; for probes", HEALTH)
    kind = health.add_mutually_exclusive_group()
    kind.add_argument("--live", action="store_true", help="a process listens on the node's port (default)")
    kind.add_argument("--ready", action="store_true", help="the node takes work")
    health.add_argument(
        "--min-nodes",
        type=count,
        default=0,
        metavar="N",
        help="with --ready: it is connected to at least N other nodes (0)",
    )
    health.add_argument("--node", metavar="NAME", help="only this node, by name, port or slot")
    health.add_argument(
        "--timeout",
        type=seconds,
        default=HEALTH_TIMEOUT_S,
        metavar="SECONDS",
        help="wait so long (%(default)g)",
    )
