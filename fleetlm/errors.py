"""Every exception of fleetlm, sorted by whose fault it is and what the caller may do.

::

    FleetError
    ├── SettingsError       the operator's: a variable holds what it must not (exit code 78)
    ├── InvalidName         the caller's: not a node name, or not a name for a process
    ├── NotSerializable     the caller's: a value that cannot be sent exactly
    ├── MessageTooLarge     the caller's: beyond ``Settings.max_message_bytes``
    ├── AlreadyRegistered   the name has an owner on that node
    ├── TooManyNames        a node has as many cluster-wide names as it may
    ├── TooManyMemberships  the caller's: beyond ``Settings.max_memberships``
    ├── NodeStopped         this node has been stopped, or was never started
    ├── StartFailed         this node could not start: its address or port is not to be had
    ├── InitFailed          an actor ended, or was not ready in time, before its init was done
    ├── NotDelivered        it never ran: trying again is safe
    │   ├── NoProcess       nobody there under that pid or name
    │   ├── NoMember        the process group is empty
    │   ├── NoHandler       it is no actor, or has no such handler
    │   ├── Expired         the call being served has no time left
    │   ├── NoFactory       that node has registered no factory of that name
    │   ├── NoConnection    that node is not connected
    │   ├── Draining        that node is leaving and takes no new work
    │   ├── Undecodable     the receiver does not know a type inside the message
    │   └── WouldBlock      ``send_nowait`` into a full window
    ├── OutcomeUnknown             it may have run: try again only what is idempotent
    │   ├── NodeLost        the node went down after the request was sent
    │   ├── ProcessDown     the process ended after it took the request
    │   ├── WorkerDied      a worker process of ``run_in_process`` ended under a function
    │   └── CallTimeout     no reply before the deadline
    ├── RemoteError         it ran and raised
    └── ProcessExit         what a process raises to end with a reason of its own

Fields, not strings: the sentence is built in ``__str__``.
Source: OTP erpc.erl separates what ran from what did not by exception class; differs: three classes
that name what the caller may do, instead of ``error``/``exit``/``throw``.
"""

from __future__ import annotations


def text_of(value: object) -> str:
    """What an exception or an exit reason says; a ``__str__`` that fails must not hide who has failed."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001  # it is the program's
        return f"<{type(value).__name__}, whose text cannot be made>"


class FleetError(Exception):
    """Base of everything that fleetlm raises on purpose."""


class SettingsError(FleetError):
    """A setting that cannot be used. Raised before anything was started, or by `Node.ready`.

    Attributes:
        variable: the environment variable (or ``Settings`` field) in question.
        value: what it held, or None where its absence is the fault; secrets are masked.
        allowed: what is allowed, as a phrase.
        hint: what to do, or an empty string.
    """

    def __init__(self, variable: str, value: str | None, allowed: str, hint: str = "") -> None:
        super().__init__(variable, value, allowed, hint)
        self.variable = variable
        self.value = value
        self.allowed = allowed
        self.hint = hint

    def __str__(self) -> str:
        held = "is not set" if self.value is None else f"is {self.value!r}"
        tail = f" {self.hint}" if self.hint else ""
        return f"{self.variable} {held}; allowed: {self.allowed}.{tail}"


class InvalidName(FleetError, ValueError):
    """Not a node name ``basename@ip``, or not a name that a process can have."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name = name
        self.why = why

    def __str__(self) -> str:
        return f"{self.name!r} is not a valid name: {self.why}"


class NotSerializable(FleetError, TypeError):
    """A value that would not arrive as it was sent. Nothing was sent.

    Attributes:
        path: where in the message, such as ``message['user'][3]``.
        what: the type or the property that cannot travel.
    """

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path = path
        self.what = what

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be sent: {self.what}. Messages are values: None, bool, int, float, str, "
            "bytes, list, tuple, dict, set, aware datetime, UUID, Decimal, Pid, Ref, Address and "
            "dataclasses registered with @fleetlm.message(tag)"
        )


class MessageTooLarge(FleetError, ValueError):
    """A message, or a name's meta, beyond the limit. Nothing was sent."""

    def __init__(
        self, size_bytes: int, limit_bytes: int, setting: str = "Settings.max_message_bytes"
    ) -> None:
        super().__init__(size_bytes, limit_bytes, setting)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        self.setting = setting

    def __str__(self) -> str:
        return (
            f"message of {self.size_bytes:,} bytes exceeds the limit of {self.limit_bytes:,} bytes "
            f"({self.setting}): send it in parts, or pass a reference to where it is stored"
        )


class AlreadyRegistered(FleetError):
    """The name belongs to another process, or the process has a name already. Nothing changed."""

    def __init__(self, name: str, owner: object) -> None:
        super().__init__(name, owner)
        self.name = name
        self.owner = owner

    def __str__(self) -> str:
        return f"the name {self.name!r} is registered already, by {self.owner}; unregister it first"


class TooManyNames(FleetError):
    """A node has as many cluster-wide names as it may. Nothing changed.

    Attributes:
        name: the one too many.
        node: whose limit it is.
        why: the limit, as a sentence.
    """

    def __init__(self, name: str, node: str, why: str) -> None:
        super().__init__(name, node, why)
        self.name = name
        self.node = node
        self.why = why

    def __str__(self) -> str:
        return f"{self.node} cannot take the name {self.name!r}: {self.why}"


class TooManyMemberships(FleetError):
    """More memberships in process groups than a node may have. Nobody joined.

    Attributes:
        held: memberships that this node's processes have.
        wanted: those that were to be added.
        limit: what is allowed.
    """

    def __init__(self, held: int, wanted: int, limit: int) -> None:
        super().__init__(held, wanted, limit)
        self.held = held
        self.wanted = wanted
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"{self.held:,} memberships in process groups and {self.wanted:,} more exceed the limit of "
            f"{self.limit:,} (Settings.max_memberships); raise it on all nodes"
        )


class NodeStopped(FleetError):
    """The node that was asked has been stopped, or lives in another process.

    Attributes:
        node: its name.
        why: what became of it, as the rest of a sentence.
    """

    def __init__(self, node: str, why: str = "has been stopped") -> None:
        super().__init__(node, why)
        self.node = node
        self.why = why

    def __str__(self) -> str:
        return f"node {self.node} {self.why}; start a new one with fleetlm.Node.start()"


class StartFailed(FleetError):
    """The node could not start. Nothing is left behind.

    Attributes:
        endpoint: the ``ip:port`` it wanted.
        why: what the operating system said, and what to do.
    """

    def __init__(self, endpoint: str, why: str) -> None:
        super().__init__(endpoint, why)
        self.endpoint = endpoint
        self.why = why

    def __str__(self) -> str:
        return f"cannot listen on {self.endpoint}: {self.why}"


class InitFailed(FleetError):
    """An actor did not come to serve: its constructor or ``init`` raised, or was not done in time.

    The process is gone.

    Attributes:
        actor: qualified name of its class.
        reason: its exit reason; `Crash` where it raised.
    """

    def __init__(self, actor: str, reason: object) -> None:
        super().__init__(actor, reason)
        self.actor = actor
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.actor} did not start: {self.reason}"


class NotDelivered(FleetError):
    """The message never reached a process, or the request never ran: trying again is safe."""


class NoProcess(NotDelivered):
    """No such process, at the time the message was to be delivered."""

    def __init__(self, target: object) -> None:
        super().__init__(target)
        self.target = target

    def __str__(self) -> str:
        return f"no process {_shown(self.target)}: it has ended, or nobody registered that name there"


class NoMember(NotDelivered):
    """The process group has no member that this node knows of."""

    def __init__(self, group: str) -> None:
        super().__init__(group)
        self.group = group

    def __str__(self) -> str:
        return f"no process is in the group {self.group!r}: nobody has joined it, or all have gone"


class NoHandler(NotDelivered):
    """The process runs nothing under that name, so nothing has run."""

    def __init__(self, target: object, why: str) -> None:
        super().__init__(target, why)
        self.target = target
        self.why = why

    def __str__(self) -> str:
        return f"{_shown(self.target)} cannot run that: {self.why}"


class Expired(NotDelivered):
    """Asked for while serving a call whose own deadline has passed. Nothing was sent."""

    def __str__(self) -> str:
        return "the call that is being served has no time left, so nothing was sent"


class NoFactory(NotDelivered):
    """The node has registered no factory of that name, so nothing was spawned."""

    def __init__(self, node: str, factory: str) -> None:
        super().__init__(node, factory)
        self.node = node
        self.factory = factory

    def __str__(self) -> str:
        return f"{self.node} has no factory {self.factory!r}; register it there: node.factories.register(...)"


class NoConnection(NotDelivered):
    """The node is not connected, so nothing was sent."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node, why)
        self.node = node
        self.why = why

    def __str__(self) -> str:
        return f"not connected to {self.node}: {self.why}"


class Draining(NotDelivered):
    """The node is leaving and takes no new work."""

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.node = node

    def __str__(self) -> str:
        return f"{self.node} is draining and takes no new work; ask another node"


class Undecodable(NotDelivered):
    """The receiver could not rebuild the message, so no process saw it."""

    def __init__(self, target: object, why: str) -> None:
        super().__init__(target, why)
        self.target = target
        self.why = why

    def __str__(self) -> str:
        return f"{_shown(self.target)} could not read the message: {self.why}"


class WouldBlock(NotDelivered):
    """A window is full. Nothing was sent; ``await send(...)`` would have waited."""

    def __init__(self, target: object, why: str) -> None:
        super().__init__(target, why)
        self.target = target
        self.why = why

    def __str__(self) -> str:
        return f"sending to {_shown(self.target)} would block: {self.why}"


class OutcomeUnknown(FleetError):
    """The request was sent and its outcome is not known: it may have run."""


class NodeLost(OutcomeUnknown):
    """The connection to the node ended after the request was sent."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node, why)
        self.node = node
        self.why = why

    def __str__(self) -> str:
        return f"lost {self.node} while waiting for its reply ({self.why}); the request may have run"


class ProcessDown(OutcomeUnknown):
    """The process ended after it took the request and before it replied."""

    def __init__(self, target: object, reason: object) -> None:
        super().__init__(target, reason)
        self.target = target
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"process {_shown(self.target)} ended before it replied ({self.reason}); the request may have run"
        )


class WorkerDied(OutcomeUnknown):
    """The operating system's process that ran a function for `Node.run_in_process` has ended.

    Attributes:
        function: its qualified name.
        why: how the process ended, as the rest of a sentence.
    """

    def __init__(self, function: str, why: str) -> None:
        super().__init__(function, why)
        self.function = function
        self.why = why

    def __str__(self) -> str:
        return f"the worker process for {self.function} is gone: {self.why}; the function may have run"


class CallTimeout(OutcomeUnknown, TimeoutError):
    """No reply before the deadline."""

    def __init__(self, target: object, timeout_s: float) -> None:
        super().__init__(target, timeout_s)
        self.target = target
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"no reply from {_shown(self.target)} within {self.timeout_s:g} s; the request may have run"


class RemoteError(FleetError):
    """The request ran and raised. The exception itself does not travel, its text does.

    Attributes:
        type_name: name of the exception's class, such as ``ValueError``.
        text: its message.
        traceback_text: the traceback as text, for logs; may be empty.
    """

    def __init__(self, type_name: str, text: str, traceback_text: str = "") -> None:
        super().__init__(type_name, text, traceback_text)
        self.type_name = type_name
        self.text = text
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


class ProcessExit(FleetError):
    """Raised by a process function to end with this exit reason; not logged as a crash.

    ``"normal"`` and ``"shutdown"`` are clean ends; any other message value may say more.
    """

    def __init__(self, reason: object = "normal") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"exit with reason {self.reason!r}"


def _shown(target: object) -> str:
    """A target as people write it: ``'echo' on fleetlm@10.0.0.7``."""
    if isinstance(target, tuple) and len(target) == 2:
        return f"{target[0]!r} on {target[1]}"
    return repr(target) if isinstance(target, str) else str(target)
