"""Looks for the nodes of a host whose ports are not known: dials its range of ports, slowly.

An A or AAAA record names a host, not a port. Nearly always one node listens on the base port and tells of
the others. Where none does (its process has ended, and nothing has taken its port since), this module names
further ports to dial, one at a time, in the order in which nodes take them:

* on another host one port every `Settings.scan_s`; after each round over the range the pause doubles, up to
  `Settings.backoff_max_s`. One connected node of that host ends the search.
* on this node's own host all ports at once when it starts. Nodes that start together find each other in any
  case: each has its port before it looks, so the one that looks last finds the other. From then on the ports
  below its own, in rounds as on others, for as long as this node runs. So of two nodes of a host the one on
  the higher port looks for the other until it knows it, and the nodes of a host never stay apart, even if
  they were cut off from each other until they had forgotten each other and each side has connected nodes of
  this host. Nodes take the lowest ports, so the ports below are known and nothing is dialled, unless a node
  there has ended.

All hosts together are limited to `MAX_DIALS` dials in progress and one dial every `GAP_S` (those of the own
host at the start apart), so that an answer with a thousand dead addresses is no storm. A dial that fails
leaves nothing behind: no row, no log line. The kernel asks what answers for its name (PROBE, IAM), and
forgets the channel. A port where another program answers is left alone for `Settings.backoff_max_s`, and
twice as long each further time, up to `Settings.foreign_backoff_max_s`: it may be a node that stands still.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fleetlm.core.effects import Dial, Effect, HangUp
from fleetlm.records import Row

if TYPE_CHECKING:
    from fleetlm.settings import Settings

MAX_DIALS: Final = 16
"""Dials of this module in progress at one time: each takes five descriptors."""
GAP_S: Final = 1 / 64
"""Seconds between two dials, of whichever hosts."""


class Search(Row):
    """A dial of a port of which it is not known whether a node listens there."""

    ip: str
    port: int
    until: float


class _Foreign(Row):
    """A port where another program answered: how long it is left alone, and until when."""

    pause_s: float
    until: float


class _Round:
    """Where the search of one host stands."""

    __slots__ = ("at", "foreign", "is_burst", "rounds")

    def __init__(self, *, is_burst: bool) -> None:
        self.at: int = 0
        """Index of the next port."""
        self.rounds: int = 0
        """Rounds over the whole range that have ended."""
        self.is_burst: bool = is_burst
        """Whether all ports of the own host are dialled at once."""
        self.foreign: dict[int, _Foreign] = {}
        """The ports where another program answered when they were dialled last."""


class PortScan:
    """Decides which port of which host to dial next.

    Args:
        settings: the range and the pauses.
        own_ip: the address of this node.
        own_port: its port, which is never dialled there.
        is_wanted: whether another host is still to be searched; one that is not is forgotten.
    """

    def __init__(
        self, settings: Settings, own_ip: str, own_port: int, is_wanted: Callable[[str], bool]
    ) -> None:
        self.searches: dict[int, Search] = {}
        """Channel → what it dials."""
        self._settings = settings
        self._own_ip = own_ip
        self._is_wanted = is_wanted
        ports, base_port = settings.all_ports, settings.base_port
        # With SRV records each node has a port of its own, and no range says where those of others are.
        self._ports = tuple(port for port in ports if port != base_port) if base_port == ports[0] else ()
        self._own_ports = tuple(port for port in ports if port != own_port)
        self._lower_ports = tuple(port for port in ports if port < own_port)
        self._hosts: dict[str, _Round] = {}
        self._due: list[tuple[float, int, str]] = []
        self._entries = 0
        self._in_progress = 0
        self._not_before = 0.0

    def begin(self, now: float, ip: str) -> None:
        """Search a host, unless it is being searched already."""
        is_own = ip == self._own_ip
        if ip in self._hosts or not (self._own_ports if is_own else self._ports):
            return
        self._hosts[ip] = _Round(is_burst=is_own)
        self._put(now if is_own else now + self._settings.scan_s, ip)

    def dials(
        self, now: float, is_known: Callable[[str, int], bool], take_channel: Callable[[], int]
    ) -> list[Effect]:
        """Dial what is to be dialled now, but for the ports of nodes that are known already."""
        effects: list[Effect] = []
        for ip, port in self._take(now):
            foreign = self._hosts[ip].foreign.get(port)
            if is_known(ip, port) or (foreign is not None and now < foreign.until):
                self._in_progress -= 1
                continue
            channel = take_channel()
            self.searches[channel] = Search(ip, port, now + self._settings.connect_timeout_s)
            effects.append(Dial(channel, ip, port))
        return effects

    def end(self, now: float, channel: int, *, is_foreign: bool = False) -> Search:
        """Forget a dial, which has ended in whichever way, and return what was dialled.

        ``is_foreign``: another program answered there.
        """
        self._in_progress -= 1
        search = self.searches.pop(channel)
        if search.ip in self._hosts:
            foreign = self._hosts[search.ip].foreign
            former = foreign.pop(search.port, None)
            if is_foreign:
                s = self._settings
                pause_s = s.backoff_max_s if former is None else 2 * former.pause_s
                pause_s = min(s.foreign_backoff_max_s, pause_s)
                foreign[search.port] = _Foreign(pause_s, now + pause_s)
        return search

    def expired(self, now: float) -> list[int]:
        """Return the channels of dials that have taken too long."""
        return [channel for channel, search in self.searches.items() if search.until <= now]

    def stop(self) -> list[Effect]:
        """Dial nothing more, and hang up."""
        effects: list[Effect] = [HangUp(channel) for channel in self.searches]
        self.searches.clear()
        self._due.clear()
        return effects

    def _take(self, now: float) -> list[tuple[str, int]]:
        """Return the addresses and ports to dial now, each of which counts as in progress."""
        found: list[tuple[str, int]] = []
        while self._due and self._in_progress < MAX_DIALS and self._due[0][0] <= now:
            ip = self._due[0][2]
            search = self._hosts[ip]
            if not (ip == self._own_ip or self._is_wanted(ip)):
                heapq.heappop(self._due)
                del self._hosts[ip]
                continue
            if not search.is_burst and now < self._not_before:
                break
            heapq.heappop(self._due)
            found.append((ip, self._next_port(now, ip, search)))
            self._in_progress += 1
        return found

    def deadlines(self) -> list[float]:
        """Return when dials expire, and when there is something to dial."""
        times = [search.until for search in self.searches.values()]
        if self._due and self._in_progress < MAX_DIALS:
            when, _, ip = self._due[0]
            times.append(when if self._hosts[ip].is_burst else max(when, self._not_before))
        return times

    def _next_port(self, now: float, ip: str, search: _Round) -> int:
        """Return the next port of a host, and enter when the one after it is due."""
        s = self._settings
        ports = self._ports_of(ip, search)
        port = ports[search.at]
        search.at += 1
        pause_s = 0.0 if search.is_burst else min(s.backoff_max_s, s.scan_s * 2.0 ** min(search.rounds, 16))
        if search.at == len(ports):
            search.at = 0
            search.rounds += 1
            search.is_burst = False
            pause_s = max(pause_s, s.scan_s)
        if not search.is_burst:
            self._not_before = now + GAP_S
        if self._ports_of(ip, search):
            self._put(now + pause_s, ip)
        return port

    def _ports_of(self, ip: str, search: _Round) -> tuple[int, ...]:
        """Return the ports over which the present round of a host goes."""
        if ip != self._own_ip:
            return self._ports
        return self._own_ports if search.is_burst else self._lower_ports

    def _put(self, when: float, ip: str) -> None:
        self._entries += 1
        heapq.heappush(self._due, (when, self._entries, ip))
