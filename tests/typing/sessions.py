"""An actor as a user would write it, for the files beside this one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from fleetlm import Actor, handler


@dataclass
class Line:
    text: str


class Sessions(Actor):
    def __init__(self, limit: int = 10) -> None:
        self.limit = limit

    @handler
    async def append(self, session: str, line: str, *, twice: bool = False) -> int:
        return len(session + line) * (1 + twice)

    @handler(concurrent=True)
    async def fetch(self, url: str) -> Line | None:
        return Line(url)

    @handler
    async def touch(self) -> None: ...

    @handler
    async def tokens(self, prompt: str, most: int = 3) -> AsyncIterator[str]:
        for _ in range(most):
            yield prompt

    @handler(concurrent=True)
    async def numbers(self) -> AsyncGenerator[int, None]:
        yield 1

    async def helper(self) -> int:
        return 1


class Busy(Sessions):
    async def append(self, session: str, line: str, *, twice: bool = False) -> int:
        return 0

    @handler
    async def busy(self) -> bool:
        return True


class Other(Actor):
    @handler
    async def append(self, session: str) -> bytes:
        return session.encode()
