"""What happens before a node exists: settings, this node's address, the network; and its start.

`Node.start` returns a `NodeStarting`. Awaited or entered, it prepares what a node is made from
(`prepare`) and hands that to a function which makes and starts the node. This module does not know the
class of the node: it starts whatever that function returns.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from fleetlm.blocking.patched import patched_by, why_no_threads
from fleetlm.cookies import take_cookies
from fleetlm.core.exposure import EVERYWHERE, check_exposure, describe_exposure, refuse_exposed
from fleetlm.discovery.interface import Discovery
from fleetlm.discovery.interfaces import local_addresses
from fleetlm.discovery.listening_addresses import choose_listening, list_reached
from fleetlm.discovery.own_address import OwnAddress, Rule, own_address
from fleetlm.errors import SettingsError
from fleetlm.names import NodeName, canonical_ip, endpoint
from fleetlm.ops_token import take_token
from fleetlm.records import Record
from fleetlm.runtime.termination import EXIT_CODE, Termination
from fleetlm.settings import Settings

if TYPE_CHECKING:
    from types import TracebackType

    from fleetlm.core.dns_answers import Answer
    from fleetlm.transport.interface import Transport

log: logging.Logger = logging.getLogger("fleetlm")

REMOTE_SHELL = "fleetlm.remote.server:RemoteServer"
"""The service behind `fleetlm remote`. It stands above the node in the table of imports, so it is loaded
by name. Source: uvicorn's protocol classes (``--http``)."""
HEALTH = "fleetlm.remote.health_server:HealthServer"
"""The service behind `fleetlm health --ready`, likewise."""

OPS = "fleetlm.ops.service:OpsService"
"""The ops listener. It needs the extra ``fleetlm[ops]``, and says so where that is missing."""


class Service(Protocol):
    """A part that a node starts last, and stops before it closes its transport.

    Its class is called with the node as its only argument.
    """

    async def start(self) -> None:
        """Begin to serve. If this raises, the node is stopped, and `Node.start` raises the same."""

    async def stop(self, reason: str, asked_by: asyncio.Task[Any] | None) -> None:
        """Stop serving.

        Args:
            reason: why the node stops.
            asked_by: the task that asked the node to stop; the service must not wait for it.
        """


class Leaving(Protocol):
    """What `NodeStarting` needs of a node: that it stops at the end of a block."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the node, for a reason that says how the block ended."""


N = TypeVar("N", bound=Leaving)
_HOW_TO_START = "write `node = await Node.start(...)`, or `async with Node.start(...) as node:`"


class Prepared(Record):
    """What a node is made from."""

    settings: Settings
    own_address: OwnAddress
    discovery: Discovery | None
    """Where peers are looked for; None: clustering is off."""
    first_answer: Answer | None
    """The answer that DNS gave while this node's address was decided."""
    transport: Transport
    rng: random.Random
    wall_ms: int
    """Milliseconds of the wall clock at the start."""
    services: tuple[str, ...]
    """Names of the services for the commands of `fleetlm`, ``module:Class``; none in a simulation."""
    on_this_network: bool
    """False in a simulation, where this machine's addresses and users do not matter."""
    port: int | None = None
    """The port that the transport has taken; None: none yet (see `take_port`)."""
    listening: tuple[str, ...] = ()
    """The addresses at which the node listens, or `EVERYWHERE`; empty in a simulation: its own one."""
    exposure_warning: str | None = None
    """Who can join the cluster because there is no cookie, and what to do; None: nobody."""
    refuse: Callable[[str], str | None] | None = None
    """Why connections to an address of this machine are refused; see `core.exposure.refuse_exposed`."""

    @property
    def name(self) -> str:
        """The name of the node: ``basename@ip``, with the port if it is not the base port of the cluster."""
        s = self.settings
        port = None if self.port == s.base_port else self.port
        return str(NodeName(s.node_basename, self.own_address.ip, port))

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where the node listens, as ``ip:port``; ``*`` stands for all addresses of its machine."""
        port = self.port or self.settings.base_port
        ips = self.listening or (self.own_address.ip,)
        return tuple(f"*:{port}" if ip == EVERYWHERE else endpoint(ip, port) for ip in ips)


async def prepare(
    settings: Settings | None,
    discovery: Discovery | None,
    transport: Transport | None,
    rng: random.Random,
    wall_ms: int,
) -> Prepared:
    """Collect what a node is made from.

    Takes at most `Settings.own_address_budget_s` seconds, which is the time that this node's address
    may take to be decided. Opens nothing that would have to be closed again.

    Args:
        settings: None: read from the environment.
        discovery: None: DNS, if `Settings.dns_query` is set.
        transport: None: ZeroMQ.
        rng: source of jitter, of the incarnation and of the epochs of dials.
        wall_ms: milliseconds of the wall clock.

    Raises:
        SettingsError: a setting cannot be used.
    """
    settings = Settings.from_env() if settings is None else settings
    for warning in settings.warnings:
        log.warning("%s", warning)
    if discovery is None and settings.dns_query is not None:
        # Imported here: a node without DNS starts faster without dnspython.
        from fleetlm.discovery.dns import DnsDiscovery  # noqa: PLC0415

        discovery = DnsDiscovery(
            settings.dns_query, server=settings.dns_server, lifetime_s=settings.dns_lifetime_s
        )
    on_this_network = transport is None
    if settings.node_ip is not None and not on_this_network:
        # A simulated address must not be looked for on this machine.
        if canonical_ip(settings.node_ip) is None:
            allowed = "an address, since a simulated network has no interfaces"
            raise SettingsError("Settings.node_ip", repr(settings.node_ip), allowed)
        address, first = OwnAddress(settings.node_ip, "it was given", Rule.EXPLICIT), None
    else:
        address, first = await own_address(settings, discovery, budget_s=settings.own_address_budget_s)
    if transport is not None:
        return Prepared(settings, address, discovery, first, transport, rng, wall_ms, (), False)
    interfaces = local_addresses() or ()
    listening = choose_listening(settings.bind, address, interfaces)
    reached = list_reached(address, listening, interfaces)
    check_exposure(settings, reached)
    if settings.cookie is not None:
        take_cookies(os.environ)
    if settings.ops_token is not None:
        take_token(os.environ)
    # Imported here: a simulation does not load ZeroMQ.
    from fleetlm.transport.zeromq import ZmqTransport  # noqa: PLC0415

    refuse = refuse_exposed(settings, listening)
    transport = ZmqTransport(settings, aliases=listening[1:], refuse=refuse)
    return Prepared(
        settings, address, discovery, first, transport, rng, wall_ms,
        services=(HEALTH, *([REMOTE_SHELL] if settings.remote else []), *([OPS] if settings.ops else [])),
        on_this_network=True,
        listening=listening,
        exposure_warning=describe_exposure(settings, reached),
        refuse=refuse,
    )  # fmt: skip


async def take_port(prepared: Prepared) -> Prepared:
    """Take the first free port, which decides the node's name. From then on its transport must be closed.

    Raises:
        StartFailed: there is none.
    """
    ip = prepared.listening[0] if prepared.listening else prepared.own_address.ip
    port = await prepared.transport.bind(ip, prepared.settings.own_ports)
    return replace(prepared, port=port)


def warn_about(prepared: Prepared) -> None:
    """Log what an operator should know: a doubtful address, or a cluster that is open to its network."""
    if not prepared.on_this_network:
        return
    patch = patched_by()
    if patch:
        log.warning("%s", why_no_threads(patch))
    own = prepared.own_address
    if own.warning:
        log.warning("%s", own.warning)
    if prepared.exposure_warning:
        log.warning("%s", prepared.exposure_warning)


def load_service(name: str) -> Callable[[Any], Service]:
    """Import the class of a service.

    Args:
        name: ``module:Class``.

    Raises:
        ImportError, AttributeError: there is no such module, or it has no such class.
    """
    module, _, attribute = name.partition(":")
    service: Callable[[Any], Service] = getattr(importlib.import_module(module), attribute)
    return service


class NodeStarting(Generic[N]):
    """What `Node.start` returns: ``node = await Node.start()``, or ``async with Node.start() as node``.

    As a context manager it stops the node at the end of the block. The peers see the reason
    ``shutdown``, also if the block was cancelled (Ctrl-C cancels the main task), or
    ``crashed: TypeName`` if the block raised another exception. `runtime.termination` describes what SIGTERM
    does meanwhile.
    """

    def __init__(
        self,
        begin: Callable[[Prepared], Awaitable[N]],
        settings: Settings | None,
        discovery: Discovery | None,
        transport: Transport | None,
        rng: random.Random | None,
        wall_ms: int | None,
    ) -> None:
        self._begin = begin
        self._settings = settings
        self._discovery = discovery
        self._transport = transport
        self._rng = rng
        self._wall_ms = wall_ms
        self._node: N | None = None
        self._termination = Termination()

    if not TYPE_CHECKING:  # A type checker says it by itself.

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"there is no node yet that has .{name}: {_HOW_TO_START}")

        def __enter__(self) -> Any:
            raise TypeError(f"a node is started and stopped by its event loop: {_HOW_TO_START}")

        def __exit__(self, *_: object) -> None:
            """Never called: the block does not begin."""

    def __await__(self) -> Generator[Any, None, N]:
        return self._start().__await__()

    async def __aenter__(self) -> N:
        if self._transport is None:  # A simulation is not a program that leaves.
            self._termination.begin()
        try:
            self._node = await self._start()
        except BaseException as error:
            self._exit_if_terminated(error)
            raise
        return self._node

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._node is not None:
                await self._node.__aexit__(kind, error, traceback)
        finally:
            self._exit_if_terminated(error)

    def _exit_if_terminated(self, error: BaseException | None) -> None:
        """Raise SystemExit if SIGTERM has ended the block, rather than an error of the program."""
        if self._termination.end() and (error is None or isinstance(error, asyncio.CancelledError)):
            raise SystemExit(EXIT_CODE)

    async def _start(self) -> N:
        wall_ms = int(time.time() * 1000) if self._wall_ms is None else self._wall_ms
        # Epochs and incarnations must not be guessed, and `random.Random` tells its next numbers by its last.
        rng = random.SystemRandom() if self._rng is None else self._rng
        prepared = await prepare(self._settings, self._discovery, self._transport, rng, wall_ms)
        prepared = await take_port(prepared)
        try:
            return await self._begin(prepared)
        except BaseException:
            await prepared.transport.close()
            raise
