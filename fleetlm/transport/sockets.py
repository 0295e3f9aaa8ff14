"""Makes the two kinds of socket with their options, binds and connects them, and budgets descriptors.

Every option that matters is set here by name, since ZeroMQ's defaults do not suit a cluster: they queue
for connections that do not exist, reconnect silently, and stop answering heartbeats when a queue is full.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import resource
import socket
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import zmq

from fleetlm.names import canonical_ip, endpoint
from fleetlm.settings import Settings
from fleetlm.transport.curve import ZAP_DOMAIN, CurveKeys
from fleetlm.wire.frames import HEADER_BYTES, MAX_HANDSHAKE_BYTES

log: logging.Logger = logging.getLogger("fleetlm.zmq")

NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.ENODEV)
"""The errors of listening at an address that this machine does not have."""

Sock = zmq.Socket[bytes]
Context = zmq.Context[Sock]

MAX_SOCKETS: Final = 8_192
"""Limit of sockets in one context. A dial in progress needs three: a DEALER and both ends of its monitor."""
ANSWERS_HWM: Final = 64
"""Answers that may wait for one source; more are dropped. A source needs at most a handful."""
MAX_ANSWER_BYTES: Final = HEADER_BYTES + MAX_HANDSHAKE_BYTES
"""Size limit of what a DEALER receives: the answers to a handshake, nothing else."""
KEEPALIVE_IDLE_S: Final = 60
"""Seconds without traffic before TCP keepalive probes begin, behind ZeroMQ's own heartbeats."""

FDS_PER_PEER: Final = 3
"""Descriptors for each connected peer: a DEALER's wake-up and connection, and the peer's connection. A local
road takes three more where they are free, and is done without where they are not."""
FDS_PER_DIAL: Final = 2
"""Further descriptors while a dial is in progress: both ends of its monitor."""
FDS_RESERVED: Final = 128
"""Descriptors left for the program itself."""
FDS_WANTED: Final = 65_536
"""The soft limit of open files that a node tries to set: room for some 13,000 peers."""


def _build_common_options(settings: Settings, max_message_bytes: int) -> dict[int, int]:
    return {
        zmq.LINGER: 0,
        zmq.MAXMSGSIZE: max_message_bytes,
        zmq.RCVHWM: 0,  # a full receive queue also delays PONGs, and the peer would cut this node off
        zmq.HEARTBEAT_IVL: _to_ms(settings.heartbeat_interval_s),
        zmq.HEARTBEAT_TIMEOUT: _to_ms(settings.heartbeat_timeout_s),
        zmq.HEARTBEAT_TTL: 0,  # the peer would go by the time-out of this node instead of its own
        zmq.HANDSHAKE_IVL: _to_ms(settings.connect_timeout_s),
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: KEEPALIVE_IDLE_S,
    }


def make_router(context: Context, settings: Settings, name: str, keys: CurveKeys | None) -> Sock:
    """Make the ROUTER on which a node receives from all peers. It is not bound yet."""
    options = _build_common_options(settings, settings.max_frame_bytes) | {
        zmq.SNDHWM: ANSWERS_HWM,
        zmq.ROUTER_MANDATORY: 1,
        zmq.ROUTER_HANDOVER: 0,
    }
    sock = _make_socket(context, zmq.ROUTER, options)
    sock.set(zmq.ROUTING_ID, name.encode())
    if keys is not None:
        sock.set(zmq.CURVE_SERVER, 1)
        sock.set(zmq.CURVE_PUBLICKEY, keys.public)
        sock.set(zmq.CURVE_SECRETKEY, keys.secret)
        sock.set(zmq.ZAP_DOMAIN, ZAP_DOMAIN.encode())
    return sock


def make_dealer(context: Context, settings: Settings, routing_id: bytes, keys: CurveKeys | None) -> Sock:
    """Make the DEALER on which a node sends to one peer. It is not connected yet."""
    options = _build_common_options(settings, MAX_ANSWER_BYTES) | {
        # Unlimited: the session's credit window bounds the bytes in flight. A limit here would count
        # messages, whatever their size.
        zmq.SNDHWM: 0,
        zmq.IMMEDIATE: 1,  # never queue frames for a connection that does not exist
        zmq.RECONNECT_IVL: -1,  # never reconnect silently: a lost connection must be reported
        zmq.CONNECT_TIMEOUT: _to_ms(settings.connect_timeout_s),
    }
    sock = _make_socket(context, zmq.DEALER, options)
    sock.set(zmq.ROUTING_ID, routing_id)
    if keys is not None:
        sock.set(zmq.CURVE_SERVERKEY, keys.public)
        sock.set(zmq.CURVE_PUBLICKEY, keys.public)
        sock.set(zmq.CURVE_SECRETKEY, keys.secret)
    return sock


def adopt(sock: Sock, ip: str, port: int, listener: socket.socket) -> None:
    """Let ZeroMQ accept connections at a socket that listens already, and that is its own from now on.

    Args:
        sock: the ROUTER.
        ip: the address at which the socket listens; ``*``: all addresses.
        port: its port.
        listener: the socket.

    Raises:
        zmq.ZMQError: ZeroMQ did not take it; the socket is still open.
    """
    sock.set(zmq.IPV6, int(ip == "*" or ":" in ip))
    sock.set(zmq.USE_FD, listener.fileno())
    try:
        sock.bind(f"tcp://{endpoint(ip, port)}")
    finally:
        sock.set(zmq.USE_FD, -1)
    listener.detach()


def connect(sock: Sock, ip: str, port: int, own_ip: str | None) -> None:
    """Begin to connect. The source address is ``own_ip`` if possible: the peer sees this node's address.

    It is named only where the kernel would choose another one: libzmq then lists the interfaces of the
    machine, for which it needs a descriptor, and it ends the whole process if there is none.
    """
    _set_family(sock, ip)
    is_named = own_ip and may_dial_from(own_ip, ip) and _find_source(ip, port) != own_ip
    source = f"{endpoint(own_ip, 0)};" if own_ip and is_named else ""
    sock.connect(f"tcp://{source}{endpoint(ip, port)}")


def _find_source(ip: str, port: int) -> str | None:
    """Return the source address that the kernel chooses for a connection; None if there is no route."""
    with socket.socket(source_address(ip)[0], socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((ip, port))  # Sends nothing.
            return canonical_ip(probe.getsockname()[0])
        except OSError:
            return None


@lru_cache(maxsize=8_192)  # It is asked for each dial, and the peers stay the same.
def may_dial_from(own_ip: str, ip: str) -> bool:
    """Whether a connection to ``ip`` can have ``own_ip`` as its source address."""
    own, other = ipaddress.ip_address(own_ip), ipaddress.ip_address(ip)
    return own.version == other.version and own.is_loopback == other.is_loopback


def describe_ports(ip: str, ports: Sequence[int]) -> str:
    """Write where a node was to listen: ``10.0.0.7:4370``, or ``10.0.0.7:4370-4385``."""
    last = f"-{ports[-1]}" if len(ports) > 1 else ""
    return f"{endpoint(ip, ports[0])}{last}"


def explain_bind_error(error: OSError | zmq.ZMQError, ports: Sequence[int]) -> str:
    """Explain why no port could be bound, and what to do; `taken_ports` does where they are in use."""
    first, last = ports[0], ports[-1]
    port = f"port {first}" if first == last else f"ports {first} to {last}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"permission denied for {port}: ports below 1024 need privileges. "
            "Set FLEETLM_NODE_PORT to another port on every node of the cluster"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files: raise the limit (`ulimit -n`)"
    if error.errno in NOT_HERE:
        return (
            "this machine does not have that address. If connections to it are forwarded to this machine "
            "(NAT, the address of a container's host), set FLEETLM_BIND to the address at which they arrive, "
            "or to * for all addresses of this machine; if not, correct FLEETLM_NODE_IP"
        )
    return f"{error.strerror or error} (FLEETLM_NODE_IP, FLEETLM_BIND and FLEETLM_NODE_PORT set the address)"


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to `FDS_WANTED`, or as far as the hard limit allows.

    Returns:
        The number of peers for which the limit has room.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = FDS_WANTED if hard == unlimited else min(FDS_WANTED, hard)
    if soft != unlimited and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError) as error:
            log.warning(
                "cannot raise the limit of open files above %d: %s; a large cluster may run out of them",
                soft,
                error,
            )
    if soft == unlimited:
        soft = FDS_WANTED
    return max(0, soft - FDS_RESERVED) // (FDS_PER_PEER + FDS_PER_DIAL)


def get_int(sock: Sock, option: int) -> int:
    """Read an option whose value is a number."""
    value: int = sock.get(option)  # type: ignore[assignment]  # other options are bytes
    return value


def source_address(ip: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """The family of an address, and the address with any free port, as the `socket` module takes them."""
    return (socket.AF_INET6 if ":" in ip else socket.AF_INET), (ip, 0)


def _make_socket(context: Context, kind: int, options: dict[int, int]) -> Sock:
    sock = context.socket(kind)
    for option, value in options.items():
        sock.set(option, value)
    return sock


def _set_family(sock: Sock, ip: str) -> None:
    """Enable IPv6 only for an IPv6 address: otherwise an IPv4 peer appears as ``::ffff:10.0.0.7``."""
    sock.set(zmq.IPV6, int(":" in ip))


def _to_ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
