"""What the host of a kind is made of: what its program has asked for, and its parts as it sees them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.actors.handlers import Handlers
from fleetlm.core.quorum import MemberKey, Quorum, Want
from fleetlm.core.shard_table import Lost
from fleetlm.entities.info import QuorumInfo
from fleetlm.entities.keeping import StoreOptions
from fleetlm.entities.seat import Seat
from fleetlm.records import Record

if TYPE_CHECKING:
    from fleetlm.call import Call


class Guard(Protocol):
    """Says what this node may serve, where a quorum is wanted; `majority.Majority` implements it."""

    me: MemberKey
    """This node as a member."""

    def start(self, number: int) -> None:
        """Begin to ask the other members, with the number of the host process."""

    def close(self) -> None:
        """End asking."""

    def serves(self, shard: int) -> bool:
        """Whether this node may serve a shard now."""

    def dropped(self, shard: int) -> None:
        """This node owns a shard no more."""

    def info(self) -> QuorumInfo:
        """Return how this node stands, for people."""

    async def acquire(self, wants: list[Want]) -> dict[int, int]:
        """Get shards. Returns those that this node may claim, with their epochs."""

    def asked(self, message: list[Any], origin: tuple[str, int] | None) -> Any:
        """Answer another member. Raises: ValueError, TypeError for nonsense, or in another node's name."""

    def fenced(self, handlers: Handlers) -> Handlers:
        """Return the handlers of entities, which do not begin where this node may not serve any more."""


class Moves(Protocol):
    """How shards change hands; `handoff.Handoff` implements it."""

    @property
    def moving(self) -> int:
        """How many shards are being handed over now."""

    def serves(self, shard: int, *, is_inner: bool) -> bool:
        """Whether a shard of this node takes requests; ``is_inner``: from one of its own entities."""

    def asked(self, call: Call) -> None:
        """Answer a request of another host, or of an operator."""

    def is_sealed(self, shard: int) -> bool:
        """Whether a shard is being handed over, and no entity of it lives any more."""

    def is_done_by(self, lost: Lost) -> bool:
        """Whether a claim that has outdone this node's is the one that its own handoff has led to."""

    def offer(self, lost: Lost, seats: Iterable[Seat]) -> None:
        """Give the winner of a shard the states of the entities that have lived here beside its own."""

    def offers(self, shard: int) -> bool:
        """Whether `offer` still needs what is kept of a shard."""

    def claim_free(self, counts: dict[str, int]) -> None:
        """Claim the shards without an owner that fall to this node."""

    def outbid(self, shards: Iterable[int]) -> None:
        """Have a majority give this node higher epochs for shards of which others have heard a higher one."""

    def balance(self, counts: dict[str, int]) -> None:
        """Hand over what this node has beyond its share."""

    def leave(self, counts: dict[str, int]) -> None:
        """Hand over everything, since this node drains."""

    async def drained(self, until: float) -> list[str]:
        """Return when this node owns no shard any more, or cannot hand over more."""

    def sweep(self) -> None:
        """Drop parts that were never completed."""

    def close(self) -> None:
        """End every handoff."""


class HostOptions(Record):
    """What a program has asked for; see `Entities.host`."""

    args: tuple[Any, ...]
    shards: int
    idle_s: float
    handoff_s: float
    settle_s: float
    rebalance_s: float
    live: int
    kept_bytes: int
    remember: frozenset[str]
    quorum: Quorum | None
    stored: StoreOptions | None = None
