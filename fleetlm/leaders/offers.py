"""The half of `Node` that offers singletons and cron jobs."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

if TYPE_CHECKING:
    from datetime import tzinfo

    from fleetlm.core.quorum import Quorum
    from fleetlm.leaders.singletons import Singletons
    from fleetlm.messages import CronSlot
    from fleetlm.messaging.targets import Target
    from fleetlm.processes.running import ProcessFunction
    from fleetlm.runtime.assembly import Assembly

S = TypeVar("S", bound=Callable[..., Any])


class OffersLeaders:
    """What `Node` inherits: ``singleton``, ``cron``, and ``singletons``, where they run."""

    _parts: Assembly

    @functools.cached_property
    def singletons(self) -> Singletons:
        """Where the singletons of the cluster run, and messages to them; `singleton` offers one."""
        from fleetlm.leaders.singletons import Singletons  # noqa: PLC0415  # most programs need none

        parts = self._parts
        return Singletons(
            parts.entities, parts.replicated_shards, parts.local, parts.outbound, parts.codec, parts.wall_ms
        )

    @overload
    def singleton(
        self,
        name: str,
        function: ProcessFunction,
        *,
        args: tuple[Any, ...] = ...,
        safety: Literal["available"] | Quorum = ...,
        settle_s: float = ...,
        end_s: float = ...,
        max_restarts: int = ...,
        period_s: float = ...,
        backoff_s: tuple[float, float] = ...,
    ) -> None: ...
    @overload
    def singleton(
        self,
        name: str,
        *,
        args: tuple[Any, ...] = ...,
        safety: Literal["available"] | Quorum = ...,
        settle_s: float = ...,
        end_s: float = ...,
        max_restarts: int = ...,
        period_s: float = ...,
        backoff_s: tuple[float, float] = ...,
    ) -> Callable[[S], S]: ...
    def singleton(  # noqa: PLR0913  # most programs name none of the limits
        self,
        name: str,
        function: ProcessFunction | None = None,
        *,
        args: tuple[Any, ...] = (),
        safety: Literal["available"] | Quorum = "available",
        settle_s: float = 3.0,
        end_s: float = 5.0,
        max_restarts: int = 3,
        period_s: float = 60.0,
        backoff_s: tuple[float, float] = (0.25, 15.0),
    ) -> Any:
        """Offer a process of which one runs in the cluster, on one of the nodes that offer it.

        ::

            @node.singleton("scheduler", safety=Quorum(expected=3))
            async def scheduler(process: Process) -> None:
                async for job in process.mailbox:
                    await database.write(job, token=process.epoch)

        One of the nodes runs ``await function(process, *args)``, and the others stand by. It stays where it
        is until its node drains, stops, or is lost. When the function returns or raises, it begins anew on
        the same node, after the pauses of a supervisor; if it raises again and again, another node gets it.
        Before a drain hands it over, it is told to end with
        ``"shutdown"``, and the next run begins when it has ended with all that it has spawned with a link.

        Args:
            name: of the singleton in the cluster.
            function: as in `spawn`: a coroutine function, a `Supervisor`, or the class of an `Actor`. None:
                this returns a decorator.
            args: its further arguments.
            safety: ``"available"``: in a partition, each side runs one. A `Quorum`: only a side that sees
                more than half of the expected nodes does. Alike on all nodes that offer it.
            settle_s: seconds for which nobody had it, and no connection came up, before a node takes it.
            end_s: seconds that a run has to end when it is handed over. Then it is killed. If it has still
                not ended a second later, it stays on this node, and `DrainReport.unmoved` names it.
            max_restarts: if it ends more often than that within ``period_s``, other than by returning, this
                node gives it to another one on which it has not failed like this within a minute. If there is
                no such node, it goes on here.
            period_s: see ``max_restarts``.
            backoff_s: the shortest and the longest pause before it begins anew; the first restart has none.

        Raises:
            ValueError: this node offers it already, or an argument is out of its range. Nothing changed.
            TypeError: ``function`` cannot be called, or ``safety`` is neither of the two.
            InvalidName, NodeStopped: nothing changed.
        """

        def offer(function: S) -> S:
            offered = self.singletons._offer  # noqa: SLF001  # completion must not show it
            offered(name, function, args, safety, settle_s, end_s, (max_restarts, period_s, backoff_s))
            return function

        if function is None:
            return offer
        offer(function)
        return None

    def cron(
        self,
        name: str,
        schedule: str | float,
        target: Callable[[CronSlot], Awaitable[object]] | Target,
        *,
        tz: str | tzinfo | None = None,
        missed: Literal["once", "skip"] = "once",
        safety: Literal["available"] | Quorum = "available",
        settle_s: float = 3.0,
        end_s: float = 5.0,
    ) -> None:
        """Run something at certain times, once in the cluster, on one of the nodes that declare it.

        ::

            node.cron("clean", "*/5 * * * *", clean)                        # async def clean(slot: CronSlot)
            node.cron("report", "30 6 * * mon-fri", report, tz="Europe/Berlin")
            node.cron("poll", 10.0, poll)                                   # every ten seconds

        Each point of time of the schedule, a *slot*, begins at most once: before it begins, the other nodes
        that declare the job are told. What the target raises is logged, and the next slot runs nevertheless.
        One slot at a time: what becomes due while the target runs is missed if it begins more than 5 s late.
        The job is the singleton ``cron:name``; docs/leaders.md has the details.

        Args:
            name: of the job in the cluster.
            schedule: a cron expression with five fields, or six with seconds in front, as cronsim reads it;
                or a number of seconds, whose multiples since 1970 are the slots.
            target: a coroutine function that takes the slot, or where the slot is sent as a message: a pid,
                the name of a process on the node that runs the job, or ``(name, node)``.
            tz: the time zone of an expression, such as ``"Europe/Berlin"``; None: UTC.
            missed: what happens to slots that could not begin within 5 s of their time, since no node ran the
                job, the target took longer, or the clock was moved forward. ``"once"``: the last one of them
                runs as soon as it can. ``"skip"``: none does.
            safety: as in `singleton`.
            settle_s: likewise.
            end_s: likewise.

        Raises:
            ValueError: there is no such schedule or time zone, or this node has declared the job already.
            TypeError: the target is neither of the two.
            ModuleNotFoundError: an expression needs cronsim (``pip install 'fleetlm[cron]'``).
            InvalidName, NodeStopped: nothing changed.
        """
        declared = self.singletons._cron  # noqa: SLF001  # completion must not show it
        declared(name, schedule, target, tz, missed, safety, settle_s, end_s)
