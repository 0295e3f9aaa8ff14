"""Errors are sorted by what the caller may do, carry fields, and read as sentences."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from fleetlm import errors
from fleetlm.errors import (
    AlreadyRegistered,
    CallTimeout,
    Draining,
    Expired,
    Fenced,
    FleetError,
    InitFailed,
    InvalidName,
    MessageTooLarge,
    NoConnection,
    NodeLost,
    NodeStopped,
    NoFactory,
    NoHandler,
    NoMember,
    NoProcess,
    NotAllowed,
    NotDelivered,
    NotLoaded,
    NotOwner,
    NotSerializable,
    NotStored,
    OutcomeUnknown,
    ProcessDown,
    ProcessExit,
    RemoteError,
    SettingsError,
    StartFailed,
    StoreError,
    StoreFailed,
    StreamIdle,
    TooManyMemberships,
    TooManyNames,
    TooManyRows,
    Undecodable,
    VersionConflict,
    WorkerDied,
    WorkerNotStarted,
    WouldBlock,
)
from fleetlm.ids import Pid

NODE = "fleetlm@10.0.0.7"
TARGET = ("echo", NODE)
PID = Pid(NODE, 255, 3)

SENTENCES: list[tuple[FleetError, str]] = [
    (SettingsError("A", None, "a port"), "A is not set; allowed: a port."),
    (SettingsError("A", "x", "a port", "Unset it."), "A is 'x'; allowed: a port. Unset it."),
    (InvalidName("x", "no @"), "'x' is not a valid name: no @"),
    (NotSerializable("message[3]", "object"), "message[3] cannot be sent: object. Messages are values"),
    (MessageTooLarge(2_000_000, 1_000), "message of 2,000,000 bytes exceeds the limit of 1,000 bytes"),
    (AlreadyRegistered("echo", PID), f"the name 'echo' is already registered by <{NODE} ff 3>"),
    (MessageTooLarge(20, 10, "Settings.x"), "message of 20 bytes exceeds the limit of 10 bytes (Settings.x)"),
    (TooManyNames("echo", NODE, "it has 3"), f"{NODE} cannot register the name 'echo': it has 3"),
    (
        TooManyRows("flags", "a", "more than 3 rows"),
        "the row 'a' of the table 'flags' would be more than 3 rows",
    ),
    (NodeStopped(NODE), f"node {NODE} has been stopped; start a new one"),
    (StartFailed("10.0.0.7:4370", "in use"), "cannot listen on 10.0.0.7:4370: in use"),
    (NoProcess(TARGET), f"no process 'echo' on {NODE}: it has ended, or its name"),
    (NoProcess("echo"), "no process 'echo': it has ended"),
    (NoProcess(PID), f"no process <{NODE} ff 3>: it has ended"),
    (
        NoMember("workers"),
        "the process group 'workers' has no members: no process has joined it, or all have left",
    ),
    (TooManyMemberships(9, 2_000, 1_000), "this node has 9 memberships in process groups, and 2,000 more"),
    (NoHandler("a", "A has no handler 'x'"), "'a' cannot handle the request: A has no handler 'x'"),
    (NotAllowed(NODE, "because"), f"{NODE} does not allow this: because"),
    (Expired(), "the deadline of the call being served has passed, so nothing was sent"),
    (InitFailed("Sessions", "ValueError: no"), "Sessions did not start: ValueError: no"),
    (NoFactory(NODE, "session"), f"{NODE} has no factory 'session'; register it on that node with node.fac"),
    (NotOwner("s/a", NODE, 7), f"the entity s/a did not get the request: {NODE} owns it (epoch 7)"),
    (NotOwner("s/a", "", 7), "the entity s/a did not get the request: no node owns it now (epoch 7)"),
    (
        NotOwner("s/a", "", 0),
        "the entity s/a did not get the request: no node has owned it so far; is there a connected node",
    ),
    (NotLoaded("s/a", "why"), "the entity s/a did not get the request: its state cannot be loaded: why"),
    (
        NotStored("s/a", "why"),
        "the handler of s/a has run, and its state was not stored: why; the entity goes",
    ),
    (Fenced("s/a", 3, 7), "the store refuses epoch 3 of s/a: a later owner has come with epoch 7"),
    (
        VersionConflict("s/a", 3, 7),
        "version 7 of s/a is stored, and the writer has loaded version 3: another",
    ),
    (StoreFailed("x.db", "why"), "the store x.db failed: why"),
    (NoConnection(NODE, "no route"), f"not connected to {NODE}: no route"),
    (Draining(NODE), f"{NODE} is draining and takes no new work; ask another node"),
    (Undecodable(TARGET, "tag 'x'"), f"'echo' on {NODE} could not decode the message: tag 'x'"),
    (WouldBlock(TARGET, "window full"), f"sending to 'echo' on {NODE} would block: window full"),
    (NodeLost(NODE, "closed"), f"lost the connection to {NODE} before its reply came (closed); the request"),
    (StreamIdle(TARGET, 60.0), f"the stream from 'echo' on {NODE} was ended: no item came for 60 s"),
    (StreamIdle(PID, 5.0, True), f"the stream from <{NODE} ff 3> was ended: its consumer took no item for 5"),
    (ProcessExit("shutdown"), "exit with reason 'shutdown'"),
    (ProcessDown(TARGET, "normal"), f"process 'echo' on {NODE} ended before it replied (normal); the"),
    (
        WorkerNotStarted("train", "exit code 1"),
        "there is no worker process for train: exit code 1; the function has not run",
    ),
    (
        WorkerDied("train", "exit code 1"),
        "the worker process for train failed: exit code 1; the function may",
    ),
    (CallTimeout(TARGET, 5.0), f"no reply from 'echo' on {NODE} within 5 s; the request may have run"),
    (RemoteError("ValueError", "bad", "tb"), "ValueError: bad"),
    (RemoteError("KeyError", ""), "KeyError"),
]


@pytest.mark.parametrize(("error", "sentence"), SENTENCES, ids=lambda v: type(v).__name__)
def test_how_it_reads(error: FleetError, sentence: str) -> None:
    assert str(error).startswith(sentence)


@pytest.mark.parametrize("error", [error for error, _ in SENTENCES], ids=lambda v: type(v).__name__)
def test_errors_survive_a_copy_and_a_pickle(error: FleetError) -> None:
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_every_class_has_its_sentence_and_its_place_in_the_drawing() -> None:
    classes = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, FleetError)}
    abstract = {FleetError, NotDelivered, OutcomeUnknown, StoreError}
    assert classes - abstract == {type(error) for error, _ in SENTENCES}
    assert errors.__doc__ is not None
    for cls in classes:
        assert cls.__name__ in errors.__doc__


def test_what_the_caller_may_do() -> None:
    never_ran = {
        NoProcess, NoFactory, NoMember, NoHandler, Expired, NoConnection, Draining, Undecodable, WouldBlock,
        WorkerNotStarted, NotAllowed, NotOwner, NotLoaded,
    }  # fmt: skip
    may_have_run = {NodeLost, ProcessDown, WorkerDied, CallTimeout, StreamIdle, NotStored}
    for error, _ in SENTENCES:
        assert isinstance(error, NotDelivered) == (type(error) in never_ran)
        assert isinstance(error, OutcomeUnknown) == (type(error) in may_have_run)


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(CallTimeout, TimeoutError)
    assert issubclass(NoConnection, ConnectionError)
    assert issubclass(NodeLost, ConnectionError)
    assert issubclass(NotSerializable, TypeError)
    assert issubclass(MessageTooLarge, ValueError)
    assert issubclass(InvalidName, ValueError)
