"""Every exception of fleetlm, sorted by who made the mistake and by what the caller may do.

::

    FleetError
    ├── SettingsError       the operator: a variable has a value that is not allowed (exit code 78)
    ├── InvalidName         the caller: not a node name, or not a name for a process
    ├── NotSerializable     the caller: a value that would not arrive as it was sent
    ├── MessageTooLarge     the caller: larger than ``Settings.max_message_bytes``
    ├── AlreadyRegistered   the name has an owner on that node already
    ├── TooManyNames        the node already has as many cluster-wide names as it may have
    ├── TooManyMemberships  the caller: more than ``Settings.max_memberships``
    ├── TooManyRows         the caller: more than ``Settings.max_rows``, or too much in them
    ├── NodeStopped         this node has been stopped, or cannot be used in this process
    ├── StartFailed         this node could not start: its address or port cannot be bound
    ├── InitFailed          an actor failed, or was not ready in time, during its init
    ├── NotDelivered        the request never ran: trying again is safe
    │   ├── NoProcess       there is no process with that pid or name
    │   ├── NoMember        the process group is empty
    │   ├── NoHandler       the process is not an actor, or has no handler that takes these arguments
    │   ├── NotAllowed      the node, or the program that runs there, does not let other nodes do that
    │   ├── Expired         the deadline of the call being served has passed
    │   ├── NoFactory       that node has no factory of that name
    │   ├── NoConnection    that node is not connected
    │   ├── NotOwner        that node does not own the entity, or nobody does
    │   ├── Draining        that node is leaving and takes no new work
    │   ├── NotLoaded       the state of the entity could not be loaded from its store
    │   ├── Undecodable     the receiver does not know a type inside the message
    │   ├── WorkerNotStarted  there was no worker process for a function of ``run_in_process``
    │   └── WouldBlock      there is no room; or a call to oneself
    ├── OutcomeUnknown      the request may have run: repeat it only if that is harmless
    │   ├── NodeLost        the connection ended after the request was sent
    │   ├── ProcessDown     the process ended after it took the request
    │   ├── NotStored       the handler of an entity has run, and its state was not stored
    │   ├── WorkerDied      a worker process of ``run_in_process`` ended while it ran a function
    │   └── CallTimeout     there was no reply before the deadline
    │       └── StreamIdle  a stream had a pause longer than its idle limit
    ├── RemoteError         the request ran and raised an exception; its ``cause`` is one of these three, if
    │                       a request that it made itself ended it
    ├── StoreError          what a `Store` raises
    │   ├── Fenced          a later owner has loaded or written there: nothing was written
    │   ├── VersionConflict what is stored is not what the writer has loaded: nothing was written
    │   └── StoreFailed     the store cannot be used, or did not answer: it may have been written
    └── ProcessExit         raised by a process to end with an exit reason of its own

`NoConnection` and `NodeLost` are `ConnectionError` too, and `CallTimeout` is a `TimeoutError`.
Errors carry their facts as attributes; ``__str__`` makes the sentence. ``args`` hold the same facts, so
every error can be copied and pickled.

Source: OTP erpc.erl separates requests that ran from those that did not by exception class; differs:
three classes that say what the caller may do, instead of ``error``/``exit``/``throw``.
"""

from __future__ import annotations

from fleetlm.texts import SHORT, text_of


class FleetError(Exception):
    """The base class of all errors that fleetlm raises on purpose."""


class SettingsError(FleetError):
    """A setting has a value that is not allowed. Raised before anything is started, or by `Node.ready`.

    Attributes:
        variable: the environment variable, or the ``Settings`` field.
        value: its value, or None if it is not set but must be; secrets are masked.
        allowed: what is allowed, as a phrase.
        hint: what to do, as a sentence, or an empty string.
    """

    def __init__(self, variable: str, value: str | None, allowed: str, hint: str = "") -> None:
        super().__init__(variable, value, allowed, hint)
        self.variable = variable
        self.value = value
        self.allowed = allowed
        self.hint = hint

    def __str__(self) -> str:
        is_field = self.variable.startswith("Settings.")  # Then the value is shown as Python writes it.
        held = "is not set" if self.value is None else f"is {self.value if is_field else repr(self.value)}"
        tail = f" {self.hint}" if self.hint else ""
        return f"{self.variable} {held}; allowed: {self.allowed}.{tail}"


class InvalidName(FleetError, ValueError):
    """A text that is not a node name ``basename@ip``, or not a valid name for a process.

    Attributes:
        name: the text.
        why: the rule that it breaks.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name = name
        self.why = why

    def __str__(self) -> str:
        return f"{SHORT.repr(self.name)} is not a valid name: {self.why}"


class NotSerializable(FleetError, TypeError):
    """A message contains a value that would not arrive as it was sent. Nothing was sent.

    Attributes:
        path: the place in the message, such as ``message['user'][3]``.
        what: the type or the property that cannot be sent.
    """

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path = path
        self.what = what

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be sent: {self.what}. Messages are values: None, bool, int, float, str, "
            "bytes, list, tuple, dict, set, aware datetime, date, time, timedelta, UUID, Decimal, Pid, Ref, "
            "Address, buffers, numpy arrays; dataclasses, NamedTuples and enums registered with "
            "@fleetlm.message(tag); and types registered with fleetlm.register_type"
        )


class MessageTooLarge(FleetError, ValueError):
    """A message, or the meta of a cluster-wide name, is larger than the limit. Nothing was sent.

    Attributes:
        size_bytes: its size when packed.
        limit_bytes: the limit.
        setting: the setting that holds the limit.
    """

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
    """The name is registered by another process, or the process has another name. Nothing changed.

    Attributes:
        name: the registered name.
        owner: the process that has it.
    """

    def __init__(self, name: str, owner: object) -> None:
        super().__init__(name, owner)
        self.name = name
        self.owner = owner

    def __str__(self) -> str:
        return f"the name {self.name!r} is already registered by {text_of(self.owner)}; unregister it first"


class TooManyNames(FleetError):
    """A node already has as many cluster-wide names as it may have. Nothing changed.

    Attributes:
        name: the name that was to be registered.
        node: the node that has reached its limit.
        why: the limit, as a sentence.
    """

    def __init__(self, name: str, node: str, why: str) -> None:
        super().__init__(name, node, why)
        self.name = name
        self.node = node
        self.why = why

    def __str__(self) -> str:
        return f"{self.node} cannot register the name {self.name!r}: {self.why}"


class TooManyMemberships(FleetError):
    """This node's processes would have more memberships in process groups than allowed. None was added.

    Attributes:
        held: the memberships of this node's processes.
        wanted: the memberships that were to be added.
        limit: the number allowed.
    """

    def __init__(self, held: int, wanted: int, limit: int) -> None:
        super().__init__(held, wanted, limit)
        self.held = held
        self.wanted = wanted
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"this node has {self.held:,} memberships in process groups, and {self.wanted:,} more would "
            f"exceed the limit of {self.limit:,} (Settings.max_memberships); raise it on all nodes"
        )


class TooManyRows(FleetError):
    """This node's rows in tables would be more, or larger, than allowed. Nothing changed.

    Attributes:
        table: the name of the table.
        key: of the row that was to be written.
        why: the limit, as a phrase.
    """

    def __init__(self, table: str, key: str, why: str) -> None:
        super().__init__(table, key, why)
        self.table = table
        self.key = key
        self.why = why

    def __str__(self) -> str:
        return f"the row {self.key!r} of the table {self.table!r} would be {self.why}"


class NodeStopped(FleetError):
    """The node has been stopped, or belongs to the parent of a forked process. Nothing was done.

    Attributes:
        node: the name of the node.
        why: the reason, as the rest of a sentence.
    """

    def __init__(self, node: str, why: str = "has been stopped") -> None:
        super().__init__(node, why)
        self.node = node
        self.why = why

    def __str__(self) -> str:
        return f"node {self.node} {self.why}; start a new one with fleetlm.Node.start()"


class StartFailed(FleetError):
    """The node could not start listening. No socket and no task is left.

    Attributes:
        endpoint: the ``ip:port`` that could not be bound.
        why: the reason given by the operating system, and what to do.
    """

    def __init__(self, endpoint: str, why: str) -> None:
        super().__init__(endpoint, why)
        self.endpoint = endpoint
        self.why = why

    def __str__(self) -> str:
        return f"cannot listen on {self.endpoint}: {self.why}"


class InitFailed(FleetError):
    """An actor did not start: its constructor or ``init`` raised, or took too long. Its process has ended.

    Attributes:
        actor: the qualified name of the actor's class.
        reason: the exit reason of its process; a `Crash` if it raised.
    """

    def __init__(self, actor: str, reason: object) -> None:
        super().__init__(actor, reason)
        self.actor = actor
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.actor} did not start: {text_of(self.reason)}"


class NotDelivered(FleetError):
    """The message never reached a process, or the request never ran. Trying again is safe."""


class NoProcess(NotDelivered):
    """There was no such process when the message was to be delivered.

    Attributes:
        target: the pid or the name that was addressed.
    """

    def __init__(self, target: object) -> None:
        super().__init__(target)
        self.target = target

    def __str__(self) -> str:
        return f"no process {_shown(self.target)}: it has ended, or its name is not registered"


class NoMember(NotDelivered):
    """The process group has no member that this node knows of, or none that is wanted.

    Attributes:
        group: the name of the group.
        wanted: which members are wanted, as a phrase; empty: any.
    """

    def __init__(self, group: str, wanted: str = "") -> None:
        super().__init__(group, wanted)
        self.group = group
        self.wanted = wanted

    def __str__(self) -> str:
        if self.wanted:
            return f"the process group {self.group!r} has no member {self.wanted} in its meta"
        return f"the process group {self.group!r} has no members: no process has joined it, or all have left"


class NoHandler(NotDelivered):
    """The process has no handler for the request, or one that does not take its arguments: nothing has run.

    Attributes:
        target: the process.
        why: the reason, such as the class and the handler that it lacks.
    """

    def __init__(self, target: object, why: str) -> None:
        super().__init__(target, why)
        self.target = target
        self.why = why

    def __str__(self) -> str:
        return f"{_shown(self.target)} cannot handle the request: {self.why}"


class NotAllowed(NotDelivered):
    """The other node does not allow it: nothing was sent, or nothing of it has run.

    It would be refused again, so `retry` does not repeat it. A request to a group goes on to another member.

    Attributes:
        node: the name of the node that refuses.
        why: what it refuses, and what decides that: its `Settings.peers_may`, or a process, handler or
            factory that the program there has marked with ``local=True``.
    """

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node, why)
        self.node = node
        self.why = why

    def __str__(self) -> str:
        return f"{self.node} does not allow this: {self.why}"


class Expired(NotDelivered):
    """The request was made while serving a call whose own deadline has passed. Nothing was sent."""

    def __str__(self) -> str:
        return "the deadline of the call being served has passed, so nothing was sent"


class NoFactory(NotDelivered):
    """The node has no factory of that name, so nothing was spawned.

    Attributes:
        node: the name of the node.
        factory: the name of the factory.
    """

    def __init__(self, node: str, factory: str) -> None:
        super().__init__(node, factory)
        self.node = node
        self.factory = factory

    def __str__(self) -> str:
        return (
            f"{self.node} has no factory {self.factory!r}; register it on that node with "
            "node.factories.register(...)"
        )


class NoConnection(NotDelivered, ConnectionError):
    """The node is not connected: nothing was sent, or it left before it took the request.

    Attributes:
        node: the name of the node.
        why: the reason, such as the last error of dialling it.
    """

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node, why)
        self.node = node
        self.why = why

    def __str__(self) -> str:
        return f"not connected to {self.node}: {self.why}"


class NotOwner(NotDelivered):
    """The node does not own the shard of the entity, or does not under the epoch of the request.

    References to entities go on to the owner by themselves. They raise this where there was no owner, or none
    that took the request, for as long as the request had time.

    Attributes:
        target: the entity, as ``kind/key``.
        owner: the name of the node that owns it, as the node that refused knows; empty: none, or it is just
            being handed over.
        epoch: of that ownership, or the highest one that the node that refused has heard of; 0: of none.
    """

    def __init__(self, target: str, owner: str, epoch: int) -> None:
        super().__init__(target, owner, epoch)
        self.target = target
        self.owner = owner
        self.epoch = epoch

    def __str__(self) -> str:
        failed = f"the entity {self.target} did not get the request"
        if self.owner:
            return f"{failed}: {self.owner} owns it (epoch {self.epoch})"
        if self.epoch:
            return f"{failed}: no node owns it now (epoch {self.epoch})"
        kind = self.target.partition("/")[0]
        return f"{failed}: no node has owned it so far; is there a connected node that hosts {kind!r}?"


class NotLoaded(NotDelivered):
    """The state of an entity could not be loaded from its store, so its handler has not run.

    Attributes:
        target: the entity, as ``kind/key``.
        why: the reason, with the store.
    """

    def __init__(self, target: str, why: str) -> None:
        super().__init__(target, why)
        self.target = target
        self.why = why

    def __str__(self) -> str:
        return f"the entity {self.target} did not get the request: its state cannot be loaded: {self.why}"


class Draining(NotDelivered):
    """The node is leaving and takes no new work. The request has not run.

    A stream that lasts longer than the drain ends with it too, after the items that came before. Its handler
    has run in part: `has_begun` says so, and it is repeated only if the request is idempotent.

    Attributes:
        node: the name of the node.
        retry_after: seconds until its drain ends at the latest: the node has stopped then, or its drain was
            undone. Most drains end sooner. Other nodes can be asked at once.
        has_begun: it has ended a stream whose handler had begun.
        was_sent: whether the request was sent at all. It was not if the node had said before that it refuses
            new work, so that this attempt was no load for anybody.
    """

    def __init__(self, node: str, retry_after: float = 0.0, has_begun: bool = False) -> None:
        super().__init__(node, retry_after, has_begun)
        self.node = node
        self.retry_after = retry_after
        self.has_begun = has_begun
        self.was_sent: bool = True

    def __str__(self) -> str:
        if self.has_begun:
            return f"{self.node} is draining and has ended this stream before its last item"
        return f"{self.node} is draining and takes no new work; ask another node"


class Undecodable(NotDelivered):
    """The receiving node could not decode the message, so no process received it.

    Attributes:
        target: the process that was addressed.
        why: the reason, such as a tag that is not registered there.
    """

    def __init__(self, target: object, why: str) -> None:
        super().__init__(target, why)
        self.target = target
        self.why = why

    def __str__(self) -> str:
        return f"{_shown(self.target)} could not decode the message: {self.why}"


class WouldBlock(NotDelivered):
    """There is no room, and the request must not wait, or has waited long enough. Nothing has run.

    Also raised for a call that could never be answered: to oneself, or back to a process that waits for the
    caller.

    Attributes:
        target: the process that was addressed.
        why: the window that is full, and by how much.
    """

    def __init__(self, target: object, why: str) -> None:
        super().__init__(target, why)
        self.target = target
        self.why = why

    def __str__(self) -> str:
        return f"sending to {_shown(self.target)} would block: {self.why}"


class WorkerNotStarted(NotDelivered):
    """No worker process could run a function for `Node.run_in_process`: it has not run.

    Attributes:
        function: the qualified name of the function.
        why: why the process did not start, such as an initializer that raised (then the ``__cause__``), and
            what to do if the program is the cause.
    """

    def __init__(self, function: str, why: str) -> None:
        super().__init__(function, why)
        self.function = function
        self.why = why

    def __str__(self) -> str:
        return f"there is no worker process for {self.function}: {self.why}; the function has not run"


class OutcomeUnknown(FleetError):
    """The request was sent, and may have run or not. Repeat it only if running it twice is harmless."""


class NodeLost(OutcomeUnknown, ConnectionError):
    """The connection to the node ended after the request was sent and before the reply came.

    Attributes:
        node: the name of the node.
        why: why the connection ended.
    """

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node, why)
        self.node = node
        self.why = why

    def __str__(self) -> str:
        return (
            f"lost the connection to {self.node} before its reply came ({self.why}); the request may have run"
        )


class ProcessDown(OutcomeUnknown):
    """The process ended after it took the request and before it replied.

    Attributes:
        target: the process.
        reason: its exit reason.
    """

    def __init__(self, target: object, reason: object) -> None:
        super().__init__(target, reason)
        self.target = target
        self.reason = reason

    def __str__(self) -> str:
        reason = text_of(self.reason)
        return f"process {_shown(self.target)} ended before it replied ({reason}); the request may have run"


class NotStored(OutcomeUnknown):
    """The handler of an entity has run, and what it changed was not stored (``durable="write"``).

    The next request finds the entity as it was stored last. A store that did not answer may have stored the
    change nevertheless; then the next request finds it. Repeat the request only if running it twice is
    harmless.

    Attributes:
        target: the entity, as ``kind/key``.
        why: the reason, with the store.
    """

    def __init__(self, target: str, why: str) -> None:
        super().__init__(target, why)
        self.target = target
        self.why = why

    def __str__(self) -> str:
        return (
            f"the handler of {self.target} has run, and its state was not stored: {self.why}; the entity "
            "goes on from what was stored last"
        )


class WorkerDied(OutcomeUnknown):
    """The worker process that ran a function for `Node.run_in_process` has ended.

    Attributes:
        function: the qualified name of the function.
        why: how the process ended.
    """

    def __init__(self, function: str, why: str) -> None:
        super().__init__(function, why)
        self.function = function
        self.why = why

    def __str__(self) -> str:
        return f"the worker process for {self.function} failed: {self.why}; the function may have run"


class CallTimeout(OutcomeUnknown, TimeoutError):
    """There was no reply before the deadline. An actor's handler is cancelled if it still runs.

    Attributes:
        target: the process that was called.
        timeout_s: the time allowed for the call, in seconds.
    """

    def __init__(self, target: object, timeout_s: float) -> None:
        super().__init__(target, timeout_s)
        self.target = target
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"no reply from {_shown(self.target)} within {self.timeout_s:g} s; the request may have run"


class StreamIdle(CallTimeout):
    """A stream had a pause longer than its idle limit, so it has ended. Its producer is cancelled.

    Attributes:
        target: the process that produced the items.
        timeout_s: the idle limit, in seconds.
        is_unread: whether the consumer made the pause, by taking no item while the producer waited for it;
            else the producer made it, by sending none.
    """

    def __init__(self, target: object, timeout_s: float, is_unread: bool = False) -> None:
        super().__init__(target, timeout_s)
        self.args: tuple[object, ...] = (target, timeout_s, is_unread)
        self.is_unread = is_unread

    def __str__(self) -> str:
        pause = "its consumer took no item" if self.is_unread else "no item came"
        return (
            f"the stream from {_shown(self.target)} was ended: {pause} for {self.timeout_s:g} s, its idle "
            "limit (idle=... of the stream, or Settings.stream_idle_s)"
        )


class RemoteError(FleetError):
    """The request ran and raised an exception. The exception is not sent, only its text.

    What the handler itself asked of others may have had an outcome of its own, which the handler let
    through. That outcome keeps its class, as `cause`, and says who may repeat the request:

    * `NotDelivered`: the inner request never ran. Repeat the outer one if what its handler did *before* may
      be done twice; a handler that had done nothing yet may always be repeated.
    * `OutcomeUnknown`: the inner request may have run. Repeat the outer one if both may run twice.
    * `RemoteError`: the inner request ran and raised. A repetition would most likely raise again; its own
      `cause` says why.
    * None: the handler raised by itself.

    Attributes:
        type_name: the name of the exception's class, such as ``ValueError``.
        text: the exception's message.
        traceback_text: the traceback as text, for logs; may be empty.
        cause: the outcome of a request of the handler that ended it, or None. It is the ``__cause__`` too.
    """

    def __init__(
        self, type_name: str, text: str, traceback_text: str = "", cause: FleetError | None = None
    ) -> None:
        super().__init__(type_name, text, traceback_text, cause)
        self.type_name = type_name
        self.text = text
        self.traceback_text = traceback_text
        self.cause: FleetError | None = cause
        self.__cause__: BaseException | None = cause

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


class StoreError(FleetError):
    """A store did not do what it was asked. The subclasses say what that means."""


class Fenced(StoreError):
    """Another owner has loaded or written the state under a higher epoch. Nothing was written.

    Attributes:
        target: what is stored, as ``kind/key``.
        epoch: of the owner that was refused.
        highest: the epoch that the store has seen.
    """

    def __init__(self, target: str, epoch: int, highest: int) -> None:
        super().__init__(target, epoch, highest)
        self.target = target
        self.epoch = epoch
        self.highest = highest

    def __str__(self) -> str:
        return (
            f"the store refuses epoch {self.epoch} of {self.target}: a later owner has come with epoch "
            f"{self.highest}"
        )


class VersionConflict(StoreError):
    """Another version is stored than the one that the writer has loaded. Nothing was written.

    Attributes:
        target: what is stored, as ``kind/key``.
        expected: the version that the writer has loaded or written last.
        found: the version that is stored.
    """

    def __init__(self, target: str, expected: int, found: int) -> None:
        super().__init__(target, expected, found)
        self.target = target
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return (
            f"version {self.found} of {self.target} is stored, and the writer has loaded version "
            f"{self.expected}: another one has written meanwhile"
        )


class StoreFailed(StoreError):
    """The store cannot be used, has no room, or did not answer in time.

    A write that failed so may have taken effect, or may still do, unless the state is loaded after it and
    written in another version.

    Attributes:
        store: which one, such as its path.
        why: the reason, and what to do.
    """

    def __init__(self, store: str, why: str) -> None:
        super().__init__(store, why)
        self.store = store
        self.why = why

    def __str__(self) -> str:
        return f"the store {self.store} failed: {self.why}"


class ProcessExit(FleetError):
    """Raised by a process function to end its process with an exit reason. Not logged as a crash.

    Attributes:
        reason: the exit reason: ``"normal"`` and ``"shutdown"`` for a clean end, or any other value
            that can be sent.
    """

    def __init__(self, reason: object = "normal") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"exit with reason {SHORT.repr(self.reason)}"


def _shown(target: object) -> str:
    """Format a target for an error text: ``'echo' on fleetlm@10.0.0.7``."""
    if isinstance(target, tuple) and len(target) == 2:
        return f"{SHORT.repr(target[0])} on {text_of(target[1])}"
    return SHORT.repr(target) if isinstance(target, str) else text_of(target)
