"""Five real nodes that are restarted one after the other while three of them call the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.system.program_fleet import LEAVE_S, UP_S, ProgramFleet
from tests.system.rolling_ledger import QUIET, Account
from tests.system.run_records import RunRecords

if TYPE_CHECKING:
    from pathlib import Path

NODES = range(2, 7)
CALLERS = range(2, 5)
CALLS_PER_S = 300
STREAMS = 20


class RollingFleet(ProgramFleet):
    """The nodes, which run `rolling_worker`.

    Args:
        folder: for the records and the logs.
        calls_per_s: of all callers together.
    """

    def __init__(self, folder: Path, calls_per_s: float = CALLS_PER_S) -> None:
        env = {"ROLLING_FOLDER": str(folder), "ROLLING_NODES": str(len(NODES))}
        super().__init__(folder, "rolling_worker:main", NODES, env)
        self.env["ROLLING_FIXED"] = " ".join(self.fleet.name(each) for each in NODES)
        self._records, self._account = RunRecords(folder), Account()
        self.calls_per_s = calls_per_s

    def env_of(self, number: int) -> dict[str, str]:
        """See `ProgramFleet`."""
        if number not in CALLERS:
            return {}
        share = STREAMS // len(CALLERS) + (number - CALLERS[0] < STREAMS % len(CALLERS))
        return {"ROLLING_CALLS": str(self.calls_per_s / len(CALLERS)), "ROLLING_STREAMS": str(share)}

    def complaints(self) -> list[str]:
        """See `ProgramFleet`."""
        return self.account().complaints()

    def account(self) -> Account:
        """Read what all nodes have written so far."""
        return self._account.take_all(self._records.new())

    def wait_until_ready(self) -> None:
        """See `ProgramFleet`; the records say it."""
        self.wait(lambda: self.account().ready >= self.starts, UP_S, "the node has not met all others")

    def end_calls(self) -> None:
        """Tell the callers to begin nothing more, and wait until what they began has ended."""
        before = self.account().quiet
        (self.folder / QUIET).touch()
        self.wait(lambda: self.account().quiet >= before + len(CALLERS), LEAVE_S, "requests have not ended")
