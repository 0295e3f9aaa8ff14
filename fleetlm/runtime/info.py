"""What `Node.info()` shows of a node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetlm.records import Record

if TYPE_CHECKING:
    from fleetlm.core.topology import PeerInfo


class DrainReport(Record):
    """How a drain has ended: what `Node.drain` returns.

    A *request* is a call, a stream, a blocking function, or a message without a caller that a process serves.
    """

    node: str
    """The node that has drained."""
    source: str
    """Who asked for it: ``"api"``, ``"signal"`` or ``"remote"``."""
    reason: str
    seconds: float
    """How long it took."""
    finished: int
    """Requests that were open and have ended by themselves."""
    refused: int
    """Requests of other nodes that were refused with `Draining`: none of them has run."""
    cut: int
    """Requests that had not ended when the time was over. Streams have been ended with `Draining`; the others
    go on until the node stops."""
    cut_what: tuple[str, ...]
    """The same in words, such as ``2 call(s) of Model``."""
    unheard: tuple[str, ...]
    """Peers that had not acknowledged the drain when the node began to refuse the work of the others."""
    was_undone: bool
    """Whether `Node.undrain` ended it before its time."""
    unmoved: tuple[str, ...] = ()
    """Entities that were not handed over to another node, as ``kind/key``: up to 100 of them."""
    unmoved_count: int = 0
    """How many there are."""

    def __str__(self) -> str:
        what = f" ({', '.join(self.cut_what)})" if self.cut_what else ""
        end = "did not go on draining after" if self.was_undone else "drained in"
        counts = f"{self.finished} finished, {self.refused} refused, {self.cut} cut{what}"
        if self.unmoved_count:
            counts += f", {self.unmoved_count} entities not moved ({', '.join(self.unmoved[:5])})"
        return f"node {self.node} {end} {self.seconds:.3g} s: {counts}"

    @property
    def was_clean(self) -> bool:
        """Whether nothing was cut, no entity was left behind, and the drain was not undone."""
        return not (self.cut or self.unmoved_count or self.was_undone)


class NodeInfo(Record):
    """A snapshot of this node; all times in seconds unless the name says otherwise."""

    name: str
    incarnation: int
    uptime_s: float
    own_address_why: str
    """Why this node has the address in its name."""
    own_address_warning: str | None
    """Why that address is doubtful, and what to set; None if there is no doubt."""
    cluster: str
    """`Settings.cluster`: nodes of another cluster are refused."""
    listening: tuple[str, ...]
    """Where this node listens, as ``ip:port``; ``*`` stands for all addresses of its machine."""
    cookie: bool
    """Whether a cookie is set, so that peers are authenticated and traffic is encrypted."""
    exposure_warning: str | None
    """Who can join this node's cluster because there is no cookie, and what to do; None: nobody."""
    discovery: str
    """Where peers are looked for; ``off`` where clustering is off."""
    dns_verdict: str
    """Outcome and details of the last lookup; empty before the first one."""
    dns_age_s: float | None
    """How long ago the last lookup ended; None before the first one."""
    polls: int
    """How many lookups have ended."""
    lag_ms: int
    """Milliseconds by which the last tick of the event loop was late."""
    draining: bool
    """Whether this node is about to leave; see `Node.drain`."""
    observed_ips: tuple[str, ...]
    """Addresses from which peers connected that are not the ones in their names."""
    processes: int
    messages_sent: int
    """Messages handed to the sessions that are open now."""
    messages_received: int
    """Messages that came over the sessions that are open now."""
    undelivered: int
    """One-way messages that arrived and had no receiver."""
    unreadable: int
    """Messages that arrived with a type that this node does not know."""
    stalled: tuple[str, ...]
    """Who has waited for room or for a reply for longer than `Settings.stalled_after_s`, and for whom; the
    longest first, at most 20."""
    peers: tuple[PeerInfo, ...]
    """The table of peers: every node that this one knows."""
