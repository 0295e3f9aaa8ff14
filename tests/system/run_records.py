"""The records that runs of nodes write into a folder, read while they are being written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.system.entity_ledger import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class RunRecords:
    """One file of JSON lines for each run of a node, named after the run.

    A test that waits for something looks at them many times, so each line is read once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, int] = {}
        """Run → bytes of its file that were read."""

    def new(self) -> Iterator[tuple[str, list[Any]]]:
        """Return each run with each record that has come since the last call.

        A line that is not whole is left for the next call; a SIGKILL may leave one for good.
        """
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            run = path.name.removesuffix(SUFFIX)
            start = self._read.get(run, 0)
            with path.open("rb") as file:
                file.seek(start)
                text = file.read()
            end = text.rfind(b"\n") + 1
            self._read[run] = start + end
            for line in text[:end].splitlines():
                yield run, json.loads(line)
