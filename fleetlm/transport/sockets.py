"""The options of the two kinds of socket, their endpoints, and the descriptors they need.

Everything is set by name: ZeroMQ's defaults are wrong for a cluster.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import resource
import socket
from typing import Final

import zmq

from fleetlm.names import endpoint
from fleetlm.settings import Settings
from fleetlm.transport.curve import ZAP_DOMAIN, CurveKeys
from fleetlm.wire.frames import HEADER_BYTES, MAX_HANDSHAKE_BYTES

log = logging.getLogger("fleetlm.zmq")

Sock = zmq.Socket[bytes]
Context = zmq.Context[Sock]

MAX_SOCKETS: Final = 8_192
"""Of one context: three for each dial under way (a DEALER, two ends of its monitor)."""
BACKLOG: Final = 1_024
"""Connections that wait to be accepted: all peers of a large cluster may dial at the same time."""
ANSWERS_HWM: Final = 64
"""Answers waiting for one dialler; one takes at most a handful, more are dropped."""
MAX_ANSWER_BYTES: Final = HEADER_BYTES + MAX_HANDSHAKE_BYTES
KEEPALIVE_IDLE_S: Final = 60
MAX_TTL_MS: Final = 6_553_500
"""What fits into a PING: tenths of a second in 16 bits."""

FDS_PER_PEER: Final = 3
"""A DEALER's wake-up, its connection, and the connection of the peer."""
FDS_PER_DIAL: Final = 2
"""More while a dial is under way: the two ends of its monitor."""
FDS_RESERVED: Final = 128
"""For the program itself."""
FDS_WANTED: Final = 65_536


def _build_common_options(settings: Settings, max_message_bytes: int) -> dict[int, int]:
    return {
        zmq.LINGER: 0,
        zmq.MAXMSGSIZE: max_message_bytes,
        zmq.RCVHWM: 0,  # a full queue stops PONGs: a healthy peer would be cut
        zmq.HEARTBEAT_IVL: _to_ms(settings.heartbeat_interval_s),
        zmq.HEARTBEAT_TIMEOUT: _to_ms(settings.heartbeat_timeout_s),
        zmq.HEARTBEAT_TTL: min(MAX_TTL_MS, _to_ms(settings.node_timeout_s)),
        zmq.HANDSHAKE_IVL: _to_ms(settings.connect_timeout_s),
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: KEEPALIVE_IDLE_S,
    }


def make_router(context: Context, settings: Settings, name: str, keys: CurveKeys | None) -> Sock:
    """The socket on which a node hears its peers; not bound yet."""
    options = _build_common_options(settings, settings.max_frame_bytes) | {
        zmq.SNDHWM: ANSWERS_HWM,
        zmq.ROUTER_MANDATORY: 1,
        zmq.ROUTER_HANDOVER: 0,
        zmq.BACKLOG: BACKLOG,
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
    """The socket on which a node speaks to one peer; not connected yet."""
    options = _build_common_options(settings, MAX_ANSWER_BYTES) | {
        # Without a limit here: the connection's credit window bounds what is in flight, and a limit
        # in messages would say no at a number that has nothing to do with bytes.
        zmq.SNDHWM: 0,
        zmq.IMMEDIATE: 1,  # never queue for a connection that is not there
        zmq.RECONNECT_IVL: -1,  # a lost connection is a fact, not something to hide
        zmq.CONNECT_TIMEOUT: _to_ms(settings.connect_timeout_s),
    }
    sock = _make_socket(context, zmq.DEALER, options)
    sock.set(zmq.ROUTING_ID, routing_id)
    if keys is not None:
        sock.set(zmq.CURVE_SERVERKEY, keys.public)
        sock.set(zmq.CURVE_PUBLICKEY, keys.public)
        sock.set(zmq.CURVE_SECRETKEY, keys.secret)
    return sock


def bind(sock: Sock, ip: str, port: int) -> bool:
    """Bind to that address, or to every address where this machine does not have it.

    Returns:
        Whether the address is this machine's own.

    Raises:
        zmq.ZMQError: the port is not to be had.
    """
    try:
        _set_family(sock, ip)
        sock.bind(f"tcp://{endpoint(ip, port)}")
        return True
    except zmq.ZMQError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
            raise
    sock.set(zmq.IPV6, 1)
    sock.bind(f"tcp://*:{port}")
    return False


def connect(sock: Sock, ip: str, port: int, own_ip: str | None) -> None:
    """Begin to connect, from ``own_ip`` where that can be, so that the peer sees our name's address."""
    _set_family(sock, ip)
    source = f"{endpoint(own_ip, 0)};" if own_ip and may_dial_from(own_ip, ip) else ""
    sock.connect(f"tcp://{source}{endpoint(ip, port)}")


def may_dial_from(own_ip: str, ip: str) -> bool:
    """Whether a connection to ``ip`` can have ``own_ip`` as its source."""
    own, other = ipaddress.ip_address(own_ip), ipaddress.ip_address(ip)
    return own.version == other.version and own.is_loopback == other.is_loopback


def explain_bind_error(error: OSError | zmq.ZMQError, port: int) -> str:
    """The operating system's words, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is in use, perhaps by another node of this machine "
            f"(`ss -ltnp 'sport = :{port}'` shows by whom). Stop that program, or give every node "
            "of the cluster another port with FLEETLM_NODE_PORT"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"permission denied for port {port}: ports below 1024 are the system's. "
            "Give every node of the cluster another port with FLEETLM_NODE_PORT"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files: raise the limit (`ulimit -n`)"
    return f"{error.strerror or error} (FLEETLM_NODE_IP and FLEETLM_NODE_PORT decide the address)"


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files as far as the hard one allows.

    Returns:
        How many peers the limit has room for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = FDS_WANTED if hard == unlimited else min(FDS_WANTED, hard)
    if soft != unlimited and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError) as error:
            log.warning("cannot raise the limit of open files above %d: %s", soft, error)
    if soft == unlimited:
        soft = FDS_WANTED
    return max(0, soft - FDS_RESERVED) // (FDS_PER_PEER + FDS_PER_DIAL)


def get_int(sock: Sock, option: int) -> int:
    """An option that is a number."""
    value: int = sock.get(option)  # type: ignore[assignment]  # others are bytes
    return value


def source_address(ip: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Family of an address, and the address itself with any port, as `socket` takes them."""
    return (socket.AF_INET6 if ":" in ip else socket.AF_INET), (ip, 0)


def _make_socket(context: Context, kind: int, options: dict[int, int]) -> Sock:
    sock = context.socket(kind)
    for option, value in options.items():
        sock.set(option, value)
    return sock


def _set_family(sock: Sock, ip: str) -> None:
    """IPv6 only where the address is: else an IPv4 peer shows as ``::ffff:10.0.0.7``."""
    sock.set(zmq.IPV6, int(":" in ip))


def _to_ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
