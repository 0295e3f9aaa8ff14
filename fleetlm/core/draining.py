"""The steps of a node that drains: announced, acknowledged, refusing; and what a peer says of its own.

A node that is about to leave goes through these steps, and may be brought back from each of them:

* **none**: it takes work as any other node.
* **announced**: it has told every peer. Peers pass it over where they choose (picks, spawns); it serves
  everything. Each peer acknowledges the notice *behind* the requests that it had begun before, those that
  wait in its queues included.
* **refusing**: every peer has acknowledged, or has been silent for a tick. New work of a peer is refused
  before it runs, *once that peer has acknowledged*. So no request that was begun before its node knew of the
  drain is refused, however late it arrives: a peer that was frozen is served until it has heard. A peer that
  connects now hears of the drain with the first frames, and is served until it has acknowledged, too.

`OwnDrain` is the state of one node. Notices are numbered. A peer acknowledges the one that begins a drain, or
the first one that it gets, and none that only changes the time or the step; so the acknowledgement of a
drain that was undone meanwhile counts for nothing.

Source: Akka's CoordinatedShutdown and Kubernetes' endpoints for leaving in phases; differs: there, routers
learn of it at some later time, and requests fail in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

SOURCES = ("api", "signal", "remote")
"""Who asks for a drain: the program, a signal to its process, or `fleetlm drain`."""
MAX_HEARD = 1 << 20
"""Acknowledgements of one notice by one peer: one for each of its tasks that has a large message waiting."""


class Step(IntEnum):
    """How far a drain is. The numbers travel."""

    NONE = 0
    ANNOUNCED = 1
    REFUSING = 2


class OwnDrain:
    """The drain of this node.

    Attributes:
        step: how far it is.
        number: of the last notice.
        until: when its time for finishing is over, on the loop's clock in seconds.
        source: who asked for it; one of `SOURCES`.
        reason: why, for people.
    """

    def __init__(self) -> None:
        self.step: Step = Step.NONE
        self.number: int = 0
        self.until: float = 0.0
        self.source: str = ""
        self.reason: str = ""
        self._unheard: dict[str, tuple[int, int]] = {}
        """Peer that has not acknowledged → number of the notice that it has to, and how many of its messages
        that do so have come."""

    def announce(self, until: float, source: str, reason: str, peers: Iterable[str]) -> None:
        """Begin to drain; if it drains already, change the time, and who asked for it and why."""
        self.until, self.source, self.reason = until, source, reason
        self.number += 1
        if self.step is Step.NONE:
            self.step = Step.ANNOUNCED
            self._unheard = dict.fromkeys(peers, (self.number, 0))

    def refuse(self) -> None:
        """Take the last step; the peers are told, and need not acknowledge it."""
        self.step = Step.REFUSING
        self.number += 1

    def undo(self) -> None:
        """Take work as before."""
        self.step = Step.NONE
        self.number += 1
        self._unheard.clear()

    def peer_up(self, name: str) -> None:
        """A peer has connected, and is told."""
        if self.step:
            self._unheard[name] = self.number, 0

    def peer_down(self, name: str) -> None:
        """A peer is not connected any more."""
        self._unheard.pop(name, None)

    def heard(self, name: str, number: int, count: int) -> None:
        """A peer has acknowledged a notice, with one of ``count`` messages.

        Raises:
            ValueError: no notice had that number, or the count is none.
        """
        if number > self.number or not 1 <= count <= MAX_HEARD:
            raise ValueError(f"HEARD of notice {number}, one of {count}")
        expected, come = self._unheard.get(name, (0, 0))
        if number != expected:
            return  # Of a drain that was undone, or once more.
        if come + 1 >= count:
            del self._unheard[name]
        else:
            self._unheard[name] = number, come + 1

    def unheard(self) -> list[str]:
        """Return the connected peers that have not acknowledged."""
        return list(self._unheard)

    def refuses(self, name: str) -> bool:
        """Whether new work of that peer is refused."""
        return self.step is Step.REFUSING and name not in self._unheard

    def retry_after(self, now: float) -> float:
        """Return after how many seconds it is worth asking this node again."""
        return max(0.0, self.until - now)


def checked_step(step: int) -> Step:
    """Return the step of a peer's notice. Raises: ValueError."""
    return Step(step)


def checked_source(source: str) -> str:
    """Return the source in a peer's notice; one that this version does not know counts as the program."""
    return source if source in SOURCES else "api"
