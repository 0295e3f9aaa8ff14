"""The inputs that are kept in the repository.

For each target there are seeds, which `seeds` makes from the code as it is now, so that a change of a format
does not make them useless; a small corpus that an earlier run of the fuzzer has found; and the inputs that
have found faults.
"""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.seeds import SEEDS

HERE = Path(__file__).parent
FOLDERS = ("corpus", "found")


def folder(kind: str, target: str) -> Path:
    """The folder with the inputs of a target: ``kind`` is one of `FOLDERS`."""
    return HERE / kind / target


def inputs_of(target: str) -> dict[str, bytes]:
    """Every stored input of a target, by a name for people."""
    found = {f"seed {number}": data for number, data in enumerate(SEEDS[target]())}
    for kind in FOLDERS:
        for path in sorted(folder(kind, target).glob("*.bin")):
            found[f"{kind}/{path.name}"] = path.read_bytes()
    return found
