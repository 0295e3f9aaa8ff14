"""What of the façade for threads needs no thread: the loop's own thread, and sends with a deadline."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from fleetlm import (
    ActorRef,
    ActorRefs,
    GroupRef,
    Member,
    NoConnection,
    Node,
    NodeStopped,
    NoProcess,
    NotSerializable,
    Process,
    SharedTable,
    WouldBlock,
)
from fleetlm.blocking.forks import FORKED
from fleetlm.directory.groups import Groups
from fleetlm.directory.registry import Registry
from fleetlm.directory.subscriptions import Subscription
from fleetlm.processes.remote_spawn import Factories
from fleetlm.sync import SyncNode
from fleetlm.testing.loop import SimLoop
from fleetlm.threads.arrivals import SyncSubscription
from fleetlm.threads.members import SyncMember, SyncTable
from fleetlm.threads.references import SyncGroupRef, SyncRef, SyncRefs
from fleetlm.threads.tables import SyncFactories, SyncGroups, SyncRegistry
from tests.sim.fleet import A, B, Fleet, collector, simulated
from tests.typing.sessions import Sessions

KIB = 1024
NARROW = {
    "window_bytes": 64 * KIB,
    "chunk_bytes": 4 * KIB,
    "bulk_window_bytes": 8 * KIB,
    "batch_bytes": 4 * KIB,
}

COUNTERPARTS: dict[type, type] = {
    Node: SyncNode,
    Groups: SyncGroups,
    Registry: SyncRegistry,
    Factories: SyncFactories,
    Subscription: SyncSubscription,
    ActorRef: SyncRef,
    ActorRefs: SyncRefs,
    GroupRef: SyncGroupRef,
    Member: SyncMember,
    SharedTable: SyncTable,
}
ONLY_FOR_COROUTINES = {
    "Node.start": "`node_in_thread` starts a node for threads",
    "Node.sync": "it leads to this very object",
    "Node.telemetry": "its observers run on the node's event loop",
    "Node.run_blocking": "a thread calls the function itself",
    "Node.stream_blocking": "a thread can iterate over the generator itself",
    "Node.entities": "a thread asks an entity through an actor, or a handler, of its own node",
    "Node.singleton": "what it runs is a coroutine function, and is declared where the node starts",
    "Node.cron": "likewise",
    "Node.singletons": "a thread asks a singleton through a process of its own node",
    "Node.process_pool": "for a pool of threads' own there is `concurrent.futures.ProcessPoolExecutor`",
}
"""Public names that threads do not get, each with its reason."""
ONLY_FOR_THREADS = {
    "SyncSubscription.get": "a coroutine puts `asyncio.timeout` around `anext`",
    "SyncNode.wait_stopped(timeout)": "a thread has no `asyncio.timeout`",
    "SyncNode.send(timeout)": "likewise",
}
"""Public names and parameters that only threads have."""


def public(held: type) -> set[str]:
    """The public methods of a class, and the public attributes that its constructor sets."""
    source = inspect.getsource(held)
    attributes = set(re.findall(r"self\.([a-z]\w*)(?:: [^=\n]+)? = ", source))
    return {name for name in {*dir(held), *attributes} if not name.startswith("_")}


@pytest.mark.parametrize("held", COUNTERPARTS, ids=lambda held: held.__name__)
def test_threads_have_each_method_that_coroutines_have_or_there_is_a_reason(held: type) -> None:
    threads = COUNTERPARTS[held]
    missing = {f"{held.__name__}.{name}" for name in public(held) - public(threads)}
    assert missing == {name for name in ONLY_FOR_COROUTINES if name.startswith(f"{held.__name__}.")}
    more = {f"{threads.__name__}.{name}" for name in public(threads) - public(held)}
    assert more <= ONLY_FOR_THREADS.keys()


@pytest.mark.parametrize("held", COUNTERPARTS, ids=lambda held: held.__name__)
def test_a_method_for_threads_takes_what_the_one_for_coroutines_takes(held: type) -> None:
    threads = COUNTERPARTS[held]
    for name in sorted(public(held) & public(threads)):
        ours, theirs = getattr(held, name, None), getattr(threads, name, None)
        if not inspect.isfunction(ours) or not inspect.isfunction(theirs):
            continue
        wanted = {each: (it.kind, it.default) for each, it in inspect.signature(ours).parameters.items()}
        found = {each: (it.kind, it.default) for each, it in inspect.signature(theirs).parameters.items()}
        for more in found.keys() - wanted.keys():
            assert f"{threads.__name__}.{name}({more})" in ONLY_FOR_THREADS
            del found[more]
        assert found == wanted, f"{threads.__name__}.{name}"


EVERY: list[tuple[str, Callable[[SyncNode], Any]]] = [
    ("send", lambda node: node.send("x", 1)),
    ("send", lambda node: node.send("x", 1, timeout=1)),
    ("send_nowait", lambda node: node.send_nowait("x", 1)),
    ("call", lambda node: node.call("x", 1)),
    ("multicall", lambda node: node.multicall(["x"], 1)),
    ("retry", lambda node: node.retry(lambda: None)),
    ("groups.call", lambda node: node.groups.call("g", 1)),
    ("groups.call", lambda node: node.groups.ref(Sessions, "g").call(Sessions.touch)),
    ("groups.cast", lambda node: node.groups.ref(Sessions, "g").cast(Sessions.touch)),
    ("broadcast", lambda node: node.broadcast("x", 1)),
    ("refs.broadcast", lambda node: node.refs(Sessions, []).broadcast(Sessions.touch)),
    ("spawn", lambda node: node.spawn(collector([]))),
    ("exit", lambda node: node.exit(None)),  # type: ignore[arg-type]
    ("whereis", lambda node: node.whereis("x")),
    ("ready", lambda node: node.ready()),
    ("list", lambda node: node.list()),
    ("stream", lambda node: next(node.stream("x", 1))),
    ("events", lambda node: node.events()),
    ("drain", lambda node: node.drain()),
    ("undrain", lambda node: node.undrain()),
    ("stop", lambda node: node.stop()),
    ("wait_stopped", lambda node: node.wait_stopped()),
    ("groups.members", lambda node: node.groups.members("x")),
    ("registry.whereis", lambda node: node.registry.whereis("x")),
    ("factories.list", lambda node: node.factories.list()),
]


@simulated
async def test_on_the_loops_own_thread_each_method_says_what_to_write_instead(fleet: Fleet) -> None:
    a = await fleet.start(A)
    for verb, use in EVERY:
        with pytest.raises(
            RuntimeError,
            match=rf"node\.sync\.{re.escape(verb)}\(\) is for other threads.*use node\.{re.escape(verb)}\(",
        ):
            use(a.sync)
    with pytest.raises(RuntimeError, match="is for other threads"):
        await a.run_blocking(a.sync.list)  # in a simulation that is the loop's thread
    assert a.sync.name == a.name


@simulated
async def test_a_forked_child_is_told_so_at_once(fleet: Fleet) -> None:
    a = await fleet.start(A)
    a._threads.after_fork()
    assert str(a._threads.ended()) == str(NodeStopped(a.name, FORKED))


async def sleeper(process: Process) -> None:
    """Takes a message when it is told to, after a minute."""
    while True:
        await asyncio.sleep(60)
        await process.receive()


@simulated
async def test_a_send_with_a_deadline_waits_for_a_mailbox_and_then_gives_up(fleet: Fleet) -> None:
    a = await fleet.start(A, mailbox_limit=2)
    pid = a.spawn(sleeper, name="sleeper")
    loop, send = SimLoop.current(), a._outbound.send
    for number in range(2):
        await send("sleeper", number, 5)
    assert loop.time() < 1
    began = loop.time()
    with pytest.raises(WouldBlock, match="its window stayed full for the 5 s of the deadline"):
        await send("sleeper", 2, 5)
    assert loop.time() == began + 5
    waiting = asyncio.create_task(send(pid, 3, 600))
    await asyncio.sleep(30)
    assert not waiting.done()
    await waiting
    assert loop.time() == pytest.approx(60, abs=1)  # when half of the mailbox is free
    process = a._local.process(pid)
    assert process is not None
    assert list(process.mailbox.queue)[-1] == 3


@simulated
async def test_a_send_with_a_deadline_hears_what_a_send_hears(fleet: Fleet) -> None:
    a = await fleet.start(A, mailbox_limit=1)
    send = a._outbound.send
    with pytest.raises(NoProcess):
        await send("nobody", 1, 5)
    with pytest.raises(NoConnection):
        await send(("x", "fleetlm@10.0.0.9"), 1, 5)
    pid = a.spawn(sleeper)
    await send(pid, 1, 5)
    waiting = asyncio.create_task(send(pid, 2, 500))
    await asyncio.sleep(1)
    a.exit(pid, "kill")
    with pytest.raises(NoProcess):
        await waiting
    await a.stop()
    with pytest.raises(NodeStopped):
        await send("nobody", 1, 5)


@pytest.mark.parametrize("size", [100, 40 * KIB], ids=["small", "large"])
def test_a_send_with_a_deadline_to_another_node(size: int) -> None:
    @simulated
    async def scenario(fleet: Fleet) -> None:
        a, b = await fleet.mesh(2, **NARROW)
        got: list[Any] = []
        b.spawn(collector(got), name="sink")
        loop, send = SimLoop.current(), a._outbound.send
        fleet.net.stall(B)
        began, sent = loop.time(), 0
        full = None
        while full is None:
            try:
                await send(("sink", b.name), (sent, b"x" * size), 2)
                sent += 1
            except WouldBlock as error:
                full = error
        assert str(full).startswith(
            f"sending to 'sink' on {b.name} would block: its window stayed full for the 2 s"
        )
        assert 2 <= loop.time() - began < 3
        assert sent * size >= 32 * KIB
        waiting = asyncio.create_task(send(("sink", b.name), (sent, b"x" * size), 60))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        fleet.net.unstall(B)
        await waiting
        await asyncio.sleep(1)
        assert sorted(number for number, _ in got) == list(range(sent + 1))  # of two tasks
        with pytest.raises(NotSerializable):
            await send(("sink", b.name), object(), 2)

    scenario()
