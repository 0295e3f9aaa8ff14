"""Runs the fuzz targets under atheris: ``python -m tests.fuzz --seconds 60 codec frames``.

Each target runs in a process of its own and ends after ``--seconds``, or at the first finding. libFuzzer
begins with the stored inputs; what it adds stays in the work folder, so that the next run goes on from there.
A finding is written to the work folder, too, and its name is printed. Copy it into
``tests/fuzz/found/<target>/`` with the mend, under a name that ends with ``.bin``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

from tests.fuzz import stored
from tests.fuzz.minimise import smallest
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS

WORK = Path(".fuzz")
"""Where inputs and findings of runs are kept; not in the repository."""
MAX_INPUT_BYTES = 4_096
MAX_INPUT_S = 20
"""Seconds after which libFuzzer reports an input that still runs."""
MAX_RESIDENT_MB = 2_000
MISSING = (
    "atheris is missing, which `make fuzz` needs: .venv/bin/python -m pip install -e '.[fuzz]'. It has "
    "wheels for Linux on x86-64 and CPython 3.11 to 3.13. `make test` runs the same targets over the stored "
    "inputs."
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--input", type=Path, help="run one target over this file, without atheris")
    parser.add_argument("--minimise", action="store_true", help="store a small corpus of what was found")
    options = parser.parse_args()
    targets = options.targets or list(TARGETS)
    if options.input is not None:
        TARGETS[targets[0]](options.input.read_bytes())
        return 0
    if options.minimise:
        for target in targets:
            minimise(target)
        return 0
    if importlib.util.find_spec("atheris") is None:
        print(MISSING, file=sys.stderr)
        return 1
    failed = [target for target in targets if not run(target, options.seconds)]
    print(f"findings in: {', '.join(failed)}" if failed else f"no findings in {', '.join(targets)}")
    return 1 if failed else 0


def run(target: str, seconds: int) -> bool:
    """Fuzz one target in a process of its own. Returns whether nothing was found."""
    work, seeds = WORK / target, WORK / "seeds" / target
    for folder in (work, seeds, stored.folder("corpus", target)):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(SEEDS[target]()):
        (seeds / str(number)).write_bytes(data)
    begun_with = [str(seeds), *(str(stored.folder(kind, target)) for kind in stored.FOLDERS)]
    options = [
        *(f"-max_total_time={seconds}", f"-timeout={MAX_INPUT_S}", f"-rss_limit_mb={MAX_RESIDENT_MB}"),
        *(f"-max_len={MAX_INPUT_BYTES}", f"-artifact_prefix={WORK}/{target}-", "-print_final_stats=1"),
    ]
    folders = [str(work), *(each for each in begun_with if Path(each).is_dir())]
    print(f"== {target}", flush=True)
    command = [sys.executable, "-m", "tests.fuzz.run_target", target, *options, *folders]
    return subprocess.run(command, check=False).returncode == 0


def minimise(target: str) -> None:
    """Replace the stored corpus of a target by the few inputs of it, and of the work folder, that matter."""
    folder = stored.folder("corpus", target)
    candidates = {
        path.read_bytes() for each in (folder, WORK / target) for path in each.glob("*") if path.is_file()
    }
    known = [*SEEDS[target](), *(path.read_bytes() for path in stored.folder("found", target).glob("*"))]
    kept = smallest(TARGETS[target], known, candidates)
    for path in folder.glob("*"):
        path.unlink()
    for data in kept:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{hashlib.sha256(data).hexdigest()[:12]}.bin").write_bytes(data)
    print(f"{target}: {len(kept)} of {len(candidates)} inputs are stored, {sum(map(len, kept)):,} bytes")


if __name__ == "__main__":
    sys.exit(main())
