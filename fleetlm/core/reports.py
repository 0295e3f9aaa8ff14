"""What a node says to people about its peers and about strangers: each thing once.

Each change that people should know of becomes one `Report`. What has been reported is remembered, so that it
is not said again each second; these lists are bounded, so that a stranger cannot fill the memory or the log.
What strangers cause is told apart by the address that they dial from and by its kind, never by a name or a
text, of which they could send any number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fleetlm.core.dns_answers import Answer as DnsAnswer, Outcome
from fleetlm.core.effects import Effect, Report

if TYPE_CHECKING:
    from fleetlm.core.topology import Peer
    from fleetlm.settings import Settings

MAX_STRANGERS: Final = 256
"""Refusals of strangers, and unexpected addresses, that are remembered so that each is logged once."""
SHORT_LIVES_TOLD: Final = 3
"""Short-lived connections in a row to one peer after which people are told, once. Fewer are a restart."""
MAX_VERDICTS: Final = 16
"""Errors of one peer that are remembered as logged. Beyond that they may be logged again."""


class Reports:
    """Makes the reports of one kernel.

    Attributes:
        verdict: the outcome of the last lookup in words.
        observed: addresses from which peers dial this node that are not those of their names.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.verdict: str = ""
        self.observed: set[str] = set()
        self._said: dict[tuple[str, str], None] = {}

    def address(self, peer: Peer) -> list[Effect]:
        """Report a peer that dials from another address than that in its name: NAT, or a wrong name."""
        incoming = peer.connection.incoming
        if incoming is None or not incoming.ip or incoming.ip == peer.connection.ip:
            return []
        if incoming.ip in incoming.hello.aliases or incoming.ip in self.observed:
            return []
        if len(self.observed) >= MAX_STRANGERS:
            return []
        self.observed.add(incoming.ip)
        text = (
            f"{peer.connection.name} dials us from {incoming.ip}, not from the address in its name; if "
            "peers cannot reach it, set FLEETLM_NODE_IP there"
        )
        return [Report("warning", text, "address")]

    def short_life(self, peer: Peer) -> list[Effect]:
        """Report a peer whose connections end soon after the handshake, once until one of them lives."""
        connection = peer.connection
        if connection.short_lived != SHORT_LIVES_TOLD:
            return []
        text = (
            f"{connection.name}: {SHORT_LIVES_TOLD} connections in a row ended within "
            f"{self._settings.settled_s:g} s, the last one because of this: {connection.last_error}. This "
            f"node dials again after longer and longer pauses, up to {2 * self._settings.backoff_max_s:g} s"
        )
        return [Report("warning", text, "short life")]

    def error(self, peer: Peer, stranger: str = "") -> list[Effect]:
        """Report each error of a peer once until it is up again: dead addresses are normal in a cluster.

        If only a stranger says that there is such a node, the first error for the address of that stranger is
        reported and no other.
        """
        reason = peer.connection.last_error
        if not reason or reason in peer.logged or peer.connection.attempt == 0:
            return []
        if len(peer.logged) >= MAX_VERDICTS:
            peer.logged.clear()
        peer.logged[reason] = None
        text = f"{peer.connection.name}: {reason}"
        return (
            self.once(stranger, "introduced", text, "info") if stranger else [Report("info", text, "verdict")]
        )

    def lookup(self, answer: DnsAnswer) -> list[Effect]:
        """Report the outcome of a lookup if it is not that of the last one."""
        verdict = answer.outcome.name
        if answer.outcome is not Outcome.ADDRESSES:
            verdict += f": {answer.detail}"
        if verdict == self.verdict:
            return []
        first = not self.verdict
        self.verdict = verdict
        if answer.outcome is Outcome.ADDRESSES:
            return [Report("info", f"DNS names {len(answer.addresses)} address(es): {answer.detail}")]
        level = "info" if first else "warning"
        return [Report(level, f"DNS: {answer.detail}; connected nodes stay connected, and lookups continue")]

    def outside(self, addresses: list[str]) -> list[Effect]:
        """Report addresses in DNS that `Settings.allowed_networks` excludes, once for each set of them."""
        if not addresses:
            return []
        named = ", ".join(addresses[:3]) + (f" and {len(addresses) - 3} more" if len(addresses) > 3 else "")
        text = f"passed over what DNS names outside of FLEETLM_ALLOWED_NETWORKS: {named}"
        return [Report("warning", text, "outside")] if self.once("DNS", named, text) else []

    def stranger(self, who: str, what: str, reason: str, level: str = "warning") -> list[Effect]:
        """Report a refusal once for each ``who`` and ``what``; the text of ``reason`` may vary."""
        return self.once(who, what, f"refused {who}: {reason}", level)

    def once(self, who: str, what: str, text: str, level: str = "warning") -> list[Effect]:
        """Report a text once for each ``who`` and ``what``."""
        if (who, what) in self._said:
            return []
        if len(self._said) >= MAX_STRANGERS:
            del self._said[next(iter(self._said))]
        self._said[who, what] = None
        return [Report(level, text, what)]

    def virtual(self, address: str, owner: str) -> list[Effect]:
        """Report once that the only address in DNS led to a node whose name has another address."""
        text = (
            f"DNS names one address only, {address}, and {owner} answers there: perhaps the virtual address "
            "of a load balancer, behind which one node at a time is found. In Kubernetes use a headless "
            "Service (clusterIP: None), in Docker Swarm tasks.<service>"
        )
        return self.once(address, "virtual address", text)

    def full_table(self) -> list[Effect]:
        """Report once that a node found no place in the table."""
        most = self._settings.max_peers
        return self.stranger("more nodes", "full", f"the table holds {most:,}, which is Settings.max_peers")
