"""Runs one target under libFuzzer: ``python -m tests.fuzz.run_target TARGET [options of libFuzzer]``.

A program of its own, since atheris measures the coverage of modules that are imported under it only.
"""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    target, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["fleetlm"]):
        from tests.fuzz.targets import TARGETS  # imported under atheris
    atheris.Setup([f"tests.fuzz {target}", *arguments], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
