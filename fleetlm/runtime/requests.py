"""Answers the requests that peers make of the node itself, and takes the facts that they send.

`messaging.inbound` hands over everything that is not for a process. `wire.operations.request` lists the
verbs, their arguments and replies.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.errors import (
    AlreadyRegistered,
    Draining as IsDraining,
    FleetError,
    InvalidName,
    NoFactory,
    NoProcess,
    NotAllowed,
    WouldBlock,
)
from fleetlm.ids import Pid
from fleetlm.processes.remote_spawn import asked_to_spawn
from fleetlm.runtime import audit
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.directory.registry import ReplicatedNames
    from fleetlm.directory.replication import Replication
    from fleetlm.messaging.session import Session
    from fleetlm.processes.circles import Circles
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.processes.remote_spawn import RemoteSpawn, SpawnRequest
    from fleetlm.processes.signals import Signals
    from fleetlm.runtime.draining import Draining
    from fleetlm.wire.operations import DrainNotice


class PeerFacts(Protocol):
    """Takes what peers say about the cluster; `Assembly` implements it by means of the driver."""

    def ticked(self, name: str, lag_ms: int) -> None:
        """Take a sign of life of a peer."""

    def told_of(self, names: list[str], teller: str) -> None:
        """Take the names of nodes that a peer is connected to."""

    def asked_for_overview(self, argument: Any, call: Call) -> None:
        """Tell a peer what this node knows of itself, now or later."""


class PeerRequests:
    """Implements `messaging.inbound.PeerService`.

    A name is registered and looked up on its own node only, so there is one owner and no lock. Processes that
    are for this node only do not exist for a peer (`LocalProcesses.reachable`).
    """

    def __init__(
        self,
        facts: PeerFacts,
        local: LocalProcesses,
        signals: Signals,
        replication: Replication,
        names: ReplicatedNames,
        remote_spawn: RemoteSpawn,
        circles: Circles,
        draining: Draining,
    ) -> None:
        self._facts = facts
        self._local = local
        self._signals = signals
        self._replication = replication
        self._names = names
        self._remote_spawn = remote_spawn
        self._circles = circles
        self._draining = draining

    def ticked(self, session: Session, lag_ms: int) -> None:
        """Note that the peer's loop is alive."""
        self._facts.ticked(session.name, lag_ms)

    def told_drain(self, session: Session, notice: DrainNotice) -> None:
        """Note a step of the peer's drain."""
        self._draining.told(session, notice)

    def heard_drain(self, session: Session, number: int, count: int) -> None:
        """Note that the peer knows of this node's drain."""
        self._draining.heard(session, number, count)

    def refused(self, call: Call) -> None:
        """Refuse new work, since this node drains."""
        self._draining.refuse_call(call)

    def not_reached(self, to: int | str, call: Call) -> None:
        """Refuse a call: there is no such process, or it is for this node only."""
        if self._local.is_local(to):
            why = f"process {SHORT.repr(to)} is for its own node only (local=True)"
            call.refuse(NotAllowed(self._local.table.node, why))
        else:
            call.no_process(str(to))

    def told_of(self, names: list[str], teller: str) -> None:
        """Dial the nodes that the peer names, if they are not known yet."""
        self._facts.told_of(names, teller)

    def signalled(self, session: Session, signal: Any) -> None:
        """Take a link, monitor or exit signal of the peer."""
        name = self._name_of_ended(signal)
        self._signals.told(session, signal, self._local.reachable.__contains__)
        if name is not None:
            _, sender, number, reason = signal
            audit.sent_exit(sender, self._local.table.pid(number), name, reason)

    def told_table(self, session: Session, topic: Any, fact: Any) -> bool | None:
        """Take what the peer says of its own processes. Returns True if it is to be told again."""
        return self._replication.told(session, topic, fact)

    def asked(self, session: Session, verb: str, argument: Any, call: Call) -> None:
        """Answer a request. A malformed or unknown one gets an error."""
        if verb == "waits":
            self._circles.asked(session, argument, call)
            return
        if verb == "overview":
            self._facts.asked_for_overview(argument, call)
            return
        if verb != "spawn":
            self._reply(session, verb, argument, call)
        elif not self._remote_spawn.pace.take(session, partial(self._reply, session, verb, argument, call)):
            call.would_block(self._local.table.node, f"too many spawns of {session.name} wait for their turn")

    def _reply(self, session: Session, verb: str, argument: Any, call: Call) -> None:
        """Perform a request and answer it."""
        try:
            call.reply(self._answer(session, verb, argument))
        except (AlreadyRegistered, IsDraining, NoFactory, NoProcess, NotAllowed) as error:
            call.refuse(error)
        except WouldBlock as error:
            call.would_block(str(error.target), error.why)
        except FleetError as error:
            call.fail(error)

    def _name_of_ended(self, signal: Any) -> str | None:
        """Return the name of the process that an exit signal is for, perhaps empty; else None."""
        match signal:
            case ["exit2", Pid(), int(number), _] if number in self._local.reachable:
                return self._local.table.name_of(number) or ""
        return None

    def _answer(self, session: Session, verb: str, argument: Any) -> Any:
        """Return the reply to a request. Raises: FleetError."""
        match verb, argument:
            case "ping", _:
                return "pong"
            case "whereis", str(name):
                return None if self._local.is_local(name) else self._local.table.whereis(name)
            case "registered", _:
                names = self._local.table.registered()
                return {name: pid for name, pid in names.items() if not self._local.is_local(name)}
            case "unregister", str(name):
                return not self._local.is_local(name) and self._local.unregister(name)
            case "register" | "claim" | "disclaim", [_, Pid() as pid, *_] if self._local.is_local(pid.number):
                raise NoProcess(pid)
            case "register", [str(name), Pid() as pid]:
                if self._local.process(pid) is None:
                    raise NoProcess(pid)
                self._local.register(name, pid)
                return True
            case "claim", [str(name), Pid() as pid, bytes(packed), "exit" | "message" as on_loss]:
                return self._names.asked_to_claim(name, pid, packed, on_loss)
            case "disclaim", [str(name), Pid() as pid]:
                return self._names.asked_to_disclaim(name, pid)
            case "spawn", list() if (spawn := asked_to_spawn(session, argument)) is not None:
                if session.refuses and not spawn.is_in_flight:
                    raise self._draining.refusal()
                return self._spawn(session, spawn)
        shown = f"{SHORT.repr(verb)}({SHORT.repr(argument)})"
        raise InvalidName(shown, "this node does not answer that request")

    def _spawn(self, session: Session, request: SpawnRequest) -> Pid:
        pid = self._remote_spawn.spawn_for(session, request)
        audit.spawned(request, pid)
        return pid
