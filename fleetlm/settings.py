"""One frozen `Settings` holds every number of a node, with its unit, its range and its reason.

The environment sets the first part of the fields (`Settings.from_env`); the rest is for programs and
tests. A variable with a value that is not allowed raises `SettingsError` before anything starts, whether
clustering is on or off. No value is ever replaced silently by a default.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, TypeVar

from fleetlm.cookies import TAKEN, parse_cookie, read_cookies
from fleetlm.errors import SettingsError
from fleetlm.names import endpoint
from fleetlm.ops_token import OPS_TAKEN, check_token, read_token
from fleetlm.records import Record
from fleetlm.setting_parsers import (
    MAX_DURATION_MS,
    MAX_NODE_PORTS,
    RIGHTS,
    Refused,
    Right,
    check_rights,
    format_ports,
    format_rights,
    is_loopback,
    is_service_name,
    parse_basename,
    parse_bind,
    parse_cluster,
    parse_dns_server,
    parse_flag,
    parse_integer,
    parse_log,
    parse_networks,
    parse_node_ip,
    parse_ops,
    parse_platform_ip,
    parse_ports,
    parse_query,
    parse_rights,
    parse_seconds,
    parse_switch,
    split_ops,
)
from fleetlm.texts import SHORT

T = TypeVar("T")

DEFAULT_PORT = 4370
"""The base port of a cluster that sets none."""
DEFAULT_PORTS = (DEFAULT_PORT, DEFAULT_PORT + 15)
"""Sixteen nodes on one machine: a worker for each core, or a rank for each GPU."""
MASKED = "(masked)"
"""Stands for the value of an unknown variable in errors: it may be the cookie, under a misspelt name."""
MAX_BATCH_MESSAGES = 4_096
"""Messages of one batch. They are decoded in one go, which takes some 10 ms."""
SHORT_POLL_S = 0.1
"""A shorter poll interval is allowed, and a warning says how many questions it makes."""

# Kubernetes injects variables for each Service into its pods; `_SERVICE_LINK` matches those of a Service
# whose name begins with "fleetlm".
_SERVICE_LINK = (
    r"FLEETLM(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
    r"|FLEETLM_PORT"
)
_SERVICE_LINK_VALUES = ("tcp://", "udp://", "sctp://")


def _nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """Return the name that was perhaps meant, if there is one."""
    import difflib  # noqa: PLC0415  # most programs make no mistake

    return difflib.get_close_matches(name, known, n=1, cutoff=cutoff)


@functools.lru_cache(maxsize=16)
def _base_port(query: str, first: int) -> int:
    """Work out `Settings.base_port`: once for the settings of a process, since nodes ask for each name."""
    return DEFAULT_PORT if any(map(is_service_name, query.split(","))) else first


class Settings(Record):
    """The configuration of one node. Sizes are in bytes, times in seconds.

    The constructor checks every value, those of the environment by the rules of the environment, and writes
    addresses in their canonical form.

    Raises:
        SettingsError: a name is unknown, or a value has the wrong type or is out of its range. The error
            names the field, its value and what is allowed.
    """

    if not TYPE_CHECKING:  # Type checkers know the fields from the dataclass.

        def __new__(cls, *_args, **fields):
            """Refuse unknown names with a guess, before the dataclass would with a TypeError."""
            for name in fields.keys() - set(cls.__match_args__):
                near = _nearest(name, cls.__match_args__)
                guess = f"Did you mean {near[0]}?" if near else "See the fields of `Settings`."
                value = fields[name]  # A text may be a secret under a misspelt name.
                shown = repr(value) if value is None or type(value) in (bool, int, float) else MASKED
                raise SettingsError(f"Settings.{name}", shown, "only known names", guess)
            return object.__new__(cls)

    def __post_init__(self) -> None:
        types = Settings.__annotations__
        for name in self.__match_args__:
            given = getattr(self, name)
            is_rights = name == "peers_may"
            checked = _check_rights(given) if is_rights else _check_field(name, types[name], given)
            if checked is not given:
                object.__setattr__(self, name, checked)
        for cookie in self.other_cookies:
            _check_field("cookie", "str", cookie)
        object.__setattr__(self, "allowed_networks", _check_networks(self.allowed_networks))
        if self.node_slot is not None:
            _check_slot("Settings.node_slot", self.node_slot, self.node_ports)
        if self.require_cookie and self.cookie is None:
            raise SettingsError("Settings.require_cookie", "True", *_COOKIE_REQUIRED)
        if self.ops is not None and self.ops_token is None and not is_loopback(split_ops(self.ops)[0]):
            raise SettingsError("Settings.ops", repr(self.ops), *_TOKEN_REQUIRED)

    # Set by the environment (README, "Configuration").
    dns_query: str | None = None
    """A DNS name that resolves to the peers' addresses, or several names and addresses with commas between
    them, which together are the cluster. A name that begins with ``_`` is asked for SRV records, which name
    the peers' ports too. None turns clustering off."""
    node_basename: str = "fleetlm"
    """The part of the node's name before the ``@``, the same on every node."""
    poll_interval_s: float = 5.0
    """Seconds between two DNS lookups: a new node is found within this time, for little load on DNS."""
    node_ip: str | None = None
    """The address in this node's name, under which peers reach it; or the interface or the network of this
    machine to take it from, such as ``eth1`` or ``10.8.0.0/16``. None: it is detected."""
    node_ports: tuple[int, int] = DEFAULT_PORTS
    """The first and the last TCP port of the range in which the node takes the first that is free, so that a
    machine can have several nodes. The first one is the same on every node of the cluster (`base_port`)."""
    node_slot: int | None = None
    """The node's fixed place in the range of ports, counted from 0, such as the rank of a worker: it listens
    on that port or does not start. None: the first free port."""
    bind: str | None = None
    """Where the node listens: an address, interface or network of this machine, or ``*`` for all its
    addresses, where peers reach it through another address than its own ones (NAT). None: its address, and
    its other addresses in the DNS answer."""
    cookie: str | None = field(default=None, repr=False)
    """The secret that all nodes share: peers without it are refused, and traffic is encrypted. None: plain
    text, and every node that can connect is admitted; a node with a public address does not start then."""
    other_cookies: tuple[str, ...] = field(default=(), repr=False)
    """Further secrets, while the cookie is changed: a node dials with them in turn where its first one is
    refused. Two nodes connect if each of them knows the first cookie of the other."""
    insecure: bool = False
    """Whether a node without a cookie starts at an address that may be reached from the Internet."""
    require_cookie: bool = False
    """Whether a node without a cookie starts nowhere, not even on a private network."""
    cluster: str = ""
    """The cluster's id: nodes with another id are refused. Tells two clusters on one network apart. The keys
    of the connections are derived from it and the cookie."""
    node_timeout_s: float = 8.0
    """Seconds of silence after which a peer is down, never earlier and at most a quarter later. Long enough
    for a short network fault, short enough for callers that wait."""
    drain_s: float = 25.0
    """Seconds in which a node that leaves finishes what it has begun: open calls and streams, and blocking
    functions. A node that has nothing open leaves at once. Its supervision trees then have what is left of
    this time, at least ``terminate_s``. With these five seconds it fits into the 30 that Kubernetes grants;
    ``docker stop`` grants only 10 unless it is told otherwise."""
    peers_may: frozenset[Right] = frozenset(RIGHTS)
    """What the other nodes of the cluster may do on this one: ``call``, ``spawn``, ``exit``, ``register``.
    All of it by default, as in Erlang: who knows the cookie is trusted. Take away what the others need not do
    where they are trusted less; docs/security.md says what needs which right."""
    remote: bool = True
    """Whether `fleetlm remote` can open a shell in this node, through a Unix socket of the same user."""
    ops: str | None = None
    """Where the ops listener (health, metrics, the page) listens: ``ip:port``, or ``:port`` for all
    addresses. The port may be a range such as ``4380-4395``, of which the first free one is taken. It needs
    the extra ``fleetlm[ops]``. None: there is no ops listener."""
    ops_token: str | None = field(default=None, repr=False)
    """The secret that the ops listener asks for, but for its health checks. Needed wherever it listens at
    more than a loopback address. None: whoever reaches the port reads all that the page shows."""
    local_road: bool = True
    """Whether messages to a node of the same host and user travel over a Unix socket, which takes about half
    the time of a single call. Handshakes and heartbeats use the network in any case. Only on Linux."""
    debug: bool = False
    """Whether local messages are encoded and decoded too, so that a message that cannot be sent to another
    node also fails on one node. Costs time for each message."""
    log: str = "text"
    """How `fleetlm start` writes its log: ``text`` for people, ``json`` for machines, one object a line."""
    dns_server: tuple[str, int] | None = None
    """Address and port of the name server to ask. None: the system's name servers."""
    fly_private_ip: str | None = None
    """This node's address as Fly.io's variable gives it; used unless ``node_ip`` is set."""
    pod_ip: str | None = None
    """This node's address as the pod's environment gives it; used after ``fly_private_ip``."""
    warnings: tuple[str, ...] = ()
    """Variables that look like a mistake but do no harm, as sentences; logged once at the start."""

    # Discovery.
    own_address_budget_s: float = 2.0
    """Seconds that a start may wait for DNS to list this node's address; then the next rule decides. Its
    record often appears a moment after the start, and a start must not depend on DNS for longer."""
    fast_poll_s: float = 0.25
    """Seconds between the first two lookups while no peer was ever seen; each further pause is twice as
    long, up to the interval. At the start NXDOMAIN is normal and does not last."""
    poll_jitter: float = 0.1
    """Each pause is longer or shorter by up to this fraction, so that nodes that start together do not ask
    together for ever."""
    forget_after_lookups: int = 3
    """A peer that is not connected is forgotten after this many successful lookups in a row without it, and
    not before ``forget_after_s``. A DNS answer is a sample, so one absence proves nothing."""
    forget_after_s: float = 30.0
    """Seconds after which a peer that is not connected may be forgotten: longer than a restart takes."""
    forget_unnamed_s: float = 600.0
    """Seconds after which a peer that is not connected, and that neither DNS nor a peer has named since, is
    forgotten whatever the outcomes of the lookups are: a resolver may give partial answers for ever. While
    DNS fails, the two sides of a partition that lasts longer can only meet again through DNS or a third
    node."""
    prune_after_lookups: int | None = None
    """Disconnect a *connected* peer after this many successful lookups in a row without it, until a lookup
    lists it again. Only for networks where DNS always lists every node. None: never."""
    max_peers: int = 1_024
    """Limit of known peers. A wildcard record or a wrong name must not use up memory or descriptors. In a
    full table a node that introduces itself takes the place of one that was never up and that DNS does not
    name."""
    allowed_networks: tuple[str, ...] = ()
    """Networks, such as ``10.0.0.0/8``, outside of which this node has no peers: it refuses nodes with other
    addresses, passes over such addresses in DNS answers, and believes no peer that names one. Empty: any."""
    unproven_dials_per_s: float = 10.0
    """Dials a second, of all together, to nodes that were never up and that DNS does not name: their names
    came from peers, or from whoever said to be them, and may be false. Twenty seconds' worth may be dialled
    at once, and each of them that comes up allows two more: a cluster forms without a pause."""
    hello_s: float = 1.0
    """Seconds between two introductions in the name of one peer that make this node dial it sooner than it
    would, once a few have. Everybody can send such introductions, and an honest peer sends few."""

    # Connections.
    dials_per_turn: int = 4
    """Peers that a node dials of itself in one turn of its event loop, about 3 ms of work. A DNS answer with
    a thousand names neither stops the loop, nor lets dials time out while the loop begins others."""
    connect_timeout_s: float = 3.0
    """Seconds for TCP to connect, and again for the ZMTP handshake. The kernel's own limit is 127 s, and a
    restarting pod must be dialled again sooner."""
    handshake_timeout_s: float = 5.0
    """Seconds for the handshake of two nodes. More than a connect takes, since the peer dials back."""
    stranger_s: float = 10.0
    """Seconds after which an accepted connection that is no peer's is ended: two handshakes."""
    max_strangers: int = 1_024
    """Accepted connections at a time that are no peer's, as many as nodes may dial together after an outage.
    Never more than a quarter of the limit of open files. One address may have a quarter of them. Beyond that
    the oldest ones end, of the addresses with most of them."""
    backoff_min_s: float = 0.25
    """The ceiling of the first pause before a peer is dialled again; it doubles with each failure. The pause
    itself is random below the ceiling, so that nodes do not dial in step."""
    backoff_max_s: float = 15.0
    """The highest ceiling of that pause: a peer that comes back is dialled within this time."""
    scan_s: float = 0.5
    """Seconds between dials of two ports of a host on whose base port no node answers; twice as long in each
    further round over its range, up to ``backoff_max_s``. Nodes take the lowest ports, so a host is found
    within a second or two, and one where nothing runs costs next to nothing."""
    foreign_backoff_max_s: float = 300.0
    """The longest pause before an address is dialled again where another program listens on the port: it
    cannot become a node by itself, and a node that gets the address later introduces itself."""
    settled_s: float = 10.0
    """Seconds that a connection must live to count as a success. Each one in a row that ends earlier doubles
    the pause before the next dial, up to twice ``backoff_max_s``: two nodes whose connections are reset after
    the handshake, or whose limits differ, go up and down a few times a minute instead of several times a
    second."""
    tick_s: float = 1.0
    """Seconds between two ticks of a node's loop to each peer; twice as many for more than 32 peers. A tick
    carries the loop's lag and costs 40 bytes."""
    busy_after_s: float = 3.0
    """Seconds without a tick after which a peer is listed as busy: three ticks were missed."""
    blocked_after_s: float = 1.0
    """Seconds after which an event loop that stands still is logged, with the function that blocks it. Long
    enough for a busy machine, short enough to say it before peers list the node as busy."""
    gossip_s: float = 1.0
    """Seconds between two messages that list this node's known peers, to one random peer each: news
    reaches n nodes in O(log n) rounds."""
    drain_ack_s: float = 1.0
    """Seconds that a node which drains waits for its peers to acknowledge that, before it refuses new work of
    the others: one tick. A peer whose loop is silent for longer is frozen or blocked, and is served until it
    has acknowledged."""
    drain_quiet_s: float = 5.0
    """Seconds after which a node that drains no longer waits for a process that takes none of its messages,
    unless it is an actor. A process without handlers cannot tell that it is done with a message; most take
    the next one within this time, and one that never does must not keep its node."""
    goodbye_flush_s: float = 0.5
    """Seconds for the last frames to leave when a node leaves. Leaving must end within 2 s even if peers
    are dead."""

    # Messages.
    batch_bytes: int = 64 * 1024
    """A batch of this size is sent at once. Bounds memory, and what one turn of the loop writes."""
    batch_messages: int = 1_024
    """A batch of this many messages is sent at once, at most 4,096. Bounds how long a receiver's loop decodes
    in one go."""
    batch_calls: int = 16
    """Calls or replies in a batch from which on it is sent, though the turn of the loop is not over: the
    other node works on them, while this one goes on. Else nodes with many open calls would work by turns."""
    window_bytes: int = 8 * 1024 * 1024
    """Bytes in flight to one peer before ``send`` waits: enough for 10 GB/s at a round trip of 0.8 ms."""
    max_unread_bytes: int = 64 * 1024 * 1024
    """Bytes that a peer has not taken before its connection ends. Whoever can wait does so at
    ``window_bytes``; exit signals and answers of the node itself cannot. Room for 500,000 of them, while a
    peer stands still."""
    large_bytes: int = 128 * 1024
    """A larger message travels in frames of its own; bytes, buffers and arrays of at least this size travel
    beside it, without being packed. Below it, copying costs less than frames. At least 1 KiB."""
    chunk_bytes: int = 256 * 1024
    """Larger messages are sent in chunks of this size, so that none delays a heartbeat on a slow path. Where
    only large messages travel, and fast, chunks have up to four times as much, but never more than half of
    ``bulk_window_bytes``, or of ``max_frame_bytes`` of this node and of the other one."""
    bulk_window_bytes: int = 2 * 1024 * 1024
    """Bytes of chunks in flight to one peer: a small message waits behind at most this much."""
    max_message_bytes: int = 64 * 1024 * 1024
    """Size limit of one message when packed. Sender and receiver each hold it in memory as a whole, and what
    it consists of takes more: at worst some 32 times as much, and 256 MiB. Send what is larger in a stream.
    All large messages of one peer that are on their way may not be larger together, either."""
    max_frame_bytes: int = 2 * 1024 * 1024
    """Size limit of one frame that ZeroMQ accepts, from strangers too: a batch or a chunk, with room to
    spare. A larger one ends its connection. Peers are told, and send smaller batches and chunks to a node
    that takes less than they do; at least 16 KiB."""
    unread_bytes: int = 32 * 1024 * 1024
    """Bytes that one peer may have sent and this node has not read, in its loop's delays; beyond them the
    connection ends. At least four windows, whatever is set: what an honest peer may have in flight, with its
    tables. All strangers together may have as much, and one of them a quarter."""
    max_nesting: int = 64
    """Depth limit of containers in a message. Deeper ones are a mistake, or an attack on the decoder's
    stack."""
    mailbox_limit: int = 4_096
    """Messages of one node that may wait for one process before its senders wait. Between two nodes the
    lower of their two limits holds. A message that is large, or holds many values, counts as several: one for
    each 16 KiB that it weighs, see `fleetlm.wire.weights`."""
    send_timeout_s: float = 30.0
    """Seconds that a ``send`` or ``cast`` waits for room before it raises `WouldBlock`, unless it has a limit
    of its own. A process that takes nothing for so long is stuck, or much slower than its senders."""
    inbound_turn_s: float = 0.001
    """Seconds of a turn of the event loop in which what peers sent is taken. The rest is taken in the next
    turns, of one peer after the other, which last half as long: what a peer asks for may be costly, and
    others must not wait. After such a turn the rest of the node comes first for up to ``inbound_turn_s``, if
    it has work to do."""
    stalled_after_s: float = 5.0
    """Seconds after which waiting for room is logged once, with both ends: longer than a burst takes."""
    max_open_calls: int = 65_536
    """Calls of one peer that may wait for replies of this node. A further call is refused as not
    delivered."""
    reply_queue_bytes: int = 64 * 1024 * 1024
    """Bytes of answers to one peer that wait for room in its window before processes take no further call of
    that peer, until some have left. As much as may wait for one process the other way."""
    no_credit_s: float = 60.0
    """Seconds after which a peer is disconnected that takes nothing of what is in flight to it though its
    loop is alive. Longer than a chunk takes on a very slow link, and than any burst needs to be decoded."""
    stream_window: int = 64
    """Items of one stream that may be on their way or wait for their consumer; then the producer waits. An
    item counts 1, and 1 more for each 16 KiB that it weighs, so that a stream of large items holds 1 MiB, or
    one item."""
    stream_idle_s: float | None = 60.0
    """Seconds that a stream may pause, unless it is asked for with limits of its own. Its consumer waits no
    longer for an item, and its producer no longer for its consumer: either is considered stuck, and a stuck
    consumer must not keep an actor from its other callers. None: without limit."""
    concurrent_handlers: int = 100
    """Concurrent handlers that run at once in one actor. They mostly ask a database or a GPU, where further
    requests would only wait."""
    terminate_s: float = 5.0
    """Seconds for an actor's ``terminate``, and before it for its concurrent handlers to end.
    Source: OTP's default shutdown time of a worker."""
    init_s: float = 60.0
    """Seconds for the ``init`` of an actor that a supervisor starts; then it is killed, which counts as a
    failed start. Longer than most start-ups take, and short enough that an ``init`` that hangs is not
    taken for a slow one. `Child.init_s` sets it for one child. Source: OTP gen_server:start_link/3, its
    time-out; differs: there is one by default."""
    max_links_and_monitors: int = 262_144
    """Links and monitors that processes of one peer may hold on processes of this node: more than twice those
    of 100,000 processes, in 150 MiB. A further one ends at once with the reason ``"system_limit"``."""
    max_spawned: int = 65_536
    """Living processes of this node that one peer may have spawned: room for a session of each of its users,
    in 200 MiB. A further one is refused as not delivered."""
    spawns_per_s: float = 2_000.0
    """Processes that one peer may spawn on this node in a second, after as many at once. Further ones wait
    for their turn, so that others go on: one costs as much as fifty messages. What would wait for more than
    5 s is refused with `WouldBlock`."""
    max_timers: int = 10_000
    """Active timers of one process. One `Process.send_every` replaces many; more are a leak."""
    max_factories: int = 1_024
    """Factories that a program may register for spawning from other nodes. A program has few; more are
    a leak."""
    call_timeout_s: float = 5.0
    """Default deadline of a call, in seconds. Source: OTP gen.erl, DEFAULT_TIMEOUT."""
    events_limit: int = 10_000
    """Events kept for a subscriber that does not read them; beyond it, a fresh snapshot replaces them."""
    max_memberships: int = 131_072
    """Limit of memberships in process groups of one node's processes: room for 100,000 processes in one
    group each, whose list fits into a window. A peer with more is disconnected, so set the same limit on
    all nodes."""

    max_sticky_keys: int = 65_536
    """Keys of ``by="sticky"`` whose members this node remembers, of all groups together: some 20 MiB. Those
    that were used longest ago are forgotten first."""
    sticky_idle_s: float = 3_600.0
    """Seconds after which a key of ``by="sticky"`` that was not used is forgotten: longer than a person
    pauses in a session, and short enough that keys of old sessions do not keep the place of new ones."""

    # Repetitions of requests, by `fleetlm.retry` and by calls to groups.
    retry_ratio: float = 0.1
    """Repetitions that each call earns: all callers of this node together make at most a tenth more requests
    than they would without, however much fails. Source: Finagle's RetryBudget has a fifth, Envoy too."""
    retry_reserve: int = 10
    """Repetitions that a node may make at once without having earned them, for programs that call rarely. One
    comes back every 10 s."""
    retry_saved: int = 100
    """Earned repetitions that a node may save: enough for the requests that the end of one busy node refuses,
    and little beside the load of a node that makes so many. Source: AWS SDKs, 500 tokens of which each
    repetition takes 5."""
    retry_pause_min_s: float = 0.05
    """The ceiling of the first pause before a request is repeated at the same process, in seconds; it
    doubles with each. The pause itself is random below the ceiling. Long enough for a moment's burst."""
    retry_pause_max_s: float = 2.0
    """The highest ceiling of that pause: what comes back is asked again within this time."""

    # Cluster-wide names. A peer that exceeds these limits is disconnected, so set them alike on all nodes.
    max_cluster_names: int = 65_536
    """Limit of cluster-wide names of one node. Every node stores the names of all nodes."""
    max_meta_bytes: int = 4_096
    """Size limit of the meta of a name, or of a member of a process group, when packed; at most 64 KiB. Every
    node stores it: it describes a process, and is not the place for its state."""
    max_names_bytes: int = 8 * 1024 * 1024
    """Size limit of all names of one node with their metas. They are sent in one go when two nodes connect,
    and must stay well within what may be in flight."""

    # Members of process groups that tell of themselves.
    max_metas_bytes: int = 32 * 1024 * 1024
    """Size limit of all metas of one node's members, with the names of their groups: what every other node
    keeps for it. Room for 100,000 members with 300 bytes each. In memory they may take eight times as much.
    A peer with more is disconnected, so set the same limit on all nodes."""
    gauge_s: float = 0.1
    """Seconds between two frames in which a node tells what its members have reported, and what it has
    outstanding at members: often enough for balancing, and at most ten small frames a second."""
    gauge_stale_s: float = 3.0
    """Seconds after which a member's report says nothing any more; the member then counts as the others do
    in the mean. Three times as long as most members need to report again."""
    newcomer_s: float = 5.0
    """Seconds in which a member that has joined is given more work little by little, by rules that compare
    loads: caches and connections are cold, and every node sees it idle at the same time."""

    # Tables of programs (`Node.table`). A peer that exceeds these limits is disconnected: set them alike.
    max_rows: int = 16_384
    """Limit of rows of one node, in all tables. Every node stores the rows of all nodes."""
    max_row_bytes: int = 4_096
    """Size limit of the value of one row when packed, at most 64 KiB. A row tells of its node, and is not the
    place for its data."""
    max_rows_bytes: int = 8 * 1024 * 1024
    """Size limit of all rows of one node, with their keys: what every other node keeps for it. In memory the
    values may take eight times as much."""

    # Checks of readiness, and hooks of a node that leaves.
    check_s: float = 3.0
    """Seconds for one check of readiness (`Node.add_check`). Platforms often give a probe 5 seconds, of which
    the start of Python takes a part."""
    hook_s: float = 5.0
    """Default seconds for one hook of a node that leaves (`Node.on_leaving`): as for the end of an actor."""
    hook_threads: int = 8
    """Plain functions among these checks and hooks that run at once. Their threads are not those of
    `Node.run_blocking`, so that a node whose threads all work is still ready."""
    max_hooks: int = 1_024
    """Limit of checks, and of hooks. A program has few; more are a leak."""

    # Blocking functions.
    blocking_threads: int = 32
    """Functions of `Node.run_blocking` that run at once. They mostly wait, but each thread holds memory, and
    a driver often a connection."""
    blocking_generators: int = 32
    """Generators of `Node.stream_blocking` that are open at once: each has a thread until it ends."""
    blocking_processes: int | None = None
    """Functions of `Node.run_in_process` that run at once. None: one for each CPU that this process may
    use, since they compute."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read and check the environment.

        Args:
            environ: variables and their values; default: the environment of this process.

        Raises:
            SettingsError: a variable is unknown or has a value that is not allowed. The error names the
                first such variable, its value and what is allowed, and the nearest known name for an
                unknown ``FLEETLM_*`` variable.
        """
        env = os.environ if environ is None else environ
        _refuse_unknown(env)
        values: dict[str, object] = {}
        for variable, name, parse in _VARIABLES:
            if variable in env:
                values[name] = _parse(variable, env[variable], parse)
        slot = values.get("node_slot")
        if isinstance(slot, int):  # Checked here too, so that the error names the variable.
            _check_slot("FLEETLM_NODE_SLOT", slot, values.get("node_ports", DEFAULT_PORTS))
        cookies = read_cookies(env)
        if values.get("require_cookie") and cookies.own is None:
            raise SettingsError("FLEETLM_REQUIRE_COOKIE", "1", *_COOKIE_REQUIRED)
        values["cookie"], values["other_cookies"] = cookies.own, cookies.others
        values["ops_token"], token_warnings = read_token(env)
        place = values.get("ops")
        if isinstance(place, str) and not (values["ops_token"] or is_loopback(split_ops(place)[0])):
            raise SettingsError("FLEETLM_OPS", env["FLEETLM_OPS"], *_TOKEN_REQUIRED)
        values["warnings"] = (
            *cookies.warnings,
            *token_warnings,
            *_find_near_misses(env),
            *_warn_about_polling(values),
        )
        return cls(**values)  # type: ignore[arg-type]  # each parser returns its field's type

    @property
    def clustering(self) -> bool:
        """Whether this node looks for peers."""
        return self.dns_query is not None

    @property
    def base_port(self) -> int:
        """The port of a node whose name has none: the first of the range.

        Where SRV records (a query that begins with ``_``) give each node a port of its own, it is 4370.
        """
        return _base_port(self.dns_query or "", self.node_ports[0])

    @property
    def all_ports(self) -> range:
        """The range of ports in which the nodes of this machine listen."""
        return range(self.node_ports[0], self.node_ports[1] + 1)

    @property
    def own_ports(self) -> range:
        """The ports to try when the node starts: that of `node_slot`, or the whole range."""
        slot = self.node_slot
        return self.all_ports if slot is None else self.all_ports[slot : slot + 1]

    @property
    def dns_lifetime_s(self) -> float:
        """Seconds for one lookup with all its retries; below the interval, so that lookups never overlap."""
        return min(3.0, max(0.2, 0.8 * self.poll_interval_s))

    @property
    def heartbeat_slack_s(self) -> float:
        """Seconds by which the timers of heartbeats may be late, so that several fire together."""
        return self.node_timeout_s / 64

    @property
    def heartbeat_interval_s(self) -> float:
        """Seconds between two ZMTP PINGs, but for their slack.

        A silent peer is noticed up to a quarter of the node time-out late: by this interval, and by the
        slack of the two timers that run one after the other, that of the PING and `heartbeat_timeout_s`.
        """
        return self.node_timeout_s / 4 - 2 * self.heartbeat_slack_s

    @property
    def heartbeat_timeout_s(self) -> float:
        """Seconds without any frame after a PING that end a connection: the whole node time-out.

        libzmq starts this timer with the first PING after the last frame that came, so the silence itself is
        longer than this by at most one `heartbeat_interval_s` and the slack of both timers.
        """
        return self.node_timeout_s

    @property
    def longest_silence_s(self) -> float:
        """Seconds after which a silent peer is certainly down."""
        return self.heartbeat_timeout_s + self.heartbeat_interval_s + 2 * self.heartbeat_slack_s

    def replace(self, **changes: object) -> Settings:
        """Return a copy with other values. Raises: SettingsError, as the constructor."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # checked by dataclasses

    def effective(self) -> dict[str, str]:
        """Return the effective value of each variable, with secrets masked; logged once at the start."""
        return {
            "DNS_CLUSTER_QUERY": self.dns_query or "(unset: clustering is off)",
            "DNS_CLUSTER_NODE_BASENAME": self.node_basename,
            "DNS_POLL_INTERVAL_MS": f"{self.poll_interval_s * 1000:.12g}",
            "FLEETLM_NODE_IP": self.node_ip or "(detected)",
            "FLEETLM_NODE_PORT": format_ports(self.node_ports),
            "FLEETLM_NODE_SLOT": "(the first free port)" if self.node_slot is None else str(self.node_slot),
            "FLEETLM_COOKIE": "(set)" if self.cookie else "(unset: plain text)",
            "FLEETLM_COOKIE_OLD": "(set)" if self.other_cookies else "(unset)",
            "FLEETLM_BIND": self.bind or "(the node's address)",
            "FLEETLM_INSECURE": "1" if self.insecure else "0",
            "FLEETLM_REQUIRE_COOKIE": "1" if self.require_cookie else "0",
            "FLEETLM_CLUSTER": self.cluster or "(empty)",
            "FLEETLM_ALLOWED_NETWORKS": ",".join(self.allowed_networks) or "(any)",
            "FLEETLM_NODE_TIMEOUT_MS": f"{self.node_timeout_s * 1000:.12g}",
            "FLEETLM_DRAIN_MS": f"{self.drain_s * 1000:.12g}",
            "FLEETLM_PEERS_MAY": format_rights(self.peers_may),
            "FLEETLM_REMOTE": "on" if self.remote else "off",
            "FLEETLM_OPS": self.ops or "off",
            "FLEETLM_OPS_TOKEN": "(set)" if self.ops_token else "(unset)",
            "FLEETLM_LOCAL_ROAD": "on" if self.local_road else "off",
            "FLEETLM_DEBUG": "1" if self.debug else "0",
            "FLEETLM_DNS_SERVER": endpoint(*self.dns_server) if self.dns_server else "(system)",
            "FLEETLM_LOG": self.log,
            "FLEETLM_PRUNE_AFTER_LOOKUPS": str(self.prune_after_lookups or "(never)"),
        }


def _parse(variable: str, text: str, parse: Callable[[str], T]) -> T:
    """Parse the value of a variable. Raises: SettingsError."""
    if text.startswith(_SERVICE_LINK_VALUES) and variable.startswith("FLEETLM_"):
        raise SettingsError(
            variable,
            text,
            "a value set for this node",
            "This value is a service link that Kubernetes injects for a Service of that name: set "
            "enableServiceLinks: false in the pod, or rename the Service.",
        )
    try:
        return parse(text.strip())
    except Refused as refused:
        raise SettingsError(variable, text, refused.allowed, refused.hint) from None


def _check_slot(what: str, slot: int, ports: Any) -> None:
    """Raise SettingsError unless the range has that place."""
    first, last = ports
    if first + slot > last:
        allowed = f"a place in the range {format_ports(ports)}, from 0 to {last - first}"
        raise SettingsError(what, str(slot), allowed, f"Widen the range: FLEETLM_NODE_PORT={first}-….")


_SECONDS_THAT_MAY_BE_ZERO = frozenset(
    {
        "own_address_budget_s",
        "forget_after_s",
        "forget_unnamed_s",
        "goodbye_flush_s",
        "drain_s",
        "terminate_s",
    }
)
_RANGES: dict[str, tuple[float, float]] = {
    "node_slot": (0, MAX_NODE_PORTS - 1),
    "poll_interval_s": (0.001, MAX_DURATION_MS / 1000),
    "node_timeout_s": (0.2, MAX_DURATION_MS / 1000),
    "poll_jitter": (0, 1),
    "retry_ratio": (0, 1),
    "retry_reserve": (0, math.inf),
    "max_nesting": (1, 128),
    "batch_messages": (1, MAX_BATCH_MESSAGES),
    "large_bytes": (1_024, math.inf),
}
"""Ranges of fields for which the rule of `_range_of` is too wide."""


def _range_of(name: str) -> tuple[float, float]:
    """Return the lowest and the highest value of a number: at least 1, and at most one day of seconds."""
    if name in _RANGES or not name.endswith("_s"):
        return _RANGES.get(name, (1, math.inf))
    return 0 if name in _SECONDS_THAT_MAY_BE_ZERO else 1e-6, MAX_DURATION_MS / 1000


_PAIRS: dict[str, tuple[tuple[type, type], str, Callable[[Any, Any], object]]] = {
    "node_ports": (
        (int, int),
        f"the first and the last port of a range of at most {MAX_NODE_PORTS}, such as (4370, 4385)",
        lambda first, last: parse_ports(f"{first}-{last}"),
    ),
    "dns_server": (
        (str, int),
        "the IP address of a name server and its port, such as ('10.0.0.2', 53)",
        lambda ip, port: parse_dns_server(endpoint(ip, port)),
    ),
}
"""Fields with two parts: their types, what is allowed, and their parser."""


def _check_networks(value: Any) -> Any:
    """Return the networks of `Settings.allowed_networks` as they are kept. Raises: SettingsError."""
    hint = ""
    if type(value) is tuple and all(type(part) is str for part in value):
        try:
            return parse_networks(",".join(value)) if value else value
        except Refused as refused:
            hint = refused.hint
    allowed = "a tuple of networks such as ('10.0.0.0/8', 'fd00::/8')"
    raise SettingsError("Settings.allowed_networks", SHORT.repr(value), allowed, hint)


def _check_field(name: str, annotation: str, value: Any) -> Any:
    """Return the value of a field as it is kept. Raises: SettingsError."""
    kind, _, optional = annotation.partition(" | ")
    if value is None and optional == "None":
        return None
    hint = ""
    if kind in ("int", "float"):
        low, high = _range_of(name)
        unit = "seconds, " if name.endswith("_s") else "bytes, " if name.endswith("_bytes") else ""
        whole, top = "whole " if kind == "int" else "", "" if high == math.inf else f" to {high:,.15g}"
        allowed = f"{unit}a {whole}number from {low:g}{top}"
        is_right = type(value) is int or (kind == "float" and type(value) is float)
        if is_right and low <= value <= high:  # nan is in no range
            return value
        hint = "" if is_right else f"This is of type {type(value).__name__}."
    elif kind == "bool":
        allowed = "True or False"
        if type(value) is bool:
            return value
    elif kind == "str":
        allowed = "a text"
        if type(value) is str:
            try:
                return _PARSERS.get(name, str)(value)
            except Refused as refused:
                allowed, hint = refused.allowed, refused.hint
    elif name in _PAIRS:
        types, allowed, parse = _PAIRS[name]
        if type(value) is tuple and tuple(type(part) for part in value) == types:
            try:
                return parse(*value)
            except Refused as refused:
                hint = "" if name == "dns_server" else refused.hint
    else:
        return value
    shown = MASKED if "cookie" in name or "token" in name else SHORT.repr(value)
    raise SettingsError(f"Settings.{name}", shown, allowed, hint)


def _check_rights(value: Any) -> frozenset[Right]:
    """Return the rights of peers as they are kept. Raises: SettingsError."""
    allowed = f"a set of {', '.join(RIGHTS)}"
    try:
        if isinstance(value, frozenset | set | tuple | list):
            return check_rights(value)
    except Refused:
        pass
    raise SettingsError("Settings.peers_may", SHORT.repr(value), allowed)


_VARIABLES: tuple[tuple[str, str, Callable[[str], object]], ...] = (
    ("DNS_CLUSTER_QUERY", "dns_query", parse_query),
    ("DNS_CLUSTER_NODE_BASENAME", "node_basename", parse_basename),
    ("DNS_POLL_INTERVAL_MS", "poll_interval_s", parse_seconds(1)),
    ("FLEETLM_NODE_IP", "node_ip", parse_node_ip),
    ("FLEETLM_NODE_PORT", "node_ports", parse_ports),
    (
        "FLEETLM_NODE_SLOT",
        "node_slot",
        parse_integer(0, MAX_NODE_PORTS - 1, "the node's place in the range of FLEETLM_NODE_PORT"),
    ),
    ("FLEETLM_BIND", "bind", parse_bind),
    ("FLEETLM_INSECURE", "insecure", parse_flag),
    ("FLEETLM_REQUIRE_COOKIE", "require_cookie", parse_flag),
    ("FLEETLM_CLUSTER", "cluster", parse_cluster),
    ("FLEETLM_ALLOWED_NETWORKS", "allowed_networks", parse_networks),
    ("FLEETLM_NODE_TIMEOUT_MS", "node_timeout_s", parse_seconds(200)),
    ("FLEETLM_DRAIN_MS", "drain_s", parse_seconds(0)),
    ("FLEETLM_PEERS_MAY", "peers_may", parse_rights),
    ("FLEETLM_REMOTE", "remote", parse_switch),
    ("FLEETLM_OPS", "ops", parse_ops),
    ("FLEETLM_LOCAL_ROAD", "local_road", parse_switch),
    ("FLEETLM_DEBUG", "debug", parse_flag),
    ("FLEETLM_DNS_SERVER", "dns_server", parse_dns_server),
    ("FLEETLM_LOG", "log", parse_log),
    ("FLEETLM_PRUNE_AFTER_LOOKUPS", "prune_after_lookups", parse_integer(1, 1_000_000, "lookups in a row")),
    ("FLY_PRIVATE_IP", "fly_private_ip", parse_platform_ip),
    ("POD_IP", "pod_ip", parse_platform_ip),
)
_PARSERS: dict[str, Callable[[str], object]] = {name: parse for _, name, parse in _VARIABLES}
_PARSERS["cookie"] = parse_cookie
_PARSERS["ops_token"] = check_token
_KNOWN = (
    *(variable for variable, _, _ in _VARIABLES),
    "FLEETLM_COOKIE",
    "FLEETLM_COOKIE_FILE",
    "FLEETLM_COOKIE_OLD",
    "FLEETLM_OPS_TOKEN",
    "FLEETLM_OPS_TOKEN_FILE",
    TAKEN,
    OPS_TAKEN,
)
_COOKIE_REQUIRED = (
    "only where a cookie is set",
    "Make one with `fleetlm cookie`, and set FLEETLM_COOKIE to it on every node.",
)

_TOKEN_REQUIRED = (
    "a loopback address such as 127.0.0.1:4380, or any other beside a token",
    "Make a token with `fleetlm cookie`. Set FLEETLM_OPS_TOKEN to it, or FLEETLM_OPS_TOKEN_FILE to its file.",
)


def _refuse_unknown(env: Mapping[str, str]) -> None:
    """Raise SettingsError for a ``FLEETLM_*`` variable that is neither known nor a service link."""
    for variable in sorted(env):
        if not variable.startswith("FLEETLM_") or variable in _KNOWN:
            continue
        if re.fullmatch(_SERVICE_LINK, variable, re.ASCII) or _is_service_link(variable, env[variable]):
            continue
        known = [name for name in _KNOWN if name.startswith("FLEETLM_") and name not in (TAKEN, OPS_TAKEN)]
        near = _nearest(variable, known)
        guess = f"Did you mean {near[0]}?" if near else "Unset it."
        raise SettingsError(variable, MASKED, f"only known variables: one of {', '.join(known)}", guess)


def _is_service_link(variable: str, value: str) -> bool:
    """Whether a variable is a service link such as ``FLEETLM_WORKER_PORT=tcp://…``; its value shows it."""
    return variable.endswith("_PORT") and value.startswith(_SERVICE_LINK_VALUES)


def _find_near_misses(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return warnings for misspelt ``DNS_*`` variables. Other programs use that prefix: none is refused."""
    ours = [name for name in _KNOWN if name.startswith("DNS_")]
    found = []
    for variable in sorted(env):
        if variable.startswith("DNS_") and variable not in ours:
            near = _nearest(variable, ours, cutoff=0.8)
            if near:
                found.append(f"{variable} is set, but fleetlm does not know it: did you mean {near[0]}?")
    return tuple(found)


def _warn_about_polling(values: Mapping[str, object]) -> tuple[str, ...]:
    """Return a warning for an interval so short that it burdens name servers without finding nodes sooner."""
    interval_s, query = values.get("poll_interval_s"), values.get("dns_query")
    if not isinstance(interval_s, float) or interval_s >= SHORT_POLL_S or query is None:
        return ()
    warning = (
        f"DNS_POLL_INTERVAL_MS is {interval_s * 1000:.12g}: this node asks its name servers up to "
        f"{2 / interval_s:,.0f} questions a second for each name. Nodes also hear of new ones from their "
        "peers, and a lost connection starts a lookup at once: 1000 or more is enough"
    )
    return (warning,)
