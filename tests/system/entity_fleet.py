"""Real nodes that host sessions, and one that appends to them; some are restarted, killed or frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.patience import slowness
from tests.system.entity_ledger import DONE_SUFFIX, QUIET, SUFFIX, Account
from tests.system.program_fleet import LEAVE_S, UP_S, ProgramFleet
from tests.system.run_records import RunRecords

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = 2
WORKERS = range(3, 6)
CALLS_PER_S = 300


class EntityFleet(ProgramFleet):
    """The nodes, which run `entity_worker`.

    Args:
        folder: for the records and the logs.
        env: variables of `entity_worker`, and settings.
        calls_per_s: of the client on a machine that does nothing else.
    """

    def __init__(self, folder: Path, env: dict[str, str], calls_per_s: float = CALLS_PER_S) -> None:
        nodes = (CLIENT, *WORKERS)
        super().__init__(
            folder,
            "entity_worker:main",
            nodes,
            {"ENTITY_FOLDER": str(folder), "ENTITY_NODES": str(len(nodes)), **env},
        )
        self._records, self._account = RunRecords(folder), Account()
        self.calls_per_s = calls_per_s / slowness(1.0)

    def env_of(self, number: int) -> dict[str, str]:
        """See `ProgramFleet`."""
        return {"ENTITY_CALLS": str(self.calls_per_s)} if number == CLIENT else {}

    def complaints(self) -> list[str]:
        """See `ProgramFleet`."""
        return self.account().complaints()

    def account(self) -> Account:
        """Read what all nodes have written so far."""
        return self._account.take_all(self._records.new())

    def wait_until_back(self, number: int) -> None:
        """Return when a node that was started has met all others, and an entity lives there.

        So the others hand its share over to it before the next one leaves.
        """
        self.wait_until_ready()
        runs = self.folder.glob(f"{self.fleet.name(number)}-*{SUFFIX}")
        last = max(runs, key=lambda path: path.stat().st_ctime)
        self.wait(lambda: last.stat().st_size, UP_S, "the node has not got any session")

    def end_calls(self, clients: int = 1) -> Account:
        """Tell the clients to begin nothing more, and wait until they have read all sessions."""
        (self.folder / QUIET).touch()
        self.wait(lambda: self.signed(DONE_SUFFIX) >= clients, LEAVE_S, "requests have not ended")
        return self.account()
