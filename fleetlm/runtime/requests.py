"""What a node answers when a connected node asks it, rather than one of its processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.errors import AlreadyRegistered, Draining, FleetError, InvalidName, NoFactory, NoProcess
from fleetlm.ids import Pid
from fleetlm.processes.remote_spawn import asked_to_spawn
from fleetlm.texts import SHORT

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.directory.registry import ReplicatedNames
    from fleetlm.directory.replication import Replication
    from fleetlm.messaging.session import Session
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.processes.remote_spawn import RemoteSpawn
    from fleetlm.processes.signals import Signals


class PeerFacts(Protocol):
    """Where facts go that peers tell about the cluster: to the driver."""

    def ticked(self, name: str, lag_ms: int, draining: bool) -> None:
        """See `Driver.ticked`."""

    def told_of(self, names: list[str]) -> None:
        """See `Driver.told_of`."""


class PeerRequests:
    """`inbound.Office` of a node. Names are served on their own node only: one owner, no lock."""

    def __init__(
        self,
        facts: PeerFacts,
        local: LocalProcesses,
        signals: Signals,
        replication: Replication,
        names: ReplicatedNames,
        remote_spawn: RemoteSpawn,
    ) -> None:
        self._facts = facts
        self._local = local
        self._signals = signals
        self._replication = replication
        self._names = names
        self._remote_spawn = remote_spawn

    def ticked(self, session: Session, lag_ms: int, draining: bool) -> None:
        """The peer's loop is alive."""
        self._facts.ticked(session.name, lag_ms, draining)

    def told_of(self, names: list[str]) -> None:
        """The peer named its own peers."""
        self._facts.told_of(names)

    def signalled(self, session: Session, signal: Any) -> None:
        """A session, monitor or exit signal of the peer."""
        self._signals.told(session, signal)

    def told_table(self, session: Session, topic: Any, fact: Any) -> None:
        """What the peer says of its own processes."""
        self._replication.told(session, topic, fact)

    def asked(self, session: Session, verb: str, argument: Any, call: Call) -> None:
        """Answer a request; a bad one is answered with an error, never with silence."""
        try:
            call.reply(self._do(session, verb, argument))
        except (AlreadyRegistered, Draining, NoFactory, NoProcess) as error:
            call.refuse(error)
        except FleetError as error:
            call.fail(error)

    def _do(self, session: Session, verb: str, argument: Any) -> Any:
        match verb, argument:
            case "ping", _:
                return "pong"
            case "whereis", str(name):
                return self._local.table.whereis(name)
            case "registered", _:
                return self._local.table.registered()
            case "unregister", str(name):
                return self._local.unregister(name)
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
                return self._remote_spawn.spawn_for(session, spawn)
        shown = f"{SHORT.repr(verb)}({SHORT.repr(argument)})"
        raise InvalidName(shown, "this node does not answer that request")
