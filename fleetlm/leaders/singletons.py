"""What a program asks of its node about singletons."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING, Any, Literal, get_args

from fleetlm.core.cron_slots import Missed, SlotMemory
from fleetlm.core.quorum import Quorum
from fleetlm.entities.entity_calls import is_astray
from fleetlm.errors import NodeStopped, NoProcess, NotDelivered, NotOwner, OutcomeUnknown
from fleetlm.ids import Pid
from fleetlm.leaders.cron import CronRun, Job
from fleetlm.leaders.family import Family
from fleetlm.leaders.leader import Leader
from fleetlm.leaders.offering import Offering
from fleetlm.leaders.plan import KEY, KIND_PREFIX, SHARD, Plan, kind_of
from fleetlm.leaders.run_restarts import RunRestarts
from fleetlm.leaders.schedule import slots_of, zone_of
from fleetlm.leaders.slots import SlotTeller
from fleetlm.messaging.deadline import within_deadline
from fleetlm.names import check_process_name
from fleetlm.processes.functions import process_function
from fleetlm.records import Row
from fleetlm.seconds import check_pauses, check_seconds, check_timeout
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from fleetlm.core.shard_table import Owner
    from fleetlm.entities.kinds import Entities
    from fleetlm.entities.replicated_shards import ReplicatedShards
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.messaging.targets import Target
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.processes.running import ProcessFunction, RunningProcess
    from fleetlm.wire.codec import Codec

PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 1.0
"""Seconds between two looks for the run of a singleton that begins just now; the pause doubles."""
CRON = "cron:"
"""What the names of the singletons begin with that run cron jobs."""
JOB_RESTARTS: tuple[int, float, tuple[float, float]] = (3, 60.0, (0.25, 15.0))
"""The limits of `Node.singleton`, for cron jobs. What their targets raise does not count."""
MAX_ANCESTORS = 64
"""Processes between a run and one of its descendants that asks for the epoch."""


class _Known(Row):
    """The run of a singleton, as its owner has told."""

    epoch: int
    pid: Pid


class Singletons:
    """Processes of which one runs in the cluster. Held as `Node.singletons`; `Node.singleton` offers one.

    ::

        node.singletons.where("scheduler")                          # the name of a node, or None
        await node.singletons.call("scheduler", ("add", job))       # from any node
    """

    def __init__(  # made in one place
        self,
        entities: Entities,
        shards: ReplicatedShards,
        local: LocalProcesses,
        outbound: Outbound,
        codec: Codec,
        wall_ms: Callable[[], int],
    ) -> None:
        self._entities = entities
        self._shards = shards
        self._local = local
        self._outbound = outbound
        self._codec = codec
        self._wall_ms = wall_ms
        self._known: dict[str, _Known] = {}

    # Where.

    def where(self, name: str) -> str | None:
        """Return the node that has a singleton, as this node sees it, or None. It may be just starting it."""
        owner = self._owner(name)
        return None if owner is None else owner.pid.node

    def epoch(self, name: str) -> int:
        """Return the epoch under which a singleton runs, as this node sees it; 0: nobody has it."""
        owner = self._owner(name)
        return 0 if owner is None else owner.epoch

    def names(self) -> list[str]:
        """Return what a connected node or this one offers, sorted; cron jobs as ``cron:name``."""
        kinds = self._shards.table.kinds()
        return sorted(kind.removeprefix(KIND_PREFIX) for kind in kinds if kind.startswith(KIND_PREFIX))

    # Messages.

    async def find(self, name: str, timeout: float | None = None) -> Pid:
        """Return the pid of the process that runs now. Waits while none does.

        The pid is that of one run: it leads nowhere when the singleton has moved or was restarted.

        Args:
            name: of the singleton.
            timeout: seconds; default `Settings.call_timeout_s`.

        Raises:
            NotOwner: none ran in time.
            NodeStopped: this node has been stopped.
        """
        return (await self._find(name, self._until(timeout))).pid

    async def call(self, name: str, message: Any, timeout: float | None = None) -> Any:
        """Call a singleton, wherever it runs; as `Node.call`.

        While it moves or is restarted, this waits. A request that was not delivered goes to the next run; one
        that may have run is not repeated.

        Args:
            name: of the singleton.
            message: as in `Node.call`.
            timeout: seconds for all of it; default `Settings.call_timeout_s`.

        Raises:
            NotOwner: none ran in time; nothing was done.
            NotDelivered, OutcomeUnknown, RemoteError: as `Node.call`.
        """
        until = self._until(timeout)

        async def ask(pid: Pid) -> Any:
            return await self._outbound.call(pid, message, max(0.0, until - self._time()))

        return await self._reach(name, until, ask)

    async def send(self, name: str, message: Any, timeout: float | None = None) -> None:
        """Send a message to a singleton, wherever it runs; as `Node.send`.

        It waits while none runs. What is sent to a run that is about to end may be lost with it.

        Args, Raises: as `call`.
        """
        until = self._until(timeout)

        async def send(pid: Pid) -> None:
            await self._outbound.send(pid, message, max(0.0, until - self._time()))

        await self._reach(name, until, send)

    # Offering.

    def _offer(  # `Node.singleton` names them
        self,
        name: str,
        function: ProcessFunction,
        args: tuple[Any, ...],
        safety: Literal["available"] | Quorum,
        settle_s: float,
        end_s: float,
        restarts: tuple[int, float, tuple[float, float]],
    ) -> None:
        """See `Node.singleton`."""
        function = process_function(function)
        if name.startswith(CRON):
            raise ValueError(f"names that begin with {CRON!r} are those of cron jobs: use Node.cron")
        self._start(Plan(name, function, args, settle_s, end_s, *restarts, _quorum(safety)))

    def _cron(  # `Node.cron` names them
        self,
        name: str,
        schedule: str | float,
        target: Any,
        tz: str | tzinfo | None,
        missed: Missed,
        safety: Literal["available"] | Quorum,
        settle_s: float,
        end_s: float,
    ) -> None:
        """See `Node.cron`."""
        if missed not in get_args(Missed):
            raise ValueError(f"missed is one of {get_args(Missed)}, not {SHORT.repr(missed)}")
        _check_target(target)
        quorum, memory = _quorum(safety), SlotMemory()
        zone = UTC if isinstance(schedule, int | float) else zone_of(tz)
        job = Job(name, slots_of(schedule, tz), zone, missed, target)
        named = CRON + name
        teller = SlotTeller(kind_of(named), memory, quorum, self._shards, self._outbound)
        run = CronRun(job, memory, teller, self._wall_ms)
        self._start(Plan(named, run, (), settle_s, end_s, *JOB_RESTARTS, quorum, memory))

    async def withdraw(self, name: str, timeout: float | None = None) -> bool:
        """Offer a singleton on this node no more. If it runs here, another node takes it over first.

        Args:
            name: of the singleton; ``cron:name`` for a cron job.
            timeout: seconds for the handover; default `Settings.call_timeout_s`. Without another node, or
                when they are over, it ends here.

        Returns:
            False if this node does not offer it.
        """
        offering = self._offering(name)
        if offering is None:
            return False
        await offering.withdraw(self._until(timeout))
        return await self._entities.unhost(offering.kind)

    def _epoch_of(self, process: RunningProcess) -> int:
        """See `Process.epoch`."""
        pid: Pid | None = process.pid
        for _ in range(MAX_ANCESTORS):
            if pid is None:
                break
            for offering in self._entities._hostings():  # noqa: SLF001  # hidden from programs
                if isinstance(offering, Offering) and offering.family.root == pid:
                    return offering.epoch()
            known = self._local.process(pid)
            pid = None if known is None else known.parent
        raise RuntimeError(f"{process.pid} is no singleton, nor was it spawned by one with a link")

    # Internals.

    def _start(self, plan: Plan) -> None:
        self._shards.context.check_loop("Node.singleton")
        if self._outbound.stopped:
            raise NodeStopped(self._shards.context.name, self._outbound.stopped)
        check_process_name(plan.kind)
        check_seconds(plan.settle_s, "settle_s", least=0, finite=True)
        check_seconds(plan.end_s, "end_s", least=0, finite=True)
        check_seconds(plan.period_s, "period_s", above=0, finite=True)
        check_pauses(plan.backoff_s, "backoff_s")
        if type(plan.max_restarts) is not int or plan.max_restarts < 0:
            raise ValueError(f"max_restarts is {SHORT.repr(plan.max_restarts)}, not a whole number from 0")
        family = Family(self._local)
        restarts = RunRestarts(plan.max_restarts, plan.period_s, plan.backoff_s)

        def make() -> Offering:
            return Offering(plan, family, restarts, self._shards, self._local, self._outbound, self._codec)

        self._entities._add(plan.kind, make)  # noqa: SLF001  # hidden from programs

    def _offering(self, name: str) -> Offering | None:
        """Return a singleton that this node offers."""
        found = self._entities._hosted.get(kind_of(name))  # noqa: SLF001  # hidden from programs
        return found if isinstance(found, Offering) else None

    def _owner(self, name: str) -> Owner | None:
        return self._shards.table.owner(kind_of(name), SHARD)

    def _time(self) -> float:
        return self._shards.context.loop.time()

    def _until(self, timeout: float | None) -> float:
        check_timeout(timeout)
        default_s = self._shards.context.settings.call_timeout_s
        return self._time() + within_deadline(default_s if timeout is None else timeout)

    async def _reach(self, name: str, until: float, act: Callable[[Pid], Any]) -> Any:
        """Do something with the run, and again with the next one as long as it was not delivered."""
        while True:
            known = await self._find(name, until)
            try:
                return await act(known.pid)
            except NotDelivered as error:
                owner = self._owner(name)
                is_gone = isinstance(error, NoProcess) and str(error.target) == str(known.pid)
                if not (is_gone or (owner is not None and is_astray(error, owner))) or self._time() >= until:
                    raise
                self._known.pop(name, None)
                await asyncio.sleep(min(PAUSE_MIN_S, max(0.0, until - self._time())))

    async def _find(self, name: str, until: float) -> _Known:
        """Return the run. Raises: NotOwner, NodeStopped."""
        kind, pause_s = kind_of(check_process_name(name)), PAUSE_MIN_S
        ref = self._entities.ref(Leader, kind)[KEY]
        while True:
            owner, known = self._owner(name), self._known.get(name)
            if owner is not None and known is not None and known.epoch == owner.epoch:
                return known
            try:
                found = await ref.within(max(0.0, until - self._time())).call(Leader.whom)
            except OutcomeUnknown:  # It has changed nothing.
                found = None
            match found:
                case [Pid() as pid, int(epoch)]:
                    self._known[name] = known = _Known(epoch, pid)
                    return known
            now = self._time()
            if now >= until:
                raise NotOwner(f"{kind}/{KEY}", "" if owner is None else owner.pid.node, self.epoch(name))
            await asyncio.sleep(min(pause_s, until - now))
            pause_s = min(PAUSE_MAX_S, pause_s * 2)


def _quorum(safety: Any) -> Quorum | None:
    if safety == "available":
        return None
    if not isinstance(safety, Quorum):
        raise TypeError(f"safety is 'available' or a Quorum, not {SHORT.repr(safety)}")
    return safety


def _check_target(target: Target | Callable[..., Any]) -> None:
    """Raise TypeError for what is neither a coroutine function nor something to send to."""
    match target:
        case Pid() | str() | (str(), str()):
            return
    if not inspect.iscoroutinefunction(target) and not inspect.iscoroutinefunction(
        getattr(target, "__call__", None)  # noqa: B004  # whether it is a coroutine function, not whether it is one
    ):
        raise TypeError(
            f"the target of a cron job is a coroutine function or a process, not {SHORT.repr(target)}"
        )
