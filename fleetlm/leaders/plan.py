"""What a program has offered: the plan of a singleton, and the names of what it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetlm.records import Record

if TYPE_CHECKING:
    from fleetlm.core.cron_slots import SlotMemory
    from fleetlm.core.quorum import Quorum
    from fleetlm.processes.running import ProcessFunction

KEY = "run"
"""The key of the one entity."""
SHARD = 0
"""The one shard."""
KIND_PREFIX = "singleton:"
"""What the kinds of entities begin with that are singletons."""


class Plan(Record):
    """What a program has offered; see `Node.singleton`.

    Attributes:
        name: of the singleton.
        function: what it runs.
        args: further arguments of the function.
        settle_s: see `Node.singleton`.
        end_s: likewise.
        max_restarts: likewise.
        period_s: likewise.
        backoff_s: likewise.
        quorum: likewise; None: available.
        memory: which slots have begun, for a cron job; else None.
    """

    name: str
    function: ProcessFunction
    args: tuple[Any, ...]
    settle_s: float
    end_s: float
    max_restarts: int
    period_s: float
    backoff_s: tuple[float, float]
    quorum: Quorum | None
    memory: SlotMemory | None = None

    @property
    def kind(self) -> str:
        """The kind of entities that it is."""
        return kind_of(self.name)


def kind_of(name: str) -> str:
    """Return the kind of entities that a singleton is."""
    return KIND_PREFIX + name
