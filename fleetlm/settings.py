"""One frozen `Settings`: every number of a node, with its unit, range and reason.

The environment sets the upper part (`from_env`); the lower part is for programs and tests.
A value that cannot be used is a `SettingsError` at boot, whether clustering is on or off: never a
silent default.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fleetlm.errors import SettingsError
from fleetlm.names import BASENAME, canonical_ip, endpoint

T = TypeVar("T")

DEFAULT_PORT = 4370
DNS_PORT = 53
COOKIE_MIN_LENGTH = 16
"""Characters. Whoever records a handshake can try cookies offline: a short one is no secret."""
COOKIE_MAX_LENGTH = 4096
MAX_MS = 86_400_000
"""A day: a longer interval or time-out is a slip of the unit."""

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_SERVICE_LINK = re.compile(
    r"FLEETLM(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
    r"|FLEETLM_PORT",
    re.ASCII,
)
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Settings:
    """What one node is told. Sizes in bytes, times in seconds.

    The constructor checks nothing: `Settings.from_env` does, for what the environment can set.
    """

    # What the environment sets (README, "Configuration").
    dns_query: str | None = None
    """Name that resolves to the peers' addresses, or a comma-separated list of addresses. None: off."""
    node_basename: str = "fleetlm"
    poll_interval_s: float = 5.0
    node_ip: str | None = None
    node_port: int = DEFAULT_PORT
    cookie: str | None = field(default=None, repr=False)
    cluster: str = ""
    node_timeout_s: float = 8.0
    remote: bool = True
    debug: bool = False
    dns_server: tuple[str, int] | None = None
    fly_private_ip: str | None = None
    pod_ip: str | None = None
    warnings: tuple[str, ...] = ()
    """What looked odd in the environment but hurts nothing; logged once at boot."""

    # Discovery.
    own_address_budget_s: float = 2.0
    """How long a start may wait for DNS to show the own address; then the next rule decides."""
    fast_poll_s: float = 0.25
    """First interval while no peer was ever seen, doubling: at start NXDOMAIN is normal."""
    poll_jitter: float = 0.1
    """Fraction: nodes that start together must not ask together for ever."""
    forget_after_lookups: int = 3
    forget_after_s: float = 30.0
    """An unconnected peer is forgotten after both: answers are samples, one absence says nothing."""
    prune_after_lookups: int | None = None
    """Opt-in, where DNS names every node always: a *connected* peer that so many successful lookups in
    a row did not name is disconnected until one does. None: never, since answers are samples."""
    max_peers: int = 1_024
    """Known peers: a wildcard record or a wrong name must not fill memory or descriptors."""

    # Connections.
    connect_timeout_s: float = 3.0
    """TCP and ZMTP: the kernel's own limit is 127 s, a pod that restarts needs an answer now."""
    handshake_timeout_s: float = 5.0
    backoff_min_s: float = 0.25
    backoff_max_s: float = 15.0
    tick_s: float = 1.0
    """Between two ticks of a loop: tells peers of its lag, costs 40 bytes a second and peer."""
    busy_after_s: float = 3.0
    """A peer whose loop said nothing for so long is busy: three ticks missed."""
    gossip_s: float = 1.0
    """Between two tellings of whom we know, to one peer each: spreads in O(log n) rounds."""
    goodbye_flush_s: float = 0.5
    """For the last frames to leave; with dead peers a node must still end within 2 s."""
    drain_s: float = 5.0
    """For calls in flight when a node leaves, and as long again for its supervision trees; well under
    Kubernetes' 30 s of grace."""

    # Messages.
    batch_bytes: int = 64 * 1024
    """A batch that grew so far is sent at once: bounds memory and what one turn of a loop writes."""
    batch_messages: int = 1_024
    """Likewise for many small ones: bounds how long a receiver decodes before its loop turns."""
    window_bytes: int = 8 * 1024 * 1024
    """In flight to one peer before ``send`` waits: 10 GB/s at a round trip of 0.8 ms."""
    chunk_bytes: int = 256 * 1024
    """Larger messages travel in pieces of this size: one must not outlast a heartbeat on a slow path."""
    bulk_window_bytes: int = 2 * 1024 * 1024
    """Pieces in flight: a small message waits behind at most this much."""
    max_message_bytes: int = 1024 * 1024 * 1024
    max_frame_bytes: int = 2 * 1024 * 1024
    """What ZeroMQ accepts, authenticated or not: a batch or a chunk with room to spare."""
    max_nesting: int = 64
    """Depth of a message: deeper is a mistake or an attack on the decoder's stack."""
    mailbox_limit: int = 4_096
    """Messages of one node waiting for one process before its senders wait; between two nodes the
    lower value of both holds. A large message counts for several, see `fleetlm.messaging.windows`."""
    max_open_calls: int = 65_536
    """Calls of one peer that wait for an answer here; the next is not delivered, and told so."""
    stream_window: int = 64
    """Items of a stream that are on their way or wait for their consumer; then the producer waits."""
    stream_idle_s: float = 60.0
    """A stream that brings nothing for so long has failed: its producer is stuck."""
    concurrent_handlers: int = 100
    """Of one actor at once: as many requests to a database or a GPU as help; more only wait there."""
    terminate_s: float = 5.0
    """For an actor's ``terminate``, and before it for its concurrent handlers. Source: OTP's shutdown."""
    max_factories: int = 1_024
    """Names under which other nodes may spawn here: a program has few; a leak of them must show."""
    call_timeout_s: float = 5.0
    """Default deadline of a call. Source: OTP gen.erl, DEFAULT_TIMEOUT."""
    events_limit: int = 10_000
    """nodeup and nodedown kept for a subscriber that does not read; then it gets a fresh snapshot."""
    max_memberships: int = 131_072
    """In process groups, of one node's processes: 100,000 processes in one each, told within a window.
    A peer that tells of more is disconnected, so set it alike on all nodes."""

    # Cluster-wide names. What one node tells beyond these costs the connection: the same everywhere.
    max_cluster_names: int = 65_536
    """Of one node: every node keeps those of all."""
    max_meta_bytes: int = 4_096
    """Packed, of one name: every node keeps it, so it says where and what, and is not the state itself."""
    max_names_bytes: int = 8 * 1024 * 1024
    """All names of one node with their metas: told at nodeup in one go, well under what may be in flight."""

    # Blocking functions.
    blocking_threads: int = 32
    """Of `Node.run_blocking`: they mostly wait, but each holds memory, and a driver a connection."""
    blocking_processes: int | None = None
    """Of `Node.run_in_process`. None: one for each CPU that this process may use, since they compute."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read and check the environment (default: this process's).

        Raises:
            SettingsError: naming the first variable that cannot be used, its value, what is allowed
                and, for an unknown ``FLEETLM_*`` name, the nearest known one.
        """
        env = os.environ if environ is None else environ
        _refuse_unknown(env)
        values: dict[str, object] = {"warnings": _near_misses(env)}
        for variable, name, parse in _VARIABLES:
            if variable in env:
                values[name] = _parsed(variable, env[variable], parse)
        values["cookie"] = _cookie(env)
        return cls(**values)  # type: ignore[arg-type]  # each parser returns its field's type

    @property
    def clustering(self) -> bool:
        """Whether this node looks for peers at all."""
        return self.dns_query is not None

    @property
    def dns_lifetime_s(self) -> float:
        """The whole time of one lookup: under the interval, so that polls never overlap."""
        return min(3.0, max(0.2, 0.8 * self.poll_interval_s))

    @property
    def heartbeat_interval_s(self) -> float:
        """ZMTP PING: a quarter of the node time-out; the answer has the other three quarters."""
        return self.node_timeout_s / 4

    @property
    def heartbeat_timeout_s(self) -> float:
        """Silence after a PING that ends a TCP connection; with the interval: the node time-out."""
        return self.node_timeout_s * 3 / 4

    def replace(self, **changes: object) -> Settings:
        """A copy with other values, unchecked: for tests and programs."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # checked by dataclasses

    def effective(self) -> dict[str, str]:
        """Variable → value as it holds, secrets masked: what is printed once at boot."""
        return {
            "DNS_CLUSTER_QUERY": self.dns_query or "(unset: clustering is off)",
            "DNS_CLUSTER_NODE_BASENAME": self.node_basename,
            "DNS_POLL_INTERVAL_MS": f"{self.poll_interval_s * 1000:.12g}",
            "FLEETLM_NODE_IP": self.node_ip or "(detected)",
            "FLEETLM_NODE_PORT": str(self.node_port),
            "FLEETLM_COOKIE": "(set)" if self.cookie else "(unset: plain text)",
            "FLEETLM_CLUSTER": self.cluster or "(empty)",
            "FLEETLM_NODE_TIMEOUT_MS": f"{self.node_timeout_s * 1000:.12g}",
            "FLEETLM_REMOTE": "on" if self.remote else "off",
            "FLEETLM_DEBUG": "1" if self.debug else "0",
            "FLEETLM_DNS_SERVER": endpoint(*self.dns_server) if self.dns_server else "(system)",
        }


class _Refused(Exception):
    """A parser's word that a value is not allowed: (what is allowed, hint)."""

    def __init__(self, allowed: str, hint: str = "") -> None:
        super().__init__(allowed, hint)
        self.allowed = allowed
        self.hint = hint


def _parsed(variable: str, text: str, parse: Callable[[str], T]) -> T:
    if _LINK_VALUE.match(text) and variable.startswith("FLEETLM_"):
        raise SettingsError(
            variable,
            text,
            "a value of its own",
            "This is a service link that Kubernetes injects for a Service of that name: set "
            "enableServiceLinks: false in the pod, or rename the Service.",
        )
    try:
        return parse(text.strip())
    except _Refused as refused:
        raise SettingsError(variable, text, refused.allowed, refused.hint) from None


def _integer(low: int, high: int, what: str) -> Callable[[str], int]:
    allowed = f"{what}, a whole number from {low:,} to {high:,}"

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text, re.ASCII):
            hint = "Write digits only, without a unit or a fraction." if text else "Unset it for the default."
            raise _Refused(allowed, hint)
        number = int(text)
        if not low <= number <= high:
            raise _Refused(allowed)
        return number

    return parse


def _seconds(low_ms: int) -> Callable[[str], float]:
    parse_ms = _integer(low_ms, MAX_MS, "milliseconds")
    return lambda text: parse_ms(text) / 1000


def _query(text: str) -> str | None:
    if not text:
        return None
    if "," in text or canonical_ip(text) is not None:
        addresses = [canonical_ip(part) for part in text.split(",") if part.strip()]
        if not all(addresses):
            raise _Refused("a DNS name, or IP addresses with commas between them")
        return ",".join(address for address in addresses if address)
    labels = text.removesuffix(".").split(".")
    if len(text) > 254 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _Refused(
            "a DNS name such as worker or fleet.default.svc.cluster.local",
            "Give the bare name: no scheme, no port, no spaces, labels of 1 to 63 letters, digits, - and _.",
        )
    return text


def _basename(text: str) -> str:
    if not BASENAME.fullmatch(text):
        raise _Refused("1 to 64 of A-Z a-z 0-9 _ . - (the part before the @ of every node's name)")
    return text


def _own_ip(text: str) -> str:
    ip = canonical_ip(text)
    if ip is None:
        raise _Refused("one IPv4 or IPv6 address, without a port")
    address = ipaddress.ip_address(ip)
    if address.is_unspecified or address.is_multicast:
        raise _Refused("an address that peers can connect to", f"{ip} is a wildcard or multicast address.")
    return ip


def _platform_ip(text: str) -> str | None:
    """The platform's variable, not ours: empty where it has nothing to say."""
    return _own_ip(text) if text else None


def _cluster(text: str) -> str:
    if len(text) > 128 or not text.isprintable():
        raise _Refused("up to 128 printable characters")
    return text


def _remote(text: str) -> bool:
    if text not in ("on", "off"):
        raise _Refused("on or off")
    return text == "on"


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise _Refused("0 or 1")
    return text == "1"


def _dns_server(text: str) -> tuple[str, int]:
    allowed = "ip or ip:port of a name server ([ip]:port for IPv6)"
    bare = canonical_ip(text)
    if bare is not None:
        return bare, DNS_PORT
    host, colon, port = text.rpartition(":")
    ip = canonical_ip(host)
    if not colon or ip is None or (":" in ip and not host.startswith("[")):
        raise _Refused(allowed, "Give an address: this is what would resolve a name.")
    return ip, _integer(1, 65_535, "a port")(port)


_VARIABLES: tuple[tuple[str, str, Callable[[str], object]], ...] = (
    ("DNS_CLUSTER_QUERY", "dns_query", _query),
    ("DNS_CLUSTER_NODE_BASENAME", "node_basename", _basename),
    ("DNS_POLL_INTERVAL_MS", "poll_interval_s", _seconds(1)),
    ("FLEETLM_NODE_IP", "node_ip", _own_ip),
    ("FLEETLM_NODE_PORT", "node_port", _integer(1, 65_535, "a port")),
    ("FLEETLM_CLUSTER", "cluster", _cluster),
    ("FLEETLM_NODE_TIMEOUT_MS", "node_timeout_s", _seconds(200)),
    ("FLEETLM_REMOTE", "remote", _remote),
    ("FLEETLM_DEBUG", "debug", _flag),
    ("FLEETLM_DNS_SERVER", "dns_server", _dns_server),
    ("FLY_PRIVATE_IP", "fly_private_ip", _platform_ip),
    ("POD_IP", "pod_ip", _platform_ip),
)
_KNOWN = (*(variable for variable, _, _ in _VARIABLES), "FLEETLM_COOKIE", "FLEETLM_COOKIE_FILE")


def _cookie(env: Mapping[str, str]) -> str | None:
    text, path = env.get("FLEETLM_COOKIE"), env.get("FLEETLM_COOKIE_FILE")
    if text is not None and path is not None:
        raise SettingsError(
            "FLEETLM_COOKIE_FILE", path, "one of FLEETLM_COOKIE and FLEETLM_COOKIE_FILE", "Unset the other."
        )
    if path is not None:
        try:
            with Path(path).open(encoding="utf-8") as file:
                text = file.read(COOKIE_MAX_LENGTH + 2)
        except (OSError, UnicodeDecodeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise SettingsError(
                "FLEETLM_COOKIE_FILE", path, "a readable text file", f"Reading it failed: {reason}."
            ) from None
    if text is None:
        return None
    cookie = text.strip()
    if not COOKIE_MIN_LENGTH <= len(cookie) <= COOKIE_MAX_LENGTH:
        variable = "FLEETLM_COOKIE" if path is None else "FLEETLM_COOKIE_FILE"
        raise SettingsError(
            variable,
            f"({len(cookie)} characters)" if path is None else path,
            f"{COOKIE_MIN_LENGTH} to {COOKIE_MAX_LENGTH:,} characters, the same on every node",
            "Make one with: openssl rand -hex 32. Unset it to run without authentication.",
        )
    return cookie


def _refuse_unknown(env: Mapping[str, str]) -> None:
    for variable in sorted(env):
        if not variable.startswith("FLEETLM_") or variable in _KNOWN:
            continue
        if _SERVICE_LINK.fullmatch(variable) or _is_link(variable, env[variable]):
            continue
        near = difflib.get_close_matches(variable, _KNOWN, n=1, cutoff=0.5)
        guess = f"Did you mean {near[0]}?" if near else "Unset it."
        known = ", ".join(name for name in _KNOWN if name.startswith("FLEETLM_"))
        raise SettingsError(variable, _masked(variable, env[variable]), f"one of {known}", guess)


def _is_link(variable: str, value: str) -> bool:
    """``FLEETLM_WORKER_PORT=tcp://…`` of a Service fleetlm-worker, told from a slip by its value."""
    return variable.endswith("_PORT") and _LINK_VALUE.match(value) is not None


def _masked(variable: str, value: str) -> str:
    """A misspelt FLEETLM_COOKY holds a secret as well."""
    return "(masked)" if re.search(r"COO|SECRET|KEY|PASS|TOKEN", variable) else value


def _near_misses(env: Mapping[str, str]) -> tuple[str, ...]:
    """DNS_* belongs to everybody, so a likely slip is only said, not refused."""
    ours = [name for name in _KNOWN if name.startswith("DNS_")]
    found = []
    for variable in sorted(env):
        if variable.startswith("DNS_") and variable not in ours:
            near = difflib.get_close_matches(variable, ours, n=1, cutoff=0.8)
            if near:
                found.append(f"{variable} is set and means nothing here: did you mean {near[0]}?")
    return tuple(found)
