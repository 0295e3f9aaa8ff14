"""What `SQLiteStore` and `PostgresStore` have in common: a block of ``async with`` opens and closes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Opens(ABC):
    """A store that is opened, and closed in the end."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @abstractmethod
    async def open(self) -> None:
        """Open it now, instead of at the first use. Raises: StoreFailed, with what to do."""

    @abstractmethod
    async def close(self) -> None:
        """Close it. Later operations raise `StoreFailed`."""
