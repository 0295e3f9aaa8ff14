"""What programs that a node runs find of its cookie in their environment: nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.patience import allowed_s

ROOT = Path(__file__).parents[2]
COOKIE, OLD = "kaeluo4Uo6Xei3shohg0aiQu", "ahth4Aem8Roo2eiw6Phoh1ie"
PROGRAM = """
import asyncio, json, os, subprocess, sys
from fleetlm import Node, Settings

def look():
    return {name: value for name, value in os.environ.items() if name.startswith("FLEETLM_COOKIE")}

async def main():
    async with Node.start() as node:
        worker = await node.run_in_process(look)
        asked = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
        program = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)
        again = Settings.from_env()
        own, again = node.settings.cookie, again.cookie
        print(json.dumps({"worker": worker, "program": program, "again": again, "own": own}))

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_worker_processes_and_programs_do_not_inherit_the_cookie(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FLEETLM", "DNS_"))}
    env |= {
        "FLEETLM_COOKIE": COOKIE,
        "FLEETLM_COOKIE_OLD": OLD,
        "FLEETLM_NODE_IP": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, str(path)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=allowed_s(30),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["own"] == told["again"] == COOKIE, "another node of this process would have it"
    assert told["worker"] == {"FLEETLM_COOKIE_TAKEN": "1"}
    assert COOKIE not in str(told["program"])
    assert OLD not in str(told["program"])
    assert "FLEETLM_COOKIE" not in told["program"]
