"""A program with two nodes that forks wherever a program may fork, and prints how each child ended."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import time
import warnings

from fleetlm import Actor, Node, Settings, handler

PARENT = os.getpid()
BUSY_S = 0.002


class LastWords(io.StringIO):
    """The standard error of a child that says why it ends."""

    def flush(self) -> None:
        if "was forked in a coroutine that has awaited something" in self.getvalue():
            os.write(1, b"it says why\n")


class Forks(Actor):
    """Forks in a handler and in a function that blocks; says which process cleans up after it."""

    async def terminate(self, reason: object) -> None:
        print("terminate", "parent" if os.getpid() == PARENT else "child", reason, flush=True)

    @handler
    async def fork(self, code: int) -> int:
        return fork_and_exit(code)

    @handler
    async def return_in_handler(self) -> int:
        pid = os.fork()
        if pid == 0:
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # what ends it is logged
        return pid

    @handler
    async def await_in_child(self, waiting: int) -> int:
        """Fork; the child awaits a turn of the loop, or what only its parent could finish."""
        comes = asyncio.get_running_loop().create_future()
        pid = os.fork()
        if pid == 0:
            sys.stderr = LastWords()
            await (comes if waiting else asyncio.sleep(0))
            sys.exit(3)
        return pid

    @handler
    async def fork_in_thread(self, code: int) -> int:
        return await self.run_blocking(fork_and_exit, code)

    @handler
    async def return_in_thread(self) -> int:
        return await self.run_blocking(os.fork) or -1

    @handler
    async def fork_in_process(self, code: int) -> int:
        return await self.run_in_process(fork_wait, code)


def fork_and_exit(code: int) -> int:
    pid = os.fork()
    if pid == 0:
        sys.exit(code)
    return pid


def fork_wait(code: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(fork_and_exit(code), 0)[1])


async def ended(pid: int) -> int:
    """Wait for a child, at most 20 s, and return its exit code; -9 if it did not end."""
    for _ in range(2_000):
        await asyncio.sleep(0.01)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def chatter(two: Node, name: str) -> None:
    """Keep the sockets of both nodes busy, so that a child finds something to read."""
    while True:
        await two.ping(name)
        await asyncio.sleep(BUSY_S)


async def main(port: int) -> None:
    terms: list[str] = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terms.append, "SIGTERM")
    ips = ["127.0.0.64", "127.0.0.65"]
    one_settings, two_settings = (
        Settings(node_ip=ip, node_ports=(port, port), dns_query=",".join(ips), remote=False) for ip in ips
    )
    async with Node.start(one_settings) as one, Node.start(two_settings) as two:
        await one.ready(1, 20)
        await two.ready(1, 20)
        talking = asyncio.create_task(chatter(two, one.name))
        forks = await one.start_actor(Forks)
        for _ in range(3):
            print("coroutine", await ended(fork_and_exit(7)), flush=True)
            print("handler", await ended(await forks.call(Forks.fork, 4)), flush=True)
            print("thread", await ended(await forks.call(Forks.fork_in_thread, 5)), flush=True)
        print("turn", await ended(await forks.call(Forks.await_in_child, 0)), flush=True)
        print("future", await ended(await forks.call(Forks.await_in_child, 1)), flush=True)
        print("return in handler", await ended(await forks.call(Forks.return_in_handler)), flush=True)
        print("return", await ended(await forks.call(Forks.return_in_thread)), flush=True)
        print("process", await forks.within(60).call(Forks.fork_in_process, 6), flush=True)
        print("process again", await forks.within(60).call(Forks.fork_in_process, 6), flush=True)
        ready, is_ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.write(is_ready, b".")
            time.sleep(100)
        os.read(ready, 1)
        os.kill(pid, signal.SIGTERM)
        print("signal", await ended(pid), terms, flush=True)
        pid = os.fork()
        if pid == 0:
            try:
                await one.send("x", 1)
            except Exception as error:  # noqa: BLE001  # it is shown
                print(type(error).__name__, "forked from" in str(error), flush=True)
            return
        print("main", await ended(pid), flush=True)
        talking.cancel()
        print("parent", one.list() == [two.name], await two.ping(one.name), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # Of forking beside threads, since Python 3.12.
    if sys.argv[2] == "uvloop":
        import uvloop

        uvloop.run(main(int(sys.argv[1])))
    else:
        asyncio.run(main(int(sys.argv[1])))
