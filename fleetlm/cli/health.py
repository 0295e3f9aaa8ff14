"""`fleetlm health`: is the node of this container alive, and is it ready? For HEALTHCHECK and probes.

It needs no folder and no remote shell, so it works with a read-only root and with ``FLEETLM_REMOTE=off``.
Platforms run it every few seconds in every container, so it imports next to nothing: not `socket`, `json`,
`argparse` or `re`, each of which takes about half as long as the start of Python.

``--live`` looks at the kernel's table of TCP sockets: it is true while a process listens on a port of the
nodes. That needs neither the node's event loop nor the GIL, so a worker that computes for a minute is alive.
Platforms restart a container whose liveness probe fails, so it must fail only where nothing else helps.

``--ready`` asks each node of this container (`remote.health_socket`). Its event loop answers, so a node whose
loop is blocked for longer than the time-out is not ready. Nodes of another container in the same network
namespace (a pod, host networking) are not asked: the kernel shows their process ids as 0 here.
"""

from __future__ import annotations

import _socket  # `socket` would import selectors, enum and re
import os
import sys
import time

from fleetlm.cli.exit_codes import EX_CONFIG, FAILED, OK
from fleetlm.escapes import escape_lines
from fleetlm.remote import health_socket

TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
"""The kernel's tables of TCP sockets in this network namespace. Only Linux has them."""
DEFAULT_TIMEOUT_S = 4.0
"""Default of ``--timeout``. Probes of platforms often have 5 seconds."""
DEFAULT_PORTS = (4370, 4385)
"""Where nodes listen if FLEETLM_NODE_PORT is not set. `Settings` has the same, and a test compares them."""
MAX_PORTS = 256
"""Ports in a range, as in `Settings`."""
MAX_NODES = 64
"""Nodes of one container that are asked."""
_LISTENING = "0A"
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  # compared with, not bound


class Asked:
    """The arguments of `fleetlm health`."""

    def __init__(self) -> None:
        self.ready: bool = False
        self.min_nodes: int = 0
        self.node: str | None = None
        self.timeout_s: float = DEFAULT_TIMEOUT_S


class BadSetting(Exception):
    """A variable cannot be used; the text says which, and what is allowed."""


def parse(arguments: list[str]) -> Asked | None:
    """Read the arguments. Returns None for anything unusual, which `argparse` then explains."""
    asked = Asked()
    kinds = set()
    rest = [part for each in arguments for part in (each.split("=", 1) if each[:2] == "--" else [each])]
    rest.reverse()
    try:
        while rest:
            option = rest.pop()
            if option in ("--live", "--ready"):
                kinds.add(option)
            elif option == "--min-nodes":
                asked.min_nodes = int(rest.pop())
            elif option == "--node":
                asked.node = rest.pop()
            elif option == "--timeout":
                asked.timeout_s = float(rest.pop())
            else:
                return None
    except (IndexError, ValueError):
        return None
    asked.ready = "--ready" in kinds
    is_usual = len(kinds) < 2 and asked.min_nodes >= 0 and 0 < asked.timeout_s < float("inf")
    return asked if is_usual and (asked.ready or not asked.min_nodes) else None


def run(asked: Asked) -> int:
    """Look, and print one line for each node.

    Returns:
        The exit code: 0 if all is well, 1 if not, 78 if a setting cannot be used.
    """
    try:
        is_well, text = is_ready(asked, os.environ) if asked.ready else is_live(asked, os.environ)
    except BadSetting as error:
        print(f"fleetlm health: {escape_lines(str(error))}", file=sys.stderr)
        return EX_CONFIG
    print(escape_lines(text), file=sys.stdout if is_well else sys.stderr)
    return OK if is_well else FAILED


# Alive.


def is_live(asked: Asked, env: os._Environ[str] | dict[str, str]) -> tuple[bool, str]:
    """Return whether a process listens on a port of the nodes, and a sentence for people."""
    first, last, base = read_ports(env)
    wanted_ip = ""
    if asked.node is not None:
        wanted_ip, port = split_place(asked.node, base)
        first = last = port
    tables = [text for text in map(_read, TABLES) if text]
    if tables:
        listeners = [place for text in tables for place in parse_listeners(text, first, last)]
    else:
        ip = wanted_ip or env.get("FLEETLM_NODE_IP") or "127.0.0.1"
        listeners = [(ip, port) for port in range(first, last + 1) if _accepts(ip, port, asked.timeout_s)]
    for ip, port in listeners:
        if wanted_ip in ("", ip) or ip in _WILDCARDS:
            return True, f"alive: a process listens on port {port} of {ip}"
    ports = f"port {first}" if first == last else f"any of the ports {first} to {last}"
    return False, f"no process listens on {ports} of {wanted_ip or 'this machine'} (FLEETLM_NODE_PORT)"


def read_ports(env: os._Environ[str] | dict[str, str]) -> tuple[int, int, int]:
    """Return the first and the last port on which a node may listen, and the port of a name without one.

    Raises:
        BadSetting: FLEETLM_NODE_PORT or FLEETLM_NODE_SLOT cannot be used.
    """
    text = env.get("FLEETLM_NODE_PORT")
    first, last = DEFAULT_PORTS
    if text is not None:
        low, dash, high = (part.strip() for part in text.partition("-"))
        first, last = _read_number(low), _read_number(high if dash else low)
        if not 1 <= first <= last <= min(65_535, first + MAX_PORTS - 1):
            raise BadSetting(f"FLEETLM_NODE_PORT={text!r} is neither a port nor a range such as 4370-4385")
    queries = env.get("DNS_CLUSTER_QUERY", "").split(",")
    has_service = any(query.strip().startswith("_") for query in queries)
    base = DEFAULT_PORTS[0] if has_service else first  # Nodes that SRV records name have any ports.
    slot = env.get("FLEETLM_NODE_SLOT")
    if slot is not None:
        place = _read_number(slot.strip().removeprefix("+"))
        if not first <= first + place <= last:
            raise BadSetting(f"FLEETLM_NODE_SLOT={slot!r} is no place in the ports {first} to {last}")
        first = last = first + place
    return first, last, base


def _read_number(text: str) -> int:
    """Return a number of up to five digits; -1 for any other text."""
    return int(text) if len(text) <= 5 and text.isascii() and text.isdecimal() else -1


def split_place(node: str, base_port: int) -> tuple[str, int]:
    """Return the IP address and the port of a node's name; ``base_port`` where the name has none.

    A number is a port of any address, or, below the base port, the slot of a node (`remote.finder.choose`).

    Raises:
        BadSetting: it is not the name of a node.
    """
    if node.isdecimal():
        return "", int(node) if int(node) >= base_port else base_port + int(node)
    _, at, place = node.partition("@")
    ip, colon, port = place.rpartition(":")
    if not colon or (":" in ip and not ip.startswith("[")):
        ip, port = place, str(base_port)
    if not at or not ip or not port.isdecimal():
        raise BadSetting(f"--node {node}: not a name such as fleetlm@10.0.0.7 or fleetlm@10.0.0.7:4371")
    return ip.strip("[]"), int(port)


def parse_listeners(table: str, first: int, last: int) -> list[tuple[str, int]]:
    """Return address and port of the sockets that listen on a port of a range, from a table of the kernel.

    Source: proc_net_tcp.rst of Linux: the second column is the local address, in words of 32 bits in the
    byte order of the machine, and the port; the fourth column is the state.
    """
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split(None, 4)
        if len(fields) < 4 or fields[3] != _LISTENING:
            continue
        address, _, local_port = fields[1].partition(":")
        try:
            port = int(local_port, 16)
            if first <= port <= last:
                words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
                family = _socket.AF_INET if len(words) == 1 else _socket.AF_INET6
                packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
                found.append((_socket.inet_ntop(family, packed), port))
        except (ValueError, OverflowError):
            continue
    return found


def _accepts(ip: str, port: int, timeout_s: float) -> bool:
    """Whether the kernel accepts a connection to a port. For systems without tables of sockets."""
    trial = _socket.socket(_socket.AF_INET6 if ":" in ip else _socket.AF_INET, _socket.SOCK_STREAM)
    try:
        trial.settimeout(timeout_s)
        trial.connect((ip, port))
    except OSError:
        return False
    finally:
        trial.close()
    return True


# Ready.


def is_ready(asked: Asked, env: os._Environ[str] | dict[str, str]) -> tuple[bool, str]:
    """Return whether every node of this container is ready, and what each of them says, one a line."""
    table = _read(health_socket.TABLE)
    if not table:
        return _ask_shell(asked)
    addresses = select(health_socket.parse_table(table), asked.node, env)
    until = time.monotonic() + asked.timeout_s
    questions = [Question(address, asked.min_nodes, until) for address in addresses[:MAX_NODES]]
    answers = [answer for each in questions if (answer := each.answer()) is not None]
    if not answers:
        which = f"node {asked.node}" if asked.node else "node"
        return False, f"no {which} runs in this container, or it has not started yet"
    unready = [text for is_yes, text in answers if not is_yes]
    return not unready, "\n".join(unready or [text for _, text in answers])


def select(addresses: list[str], node: str | None, env: os._Environ[str] | dict[str, str]) -> list[str]:
    """Return the sockets of the nodes that are meant: one node, or those on the ports of the cluster.

    Raises:
        BadSetting: the ports or the name cannot be used.
    """
    first, last, base = read_ports(env)
    if node is not None:
        ip, port = split_place(node, base)
        if not ip:
            return [each for each in addresses if health_socket.port_of(each) == port]
        wanted = health_socket.address_of(node.partition("@")[0], ip, port)
        return [each for each in addresses if each == wanted]
    return [each for each in addresses if first <= health_socket.port_of(each) <= last]


class Question:
    """A question to one node. All nodes are asked before the first answer is read."""

    def __init__(self, address: str, min_nodes: int, until: float) -> None:
        self._name = address[len(health_socket.PREFIX) + 1 :]
        self._until = until
        self._problem = ""
        self._is_ours = True
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            self._socket.settimeout(self._left_s())
            self._socket.connect(address)
            self._is_ours = self._check_peer()
            self._socket.sendall(f"ready {min_nodes}\n".encode())
        except OSError as error:
            self._problem = self._describe(error)

    def answer(self) -> tuple[bool, str] | None:
        """Return whether the node is ready, and why not; None for a node of another container."""
        if not self._is_ours:
            return None
        received = b""
        try:
            while not self._problem and b"\n" not in received:
                self._socket.settimeout(self._left_s())
                more = self._socket.recv(health_socket.MAX_REPLY_BYTES)
                if not more:
                    self._problem = f"{self._name} gives no answer: it stops, or belongs to another user"
                received += more
        except OSError as error:
            self._problem = self._describe(error)
        self._socket.close()
        if self._problem:
            return False, self._problem
        verdict, _, text = received.decode("utf-8", "replace").strip().partition(" ")
        return verdict == "1", text

    def _check_peer(self) -> bool:
        """Whether the node belongs to this container. Raises: PermissionError for one of another user."""
        size = 12  # pid, uid and gid
        option: int = getattr(_socket, "SO_PEERCRED", 17)  # Linux's; no other system gets here
        there = self._socket.getsockopt(_socket.SOL_SOCKET, option, size)
        pid, uid = (int.from_bytes(there[at : at + 4], sys.byteorder) for at in (0, 4))
        if pid and os.getuid() not in (0, uid):
            raise PermissionError(f"it is run by user {uid}")
        return pid != 0

    def _left_s(self) -> float:
        return max(0.001, self._until - time.monotonic())

    def _describe(self, error: OSError) -> str:
        if isinstance(error, TimeoutError):
            return f"{self._name} did not answer in time: its event loop is blocked, or it is stopped"
        return f"{self._name} cannot be asked: {error}"


def _ask_shell(asked: Asked) -> tuple[bool, str]:
    """Ask through the remote shell, on systems that have no sockets without a file, such as macOS."""
    from fleetlm.remote import client, finder  # noqa: PLC0415

    try:
        node = finder.choose(finder.discover(os.environ, os.getuid()), asked.node)
        connection = client.connect(node, asked.timeout_s)
        try:
            source = f"await node.readiness({asked.min_nodes})"
            outcome = client.evaluate(connection, source, asked.timeout_s, 0, lambda *_: None)
        finally:
            connection.close()
    except (finder.RemoteFailure, client.NodeGone) as failure:
        return False, str(failure)
    value = outcome.done.get("value")
    if not isinstance(value, dict):
        return False, outcome.error
    reasons = value.get("reasons")
    text = "is ready" if value.get("is_ready") else f"is not ready: {reasons}"
    return bool(value.get("is_ready")), f"{node.node} {text}"


def _read(path: str) -> str:
    """Return the text of a table of the kernel; empty where the system has none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123  # pathlib is slow
            return file.read()
    except OSError:
        return ""
