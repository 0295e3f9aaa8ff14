"""The numbers and names of the processes of one node.

A number is never given twice in one incarnation. A name has one owner and a process one name, as with
Erlang's register/2. A name is free again when its process ends.
"""

from __future__ import annotations

from fleetlm.errors import AlreadyRegistered, NoProcess
from fleetlm.ids import Pid
from fleetlm.names import check_process_name


class ProcessTable:
    """The living processes of one node, and their names.

    Attributes:
        names: name → number of its owner.
    """

    def __init__(self, node: str, incarnation: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.names: dict[str, int] = {}
        self._name_of: dict[int, str | None] = {}
        self._next = 1

    @property
    def spawned_count(self) -> int:
        """How many processes were spawned so far."""
        return self._next - 1

    def spawned(self, name: str | None) -> Pid:
        """Make a pid, and register it under ``name`` if that is given.

        Raises:
            AlreadyRegistered: the name has an owner; no pid was made.
            InvalidName: not a name; no pid was made.
        """
        if name is not None:
            self._check_free(check_process_name(name))
        number = self._next
        self._next += 1
        self._name_of[number] = name
        if name is not None:
            self.names[name] = number
        return Pid(self.node, self.incarnation, number)

    def register(self, name: str, pid: Pid) -> None:
        """Give a living process of this node a name.

        Raises:
            NoProcess: the process has ended, or is on another node.
            AlreadyRegistered: the name has an owner, or the process has a name.
            InvalidName: not a name. In all cases nothing changed.
        """
        check_process_name(name)
        number = self._find_number(pid)
        if number is None:
            raise NoProcess(pid)
        self._check_free(name)
        own = self._name_of[number]
        if own is not None:
            raise AlreadyRegistered(own, pid)
        self._name_of[number] = name
        self.names[name] = number

    def unregister(self, name: str) -> bool:
        """Take a name from its owner. Return False if it had none."""
        number = self.names.pop(name, None)
        if number is None:
            return False
        self._name_of[number] = None
        return True

    def whereis(self, name: str) -> Pid | None:
        """Return the owner of a name, or None."""
        number = self.names.get(name)
        return None if number is None else self.pid(number)

    def registered(self) -> dict[str, Pid]:
        """Return every name and its owner, sorted by name."""
        return {name: self.pid(self.names[name]) for name in sorted(self.names)}

    def exited(self, number: int) -> str | None:
        """A process has ended. Return the name that became free, or None."""
        name = self._name_of.pop(number, None)
        if name is not None:
            del self.names[name]
        return name

    def name_of(self, number: int) -> str | None:
        """Return the name of a process, or None."""
        return self._name_of.get(number)

    def pid(self, number: int) -> Pid:
        """Return the pid of a number of this node."""
        return Pid(self.node, self.incarnation, number)

    def _find_number(self, pid: Pid) -> int | None:
        here = pid.node == self.node and pid.incarnation == self.incarnation
        return pid.number if here and pid.number in self._name_of else None

    def _check_free(self, name: str) -> None:
        owner = self.whereis(name)
        if owner is not None:
            raise AlreadyRegistered(name, owner)
